"""Pass arbitrary accepted bodies through all readers, and check the results.

    make fuzz                                                       after the requests: 200,000 bodies in each part
    .venv/bin/python tests/chaos/fuzz_records.py --bodies 20000
    .venv/bin/python tests/chaos/fuzz_records.py --in-process       without Kafka and processes
    .venv/bin/python tests/chaos/fuzz_records.py --mutation fold    with an injected fault, which must be detected

In process: ingest with each setting of privacy, both processors of the stream, the sink, `rebuild`, `check`, the alert
rules, the page, and `erase` with such webhooks in the spool. No step may raise. Before and after the erasure, every
webhook is in SQL, every report of the valid gateway is a delivered message, and stream and log agree.

With processes: the bodies are sent to `smspulse up` on a real Kafka. Each is answered 202, no process ends, and every
valid report is a delivered message. `erase` and `rebuild` succeed afterwards.

Exits with 0 if all of this holds, else with 1.
"""

import argparse
import asyncio
import contextlib
import logging
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import aiohttp

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import landing
from fuzz_bodies import BOM, NUMBER, Bodies, Body
from warehouse_records import MadeRecord

from core import records, topics
from core.errors import where_raised
from core.kafka_settings import KafkaSettings
from core.records import WebhookRecord
from gateway.statuses import STATUSES
from ingest.handlers import IngestHandler
from ingest.settings import IngestSettings
from ingest.sources import SourceRegistry
from ingest.spool import WebhookSpool
from streams.device_processor import DeviceProcessor
from streams.failure_baseline import DetectorPolicy
from streams.lifecycle import EXPIRE_AFTER_MS, LifecycleRules
from streams.message_processor import MessageProcessor
from streams.processor import IsolatingProcessor, ProcessorOutput, StateLoader, StreamProcessor
from warehouse import catalog
from warehouse.reader import query

RUN: Final = 1_000
"""Records in one batch of a processor."""
SPOOLED: Final = 500
KAFKA_TAKES: Final = 1_000_000
SENDERS: Final = 16
_LANDED_S: Final = 900
"""Longer than any step on a busy machine. It only ends a wait for something that never occurs."""
MUTATIONS: Final = ("none", "fold", "sink", "parser")
_PRIVACY: Final[dict[str, dict[str, Any]]] = {
    "plain": {},
    "masked": {"privacy": "mask", "bodies": "drop"},
    "hashed": {"privacy": "hmac", "bodies": "drop", "privacy_key": "of this run alone"},
}
_GOOD: Final = "SELECT count(*) AS n FROM messages WHERE source = 'good' AND outcome = 'delivered'"


class Stage:
    """A processor over a store in memory."""

    def __init__(self, make: Callable[[StateLoader], StreamProcessor], *, guarded: bool) -> None:
        self._store: dict[bytes, bytes] = {}
        self.fold: StreamProcessor = IsolatingProcessor(make, self._store.get) if guarded else make(self._store.get)
        self.faults = 0

    def take(self, outputs: ProcessorOutput) -> None:
        """Commit the output. As Kafka does, it refuses a record that is too large."""
        for key, value, _ in outputs.states:
            if len(value or b"") > KAFKA_TAKES:
                msg = f"Kafka takes no record of {len(value or b''):,} bytes"
                raise ValueError(msg)
            self._store[key] = value or b""
        for key in outputs.expired:
            del self._store[key]
        self.faults += outputs.faults

    @property
    def keys(self) -> list[bytes]:
        """Keys of all states."""
        return list(self._store)


class InProcess:
    """The pipeline without Kafka: ingest's receivers, the processors of the stream and the sink."""

    def __init__(self, data: Path, mutation: str) -> None:
        catalog.publish_views(data)
        self._data = data
        sink: Any = None
        self._receivers = {
            name: IngestHandler(IngestSettings.model_validate(settings), SourceRegistry(data, ""), sink)
            for name, settings in _PRIVACY.items()
        }
        lifecycle, guarded = LifecycleRules(STATUSES), mutation != "fold"
        forget_ms = 7 * EXPIRE_AFTER_MS
        self._messages = Stage(lambda load: MessageProcessor(lifecycle, load, UTC, 10_000, forget_ms), guarded=guarded)
        self._devices = Stage(lambda load: DeviceProcessor(load, DetectorPolicy()), guarded=guarded)
        self._ends: Counter[str] = Counter()
        self._now_ms = int(time.time() * 1000) - 3_600_000
        self.spooled: list[WebhookRecord] = []

    @property
    def faults(self) -> int:
        """Number of records that caused an unforeseen error."""
        return self._messages.faults + self._devices.faults

    def receive(self, body: Body, number: int) -> MadeRecord:
        """Return the record that ingest makes of a webhook; those of the valid gateway are not redacted."""
        source = "good" if body.is_good else tuple(_PRIVACY)[number % len(_PRIVACY)]
        receiver = self._receivers["plain" if body.is_good else source]
        key, kept, content_type = receiver._redact_body(source, body.content, body.content_type)
        self._now_ms += 1
        headers: list[tuple[str, bytes]] = [
            (records.HEADER_SOURCE, source.encode()),
            (records.HEADER_RECEIVED_AT, b"%d" % self._now_ms),
            (records.HEADER_INGEST_ID, f"id-{number}".encode()),
            (records.HEADER_CONTENT_TYPE, content_type),
        ]
        if source == "plain" and len(self.spooled) < SPOOLED:
            self.spooled.append(WebhookRecord(key, kept, headers, self._now_ms))
        return MadeRecord(topics.RAW, 0, 0, self._now_ms, key, kept, list(headers))

    def process(self, run: list[MadeRecord]) -> None:
        """Land a batch, process it, and land the output."""
        raw: Any = self._land(topics.RAW, run)
        outputs = self._messages.fold.process(raw)
        self._messages.take(outputs)
        self._land(topics.MESSAGES, [self._made(topics.MESSAGES, key, value) for key, value, _ in outputs.states])
        letters = [each for each in outputs.records if each.topic == topics.DEADLETTERS]
        self._land(topics.DEADLETTERS, [self._made(each.topic, each.key, each.value, each.headers) for each in letters])
        outcomes: Any = [
            SimpleNamespace(
                topic=each.topic, partition=0, offset=0, timestamp=0, key=each.key, value=each.value, headers=()
            )
            for each in outputs.records
            if each.topic == topics.OUTCOMES
        ]
        devices = self._devices.fold.process(outcomes)
        self._devices.take(devices)
        alerts = [each for each in devices.records if each.topic == topics.ALERTS]
        self._land(topics.ALERTS, [self._made(each.topic, each.key, each.value) for each in alerts])

    def on_timer(self) -> None:
        """Advance the time by a day."""
        self._messages.take(self._messages.fold.on_timer(self._messages.keys, self._now_ms + 2 * EXPIRE_AFTER_MS))

    def _made(self, topic: str, key: bytes | None, value: bytes | None, headers: Any = ()) -> MadeRecord:
        return MadeRecord(topic, 0, 0, self._now_ms, key, value, list(headers))

    def _land(self, topic: str, made: list[MadeRecord]) -> list[MadeRecord]:
        start = self._ends[topic]
        numbered = [record._replace(offset=start + number) for number, record in enumerate(made)]
        if numbered:
            landing.land_records(self._data, start, numbered)
            self._ends[topic] += len(numbered)
        return numbered


def inject(mutation: str) -> None:
    """Inject a fault: a recursive parser, or a processor or a sink without isolation of errors."""
    from gateway import payloads  # noqa: PLC0415
    from warehouse.sink import record_conversion  # noqa: PLC0415

    if mutation == "parser":
        read = payloads.parse_with_fields

        def recursive(body: bytes, *given: Any) -> Any:
            return recursive(body[len(BOM) :], *given) if body.startswith(BOM) else read(body, *given)

        payloads.parse_with_fields = recursive
    if mutation == "fold":
        one = MessageProcessor._process_record
        MessageProcessor._process_record = lambda *given: fail() if BOM in given[1].value else one(*given)
    if mutation == "sink":
        landing.build_table = record_conversion._convert_records
        record_conversion.charset_of = lambda content_type: fail() if b"nonsense" in (content_type or b"") else None


def fail() -> None:
    """Raise the error of a parser whose input is nested too deep."""
    raise RecursionError


def in_process(bodies: int, seed: int, data: Path, mutation: str) -> list[str]:
    """Return the problems."""
    pipeline = InProcess(data, mutation)
    made = Bodies(random.Random(seed))  # noqa: S311 - repeatable on purpose
    good, number, slowest = 0, 0, 0.0
    began = time.monotonic()
    while number < bodies:
        run = []
        for _ in range(min(RUN, bodies - number)):
            body = made.next()
            good += body.is_good
            received = time.monotonic()
            run.append(pipeline.receive(body, number))
            slowest = max(slowest, time.monotonic() - received)
            number += 1
        pipeline.process(run)
    pipeline.on_timer()
    took = time.monotonic() - began
    print(f"{number:,} bodies in {took:.0f} s; ingest took {slowest * 1000:.0f} ms for the slowest one")
    problems = [f"{pipeline.faults} records made a fold fail"] if pipeline.faults else []

    def count(sql: str) -> int:
        return int(query(data, sql)["n"][0])

    def judge_counts(when: str) -> None:
        for description, sql, expected in (
            ("webhooks", "SELECT count(*) AS n FROM raw_webhooks", number),
            ("good messages", _GOOD, good),
            ("webhooks that made the sink fail", _FAULTS, 0),
            (
                "dead letters without a webhook that is unreadable",
                "SELECT count(*) AS n FROM deadletters WHERE reason NOT IN ('too_many_reports', 'wrong_key') AND "
                '(origin_offset IS NULL OR origin_offset NOT IN (SELECT "offset" FROM raw_webhooks '
                "WHERE kind = 'unreadable'))",
                0,
            ),
        ):
            if (found := count(sql)) != expected:
                problems.append(f"{when}: {found:,} {description}, not {expected:,}")

    judge_counts("after landing")
    if problems:
        return problems
    for name, step in _steps(data, pipeline.spooled).items():
        began = time.monotonic()
        try:
            result = step()
        except Exception as error:
            problems.append(f"{name} raised {where_raised(error)}: {str(error)[:200]}")
        else:
            print(f"{name:<10} {result}, {time.monotonic() - began:.0f} s")
            if result.startswith("WRONG"):
                problems.append(f"{name}: {result}")
    judge_counts("after the erasure")
    return problems


_FAULTS: Final = "SELECT count(*) AS n FROM raw_webhooks WHERE reason = 'processing_failed'"


def _steps(data: Path, spooled: list[WebhookRecord]) -> dict[str, Callable[[], str]]:
    """Return every reader of the landed data, in the order of execution."""
    from expectations.runner import run_checks  # noqa: PLC0415 - heavy, as the others
    from expectations.settings import CheckSettings  # noqa: PLC0415
    from smspulse.alerting.rules import WarehouseRules  # noqa: PLC0415
    from smspulse.dashboard.queries import PageFilter, PageSnapshot  # noqa: PLC0415
    from smspulse.dashboard.rendering import render_content  # noqa: PLC0415
    from smspulse.runtime import erasure  # noqa: PLC0415
    from warehouse.rebuild import rebuild_base  # noqa: PLC0415

    def rebuilt() -> str:
        found = rebuild_base(data, STATUSES, timedelta(milliseconds=EXPIRE_AFTER_MS))
        result = f"{found.messages:,} messages of {found.reports:,} reports, {found.differing:,} differ"
        return f"WRONG: {result}" if found.differing else result

    def checked() -> str:
        return f"{len(run_checks(data, CheckSettings()).rows)} expectations"

    def watched() -> str:
        return f"{len(WarehouseRules(data).read_findings(int(time.time() * 1000)))} findings"

    def shown() -> str:
        numbers = PageSnapshot(data, lambda: {"processes": [], "lag": {}})
        numbers.refresh()
        if "trouble" in numbers.current_values:
            return f"WRONG: {numbers.current_values['trouble']}"
        return f"{len(render_content(numbers, PageFilter())):,} characters"

    def erased() -> str:
        spool = WebhookSpool(data, IngestSettings())
        spool.append(spooled)
        spool.close()
        erasure._write_tombstones = lambda kafka, keys: None
        report = erasure.erase_everywhere(data, (NUMBER,), KafkaSettings)
        return "; ".join(report.lines)

    return {"rebuild": rebuilt, "check": checked, "alerts": watched, "page": shown, "erase": erased}


async def send(url: Callable[[str], str], bodies: int, seed: int) -> tuple[int, Counter[int], float]:
    """Send bodies; return the number of valid ones, the answers, and the slowest answer to a valid one in seconds."""
    made = Bodies(random.Random(seed))  # noqa: S311 - repeatable on purpose
    left, good, slowest = bodies, 0, 0.0
    answers: Counter[int] = Counter()
    urls = {is_good: url("good" if is_good else "plain") for is_good in (True, False)}

    async def sender(http: aiohttp.ClientSession) -> None:
        nonlocal left, good, slowest
        while left > 0:
            left -= 1
            body = made.next()
            began = time.monotonic()
            headers = {"Content-Type": body.content_type.decode()}
            while True:
                async with http.post(urls[body.is_good], data=body.content, headers=headers) as answer:
                    if answer.status in {429, 503}:  # the answer names the time of the next attempt
                        await asyncio.sleep(float(answer.headers["Retry-After"]))
                        continue
                    answers[answer.status] += 1
                    break
            if body.is_good:
                good += 1
                slowest = max(slowest, time.monotonic() - began)

    async with aiohttp.ClientSession() as http, asyncio.TaskGroup() as senders:
        for _ in range(SENDERS):
            senders.create_task(sender(http))
    return good, answers, slowest


def with_processes(bodies: int, seed: int, folder: Path) -> list[str]:
    """Return the problems."""
    from running import start  # noqa: PLC0415 - it needs pytest

    commands = ("ingest", "stream", "land", "alerts", "page")
    pipeline = start(folder / "data", "--broker", "kafka")
    problems: list[str] = []
    try:
        before = {command: pipeline.find(command) for command in commands}
        began = time.monotonic()
        good, answers, slowest = asyncio.run(send(pipeline.source, bodies, seed))
        sent_s = time.monotonic() - began
        with contextlib.suppress(AssertionError):
            pipeline.wait_for(f"SELECT 1 FROM ({_GOOD}) WHERE n = ?", good, within=_LANDED_S)  # noqa: S608 - of ours
        if (found := int(pipeline.rows(_GOOD)[0].n)) != good:
            problems.append(f"{found:,} of {good:,} good messages are in SQL")
        seen_s = time.monotonic() - began
        for command, pid in before.items():
            if pid is None or pipeline.find(command) != pid:
                problems.append(f"the process {command} ended")
        if set(answers) != {202}:
            problems.append(f"answers: {dict(answers)}")
        try:
            pipeline.wait_for("SELECT 1 FROM raw_webhooks HAVING count(*) = ?", bodies, within=_LANDED_S)
        except AssertionError:
            problems.append("not every webhook is in SQL")
        for command, codes in ((["erase", "--number", NUMBER], {0, 1}), (["rebuild"], {0})):
            done = subprocess.run(
                [sys.executable, "-m", "smspulse", command[0], "--data", str(pipeline.data), *command[1:]],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode not in codes:
                problems.append(f"smspulse {command[0]} ended with {done.returncode}: {done.stderr[-500:]}")
        if (found := int(pipeline.rows(_GOOD)[0].n)) != good:
            problems.append(f"{found:,} of {good:,} good messages are in SQL after the erasure")
        print(
            f"{bodies:,} bodies sent in {sent_s:.0f} s, all good ones in SQL after {seen_s:.0f} s; "
            f"the good gateway was answered within {slowest:.1f} s; log of {pipeline.log.stat().st_size:,} bytes"
        )
    finally:
        code = pipeline.stop()
    if code:
        problems.append(f"smspulse up ended with {code}")
    return problems


@contextlib.contextmanager
def _folder(kept: Path | None) -> Iterator[Path]:
    if kept is not None:
        kept.mkdir(parents=True)
        yield kept
        return
    with tempfile.TemporaryDirectory(prefix="smspulse-fuzz-") as folder:
        yield Path(folder)


def main() -> int:
    """Run the fuzz and print the problems."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bodies", type=int, default=200_000, help="in each part")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--in-process", action="store_true", help="without Kafka and processes")
    parser.add_argument("--mutation", choices=MUTATIONS, default="none", help="in process")
    parser.add_argument("--keep", type=Path, help="a new folder for all files, which is kept")
    options = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    inject(options.mutation)
    with _folder(options.keep) as folder:
        try:
            problems = in_process(options.bodies, options.seed, folder / "in-process", options.mutation)
        except Exception as error:
            problems = [f"the pipeline ended: {where_raised(error)}"]
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"peak memory: {peak_mb:,.0f} MB")
        if not options.in_process and options.mutation == "none":
            problems += with_processes(options.bodies, options.seed, folder)
    for problem in problems[:20]:
        print(f"WRONG: {problem}")
    print(f"{len(problems)} wrong")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
