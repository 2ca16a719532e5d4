"""Stop Kafka under steady traffic, kill ingest meanwhile, and check every record afterwards.

    make outage                                            10 minutes at 200 webhooks a second
    make outage ARGS="--seconds 60 --kills 10 --processes 2"
    make outage ARGS="--pause"                             Kafka runs but does not answer (SIGSTOP)

Exits with 0 if all of this holds, with 1 if not, with 2 if the run failed:
    - Every webhook answered 202 is in Kafka.
    - Webhooks of one key are in the order in which they were sent.
    - Copies are marked as such.
    - No webhook passes through the spool after it was emptied.
"""

import argparse
import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
from kafka import KafkaConsumer, TopicPartition

from core.kafka_settings import KafkaSettings
from core.topics import RAW
from ingest.sources import add_source, webhook_url
from smspulse.broker.kafka_broker import KafkaBroker
from smspulse.broker.settings import BrokerSettings
from smspulse.broker.topic_admin import ensure_topics
from smspulse.processes.children import die_with_parent, find_free_port

SOURCE = "outage"
_KEYS = 40
_WARM_UP_S = 1.0
_CALM_S = 3.0
_PATIENCE_S = 240.0
_STARTER = ThreadPoolExecutor(1)  # a process ends with the thread that started it


@dataclass
class Found:
    """Result of a run: the answered ingest_ids by key, in the order sent, and counts of their records in Kafka."""

    answered: dict[int, list[str]] = field(default_factory=lambda: defaultdict(list))
    refused: Counter[int] = field(default_factory=Counter)
    broken: int = 0
    spooled: int = 0
    lost: int = 0
    unordered: int = 0
    copies: int = 0
    unmarked: int = 0
    calm: dict[int, int] = field(default_factory=dict)
    still_spooled: int = 0
    emptied_s: float = 0.0
    sent_while_emptying: int = 0

    def total(self) -> int:
        return sum(map(len, self.answered.values()))

    @property
    def ok(self) -> bool:
        return not (self.lost or self.unordered or self.unmarked or self.refused or self.still_spooled)


class Ingest:
    """`smspulse ingest`, restarted after each kill."""

    def __init__(self, data: Path, bootstrap: str, processes: int, log: Path) -> None:
        self.url = f"http://127.0.0.1:{find_free_port()}"
        port = self.url.rpartition(":")[2]
        self._command = [*(sys.executable, "-m", "smspulse", "ingest", "--data", str(data), "--broker", bootstrap)]
        self._command += ["--port", port] + (["--processes", str(processes)] if processes > 1 else [])
        self._log = log
        self.process = self._start()

    def _start(self) -> "subprocess.Popen[bytes]":
        with self._log.open("ab") as out:
            return subprocess.Popen(self._command, stdout=out, stderr=out, preexec_fn=die_with_parent())  # noqa: PLW1509

    def kill(self) -> None:
        """Kill one process: the only one, or the first of several, which its parent restarts."""
        listed = subprocess.run(["ps", "--ppid", str(self.process.pid), "-o", "pid="], capture_output=True, check=False)
        if receivers := listed.stdout.split():
            os.kill(int(receivers[0]), signal.SIGKILL)
            return
        self.process.kill()
        self.process.wait()
        self.process = self._start()

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(120)


async def _send(
    http: aiohttp.ClientSession, url: str, key: int, pause: float, stop: asyncio.Event, found: Found
) -> None:
    """Send the webhooks of one key in order, each at its time. A webhook is repeated until it is answered 202."""
    loop = asyncio.get_running_loop()
    due, number = loop.time() + pause * key / _KEYS, 0
    while not stop.is_set():
        await asyncio.sleep(due - loop.time())
        try:
            async with http.post(url, data=b'{"sms_id": %d, "status_id": %d}' % (key, number)) as answer:
                if answer.status == 202:
                    found.answered[key].append((await answer.json())["ingest_id"])
                    due, number = due + pause, number + 1
                    continue
                found.refused[answer.status] += 1
        except (aiohttp.ClientError, OSError):
            found.broken += 1
        await asyncio.sleep(0.05)


async def _spool(http: aiohttp.ClientSession, url: str) -> int | None:
    """Return the number of spooled webhooks; None if ingest does not answer."""
    try:
        async with http.get(f"{url}/readyz") as answer:
            return int((await answer.json())["spool"]["webhooks"])
    except (aiohttp.ClientError, OSError):
        return None


async def _wait_for_spool(http: aiohttp.ClientSession, url: str, webhooks: int) -> int:
    """Wait until ingest answers and its spool holds so many webhooks, and return their number."""
    deadline = time.monotonic() + _PATIENCE_S
    while (found := await _spool(http, url)) is None or found < webhooks:
        if time.monotonic() > deadline:
            msg = f"the spool of ingest holds {found} webhooks, not {webhooks}"
            raise TimeoutError(msg)
        await asyncio.sleep(0.05)
    return found


async def run_outage(broker: KafkaBroker, running: Ingest, webhook: str, options: argparse.Namespace) -> Found:
    """Cause the outage under traffic; return the answers."""
    found, stop = Found(), asyncio.Event()
    in_starter = partial(asyncio.get_running_loop().run_in_executor, _STARTER)
    connector = aiohttp.TCPConnector(limit=0, force_close=options.processes > 1)
    async with aiohttp.ClientSession(connector=connector) as http, asyncio.TaskGroup() as senders:
        await _wait_for_spool(http, running.url, 0)
        for key in range(_KEYS):
            senders.create_task(_send(http, webhook, key, _KEYS / options.rate, stop, found))
        await asyncio.sleep(_WARM_UP_S)
        jvm = broker.jvm if options.pause else None
        if jvm is not None:
            os.kill(jvm.pid, signal.SIGSTOP)
        else:
            await asyncio.to_thread(broker.stop)
        for _ in range(options.kills):
            await asyncio.sleep(options.seconds / (options.kills + 1))
            await in_starter(running.kill)
        await asyncio.sleep(options.seconds / (options.kills + 1))
        # On a busy machine the killed process may take longer to start again than Kafka was to be away.
        most = await _wait_for_spool(http, running.url, _KEYS + 1)
        if jvm is not None:
            os.kill(jvm.pid, signal.SIGCONT)
        else:
            await in_starter(broker.start)
        deadline = time.monotonic() + _PATIENCE_S + options.seconds
        began, before = time.monotonic(), found.total()
        while (now := await _spool(http, running.url)) != 0:
            if now is not None and now >= most:
                most, began, before = now, time.monotonic(), found.total()
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(0.02)
        found.spooled = most
        found.emptied_s, found.sent_while_emptying = time.monotonic() - began, found.total() - before
        await asyncio.sleep(_CALM_S)
        found.calm = {key: len(ids) + 1 for key, ids in found.answered.items()}  # one may be in flight
        await asyncio.sleep(_WARM_UP_S)
        stop.set()
    return found


def _records(kafka: KafkaSettings) -> Iterator[Any]:
    """Yield the records in Kafka, up to the current end offset of each partition, in order within a partition."""
    consumer = KafkaConsumer(enable_auto_commit=False, **kafka.kafka_python_options())
    partitions = [TopicPartition(RAW, number) for number in sorted(consumer.partitions_for_topic(RAW))]
    consumer.assign(partitions)
    consumer.seek_to_beginning()
    ends = consumer.end_offsets(partitions)
    while any(consumer.position(partition) < end for partition, end in ends.items()):
        for records in consumer.poll(500).values():
            yield from records
    consumer.close()


def judge(kafka: KafkaSettings, found: Found) -> None:
    """Compare the answered webhooks with the records in Kafka."""
    seen: dict[str, int] = {}
    copies: Counter[str] = Counter()
    spooled = set()
    for number, record in enumerate(_records(kafka)):
        headers = dict(record.headers)
        ingest_id = headers["ingest_id"].decode()
        if "spooled" in headers:
            spooled.add(ingest_id)
        elif ingest_id in seen:
            found.unmarked += 1
        copies[ingest_id] += 1
        seen.setdefault(ingest_id, number)  # a key is in one partition, so its numbers are in order
    found.copies = copies.total() - len(copies)
    for key, ids in found.answered.items():
        found.still_spooled += len(spooled.intersection(ids[found.calm[key] :]))
        found.lost += sum(ingest_id not in seen for ingest_id in ids)
        places = [seen[ingest_id] for ingest_id in ids if ingest_id in seen]
        found.unordered += sum(later < earlier for earlier, later in pairwise(places))


@contextmanager
def _broker(folder: Path) -> Iterator[tuple[KafkaBroker, KafkaSettings]]:
    settings = BrokerSettings(port=find_free_port(), controller_port=0, login=False)
    with KafkaBroker(folder / "broker", settings) as broker:
        kafka = KafkaSettings(bootstrap=broker.address, partitions=4, replication=1, min_insync=1)
        ensure_topics(kafka, timeout_s=30)
        yield broker, kafka


def run(options: argparse.Namespace, folder: Path) -> int:
    data = folder / "data"
    data.mkdir(parents=True)
    with _broker(folder) as (broker, kafka):
        token = add_source(data, SOURCE)
        running = Ingest(data, kafka.bootstrap, options.processes, folder / "ingest.log")
        try:
            found = asyncio.run(run_outage(broker, running, webhook_url(running.url, SOURCE, token), options))
        finally:
            code = running.stop()
        judge(kafka, found)
    print(
        f"{found.total():,} webhooks answered 202, {found.refused.total():,} refused, "
        f"{found.broken:,} connections broken, {found.spooled:,} in the spool at most"
    )
    if found.emptied_s:
        rate = (found.spooled + found.sent_while_emptying) / found.emptied_s
        print(f"the spool was empty after {found.emptied_s:.2f} s")
        print(f"figure forwarded_vs_arrival_rate {rate / options.rate:.1f} goal >= 5")
    print(f"{found.copies:,} copies, {found.unmarked:,} of them without their mark; ingest ended with {code}")
    print(f"{found.still_spooled:,} webhooks went through the spool when Kafka was back")
    print(f"{found.lost:,} lost, {found.unordered:,} out of order")
    return 0 if found.ok and code == 0 else 1


def main() -> int:
    """Run the outage and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600, help="duration of the outage")
    parser.add_argument("--rate", type=float, default=200, help="webhooks a second")
    parser.add_argument("--kills", type=int, default=0, help="kills of ingest during the outage")
    parser.add_argument("--processes", type=int, default=1, help="processes of ingest")
    parser.add_argument("--keep", action="store_true", help="keep the folder")
    parser.add_argument("--pause", action="store_true", help="stop Kafka's process instead of ending it")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="smspulse-outage-"))
    code = run(options, folder)
    if code or options.keep:
        print(f"kept for inspection: {folder}", file=sys.stderr)
    else:
        shutil.rmtree(folder)
    return code


if __name__ == "__main__":
    sys.exit(main())
