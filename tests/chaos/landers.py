"""Kill one of two landers at random moments under traffic, many times, and compare the landed files with Kafka.

    make chaos-landers                             1,000 kills
    make chaos-landers ARGS="--kills 50 --concurrent"

The landers share the partitions by their consumer group. With `--concurrent`, each has its own group, so both hold all
partitions and write the same ranges. The kills then begin after one lander has found a range that the other one landed.

Exits with 0 if each record landed once, with 1 if any did not, with 2 if the run failed.
"""

import argparse
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
from confluent_kafka import Consumer, Producer, TopicPartition

from core.atomic_file import delete_orphaned_files
from core.kafka_settings import KafkaSettings
from core.topics import MESSAGES, RAW
from smspulse.broker.kafka_broker import KafkaBroker
from smspulse.broker.settings import BrokerSettings
from smspulse.broker.topic_admin import ensure_topics
from warehouse import catalog, lander
from warehouse.errors import OvertakenError
from warehouse.file_names import TEMPORARY_FOLDER
from warehouse.maintenance import atomic_replace
from warehouse.reader import query
from warehouse.settings import LanderSettings
from warehouse.sink import parquet_files

PARTITIONS = 4
_LIFE_S = 0.8
_PATIENCE_S = 300
_STANDSTILL_S = 60


def land(settings: LanderSettings, kafka: KafkaSettings, mutation: str, ready: Any, met: Any) -> None:
    """Run a lander in its own process.

    Args:
        settings: Settings of the lander.
        kafka: Settings of the Kafka that holds the records.
        mutation: An injected fault, or `none`.
        ready: Set when the lander has partitions.
        met: Set when the lander finds a range that the other one landed.
    """
    parquet_files.land_rows = _observed(parquet_files.land_rows, met)
    if mutation == "no-fence":
        parquet_files.land_rows = _unfenced(parquet_files.land_rows)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    lander.run_lander(settings, kafka, ready.set)


def _observed(land_rows: Callable[..., Path], met: Any) -> Callable[..., Path]:
    """Set an event when another lander has landed a range already."""

    def observed(data: Path, start: int, table: pa.Table) -> Path:
        try:
            return land_rows(data, start, table)
        except OvertakenError:
            met.set()
            raise

    return observed


def _unfenced(land_rows: Callable[..., Path]) -> Callable[..., Path]:
    """Land a range again that another lander has landed.

    The file is written under another name and renamed, so a kill never leaves a partial file. The mutation causes
    duplicates only, and one common range is enough for them.
    """

    def mutated(data: Path, start: int, table: pa.Table) -> Path:
        try:
            return land_rows(data, start, table)
        except OvertakenError as error:
            scratch = data / f"unfenced-{uuid4().hex}"
            with scratch.open("wb") as file:
                parquet_files.write_range_file(table, file)
            return scratch.rename(atomic_replace.name_successor(error.path))

    return mutated


def _die_with_parent() -> None:
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


class Traffic:
    """Webhooks at a steady rate, and transactions of versions of which every third is aborted."""

    def __init__(self, kafka: KafkaSettings, rate: int) -> None:
        self._kafka, self._rate = kafka, rate
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=work) for work in (self._webhooks, self._versions)]
        self.webhooks = self.versions = 0

    def __enter__(self) -> "Traffic":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _webhooks(self) -> None:
        producer = Producer(self._kafka.confluent_options() | {"enable.idempotence": True, "linger.ms": 5})
        headers = [("source", b"chaos"), ("received_at", b"1795521600000")]
        while not self._stop.wait(0.02):
            for number in range(self.webhooks, self.webhooks + self._rate // 50):
                producer.produce(RAW, b'{"sms_id": %d, "status_id": 6}' % number, b"chaos:%d" % number, headers=headers)
            self.webhooks += self._rate // 50
            producer.poll(0)
        if left := producer.flush(30):
            msg = f"Kafka did not take {left} webhooks"
            raise RuntimeError(msg)

    def _versions(self) -> None:
        producer = Producer(self._kafka.confluent_options() | {"transactional.id": "chaos"})
        producer.init_transactions(30)
        turn = 0
        while not self._stop.wait(0.05):
            producer.begin_transaction()
            for number in range(turn * 10, turn * 10 + 10):
                # Without a first report, as every fourth is, a version is in no base file.
                first = b', "first_seen_at": 1795521600000' if number % 4 else b""
                value = b'{"source": "chaos", "sms_id": %d, "version": 1%s}' % (number, first)
                producer.produce(MESSAGES, value, b"chaos:%d" % number)
            if turn % 3:
                producer.commit_transaction(30)
                self.versions += 10
            else:
                producer.flush(30)
                producer.abort_transaction(30)
            turn += 1


class Landers:
    """Two landers of one data folder, each restarted after a kill."""

    def __init__(self, data: Path, kafka: KafkaSettings, mutation: str, *, concurrent: bool) -> None:
        # Forked from a process that has imported everything, so a start takes milliseconds.
        self._context = multiprocessing.get_context("forkserver")
        self._data, self._kafka, self._mutation = data, kafka, mutation
        self._settings = [
            LanderSettings(
                data=data,
                group=f"concurrent-{number}" if concurrent else "landers",
                instance=f"lander-{number}",
                flush_interval_s=0.1,
                merge_interval_s=0.3,
                session_timeout_s=6,
            )
            for number in range(2)
        ]
        self._ready = [self._context.Event() for _ in range(2)]
        self._met = self._context.Event()
        self._processes: list[Any] = [self._start(number) for number in range(2)]

    def _start(self, number: int) -> Any:
        self._ready[number].clear()
        process = self._context.Process(
            target=land, args=(self._settings[number], self._kafka, self._mutation, self._ready[number], self._met)
        )
        process.start()
        return process

    def meet(self) -> None:
        """Wait until one lander has found a range that the other one landed."""
        if not self._met.wait(_PATIENCE_S):
            msg = f"no lander found a range of the other one in {_PATIENCE_S} s"
            raise RuntimeError(msg)

    def kill(self, number: int, after_s: float) -> bool:
        """Kill a lander some time after its start, and restart it; return whether it left a partial file."""
        process = self._processes[number]
        if not self._ready[number].wait(_PATIENCE_S):
            msg = f"lander {number} had no partition after {_PATIENCE_S} s"
            raise RuntimeError(msg)
        time.sleep(after_s)
        process.kill()
        process.join()
        if process.exitcode != -9:
            msg = f"lander {number} ended without a kill, with {process.exitcode}"
            raise RuntimeError(msg)
        orphaned = delete_orphaned_files(self._data / TEMPORARY_FOLDER) > 0
        self._processes[number] = self._start(number)
        return orphaned

    def stop(self) -> list[int]:
        """Stop both with SIGTERM; return their exit codes."""
        for process, ready in zip(self._processes, self._ready, strict=True):
            ready.wait(_PATIENCE_S)  # before that, it may have no signal handler yet
            process.terminate()
        for process in self._processes:
            process.join(30)
        return [process.exitcode for process in self._processes]


@contextmanager
def kafka_in(folder: Path) -> Iterator[KafkaSettings]:
    """Run a Kafka with the topics of smspulse in a folder."""
    with KafkaBroker(folder, BrokerSettings(port=0, controller_port=0, login=False)) as broker:
        kafka = KafkaSettings(bootstrap=broker.address, partitions=PARTITIONS)
        ensure_topics(kafka, timeout_s=30)
        yield kafka


def ends(kafka: KafkaSettings) -> list[int]:
    """Return the end offset of each partition of `sms.raw`, which has no gaps."""
    consumer = Consumer(kafka.confluent_options() | {"group.id": "judge"})
    try:
        return [consumer.get_watermark_offsets(TopicPartition(RAW, n), 10)[1] for n in range(PARTITIONS)]
    finally:
        consumer.close()


def wait_for(data: Path, offsets: list[int], versions: int) -> None:
    """Wait until everything has landed, or until nothing has landed for `_STANDSTILL_S`."""
    sql = """SELECT (SELECT count(DISTINCT ("partition", "offset")) FROM raw_webhooks) AS webhooks,
                      (SELECT count(*) FROM messages) AS messages"""
    before: tuple[int, int] = (0, 0)
    moved_at = time.monotonic()
    while time.monotonic() - moved_at < _STANDSTILL_S:
        found = query(data, sql)
        landed = int(found["webhooks"][0]), int(found["messages"][0])
        if landed[0] >= sum(offsets) and landed[1] >= versions:
            return
        if landed != before:
            before, moved_at = landed, time.monotonic()
        time.sleep(0.2)  # new files raise no event
    print(f"nothing more landed in {_STANDSTILL_S} s: {landed[0]:,} webhooks, {landed[1]:,} messages", flush=True)


def judge(data: Path, offsets: list[int], versions: int) -> tuple[int, int]:
    """Return how many records did not land, and how many landed more than once or are more than once in `messages`."""
    raw = f"read_parquet('{data}/raw/date=*/sms*.parquet')"
    messages = f"read_parquet('{data}/messages/date=*/sms*.parquet')"
    found = query(
        data,
        f"""SELECT count(*) AS n, count(DISTINCT ("partition", "offset")) AS different, count(DISTINCT sms_id) AS keys
            FROM {raw} UNION ALL
            SELECT count(*), count(DISTINCT ("partition", "offset")), count(DISTINCT sms_id) FROM {messages}""",  # noqa: S608 - ours
    )
    expected = [sum(offsets), versions]
    lost = sum(max(0, e - min(d, m)) for e, d, m in zip(expected, found["different"], found["keys"], strict=True))
    twice = sum(n - min(d, m) for n, d, m in zip(found["n"], found["different"], found["keys"], strict=True))
    # The view also reads what was merged into base files.
    shown = query(data, "SELECT count(*) AS n, count(DISTINCT sms_id) AS keys FROM messages")
    lost += max(0, versions - int(shown["keys"][0]))
    twice += int(shown["n"][0]) - int(shown["keys"][0])
    return int(lost), int(twice)


def run(options: argparse.Namespace, folder: Path) -> int:
    rng = random.Random(options.seed)  # noqa: S311 - repeatable on purpose
    data = folder / "data"
    catalog.publish_views(data)
    halves = 0
    with kafka_in(folder) as kafka:
        landers = Landers(data, kafka, options.mutation, concurrent=options.concurrent)
        try:
            with Traffic(kafka, options.rate) as traffic:
                if options.concurrent:
                    landers.meet()
                for number in range(1, options.kills + 1):
                    halves += landers.kill(rng.randrange(2), rng.uniform(0, _LIFE_S))
                    if number % 100 == 0:
                        print(f"{number} kills, {traffic.webhooks:,} webhooks", flush=True)
            offsets = ends(kafka)
            wait_for(data, offsets, traffic.versions)
        finally:
            codes = landers.stop()
    lost, twice = judge(data, offsets, traffic.versions)
    files = sum(1 for _ in data.glob("raw/date=*/sms*"))
    print(
        f"{options.kills:,} kills, {halves:,} of them in the middle of a file; {sum(offsets):,} webhooks and "
        f"{traffic.versions:,} versions in {files:,} files of webhooks; both ended with {codes}"
    )
    print(f"{lost:,} lost, {twice:,} twice")
    return 1 if lost or twice or any(codes) or not traffic.versions else 0


def main() -> int:
    """Run the kills and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--rate", type=int, default=2000, help="webhooks a second")
    parser.add_argument("--concurrent", action="store_true", help="two groups: each lander holds every partition")
    parser.add_argument("--mutation", choices=["none", "no-fence"], default="none", help="an injected fault")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="smspulse-landers-"))
    code = run(options, folder)
    if code:
        print(f"kept for inspection: {folder}", file=sys.stderr)
    else:
        shutil.rmtree(folder)
    return code


if __name__ == "__main__":
    sys.exit(main())
