"""A stream and its landers in a test, histories of reports for them, and the rebuild of their warehouse."""

import random
from collections.abc import Iterable, Sequence
from datetime import UTC, date, timedelta
from pathlib import Path
from typing import Any
from zlib import crc32

import orjson
from landing import land_records
from warehouse_records import MadeRecord, at, raw, status

from core import topics
from core.records import MAX_OBSERVATIONS
from gateway.statuses import build_status_table, parse_status_meanings
from smspulse.simulator.scenarios import generate_scenarios
from streams.lifecycle import EXPIRE_AFTER_MS, LifecycleRules
from streams.message_processor import MessageProcessor
from warehouse import rebuild as run
from warehouse.reader import open_warehouse

DAY = 86_400
STATUS_TABLE = build_status_table(parse_status_meanings("55=not_sent,56=delivered"))
TODAY = date(2026, 11, 24)


class Stream:
    """The processor of the stream over a store in memory, and the landers of its topics."""

    def __init__(self, data: Path, partition: int = 0, max_observations: int = MAX_OBSERVATIONS) -> None:
        self._data, self._partition = data, partition
        self._store: dict[bytes, bytes | None] = {}
        self._ends = {topics.RAW: 0, topics.MESSAGES: 0}
        self._incarnations = {topics.RAW: "", topics.MESSAGES: ""}
        self._processor = MessageProcessor(
            LifecycleRules(STATUS_TABLE), lambda key: self._store[key] or b"" if key in self._store else None, UTC, 0,
            7 * EXPIRE_AFTER_MS, max_observations=max_observations,
        )  # fmt: skip

    def receive(self, *reports: tuple[float, Any], source: str = "acme") -> list[MadeRecord]:
        """Land bodies, each with the second of its receipt; return the records."""
        records = [
            raw(self._ends[topics.RAW] + n, body, source=source, seconds=seconds, partition=self._partition)._replace(
                key=_key(source, body)
            )
            for n, (seconds, body) in enumerate(reports)
        ]
        return self.land(topics.RAW, records)

    def process(self, records: Sequence[MadeRecord], seconds: float = 0) -> None:
        self._write(self._processor.process(records).states, max((r.timestamp for r in records), default=at(seconds)))  # type: ignore[arg-type]

    def report(self, *reports: tuple[float, Any]) -> None:
        self.process(self.receive(*reports))

    def on_timer(self, seconds: float) -> None:
        keys = [key for key, state in self._store.items() if state]
        self._write(self._processor.on_timer(keys, at(seconds)).states, at(seconds))

    def settle(self, seconds: float) -> None:
        """Process another message so late that all earlier ones are settled."""
        self.report((seconds, status(10**9 * (self._partition + 1) + round(seconds), 7)))

    def copy(self) -> tuple[dict[bytes, bytes | None], dict[str, int]]:
        """Return a copy of Kafka's content: the state, and the ends of the logs."""
        return self._store.copy(), self._ends.copy()

    def restore(self, copy: tuple[dict[bytes, bytes | None], dict[str, int]], **incarnations: str) -> None:
        """Continue from a copy, in new incarnations of `raw` and `messages`."""
        store, ends = copy
        self._store, self._ends = store.copy(), ends.copy()
        self._incarnations = {topics.RAW: incarnations["raw"], topics.MESSAGES: incarnations["messages"]}
        self._processor.clear_cache()

    def replace(self, topic: str, incarnation: str) -> None:
        """Recreate a topic. With sms.messages, the stream loses its state."""
        self._ends[topic], self._incarnations[topic] = 0, incarnation
        if topic == topics.MESSAGES:
            self._store.clear()
            self._processor.clear_cache()

    def _write(self, states: Any, timestamp: int) -> None:
        self._store |= {key: value for key, value, _ in states}
        made = [MadeRecord(topics.MESSAGES, self._partition, 0, timestamp, key, value, []) for key, value, _ in states]
        self.land(topics.MESSAGES, made)

    def land(self, topic: str, records: Iterable[MadeRecord]) -> list[MadeRecord]:
        start = self._ends[topic]
        numbered = [record._replace(offset=start + n) for n, record in enumerate(records)]
        if numbered:
            land_records(self._data, start, numbered, incarnation=self._incarnations[topic])
            self._ends[topic] = start + len(numbered)
        return numbered


def _key(source: str, body: Any) -> bytes | None:
    try:
        payload = orjson.loads(body) if isinstance(body, bytes) else body
        return f"{source}:{int(payload['sms_id'])}".encode()
    except (ValueError, TypeError, KeyError):
        return None


def rebuild(data: Path, **options: Any) -> run.RebuildResult:
    return run.rebuild_base(data, STATUS_TABLE, timedelta(milliseconds=EXPIRE_AFTER_MS), **options)


def rows(data: Path, sql: str) -> list[tuple[Any, ...]]:
    with open_warehouse(data) as connection:
        return connection.execute(sql).fetchall()


def messages(data: Path) -> list[tuple[Any, ...]]:
    return rows(data, "SELECT * EXCLUDE (recorded_at) FROM messages ORDER BY ALL")


def dense_history(seed: int, count: int) -> list[tuple[float, Any]]:
    """Return dense reports: every status, device, channel and spelling, within milliseconds or days."""
    rng = random.Random(seed)  # noqa: S311 - repeatable on purpose
    reports = []
    for sms_id in range(count):
        spread = rng.choice([0.02, 5, 3 * DAY])
        statuses = [1, 2, 3, 5, 6, 7, 8, 9, 10, 1, 2, 6, 55, 56, 77, 100]
        devices, times = [None, 8001, "8002"], [None, "2026-11-24 11:00:00", {"date": "2026-11-24 11:00:00.5"}, "soon"]
        if rng.random() < 0.5:  # as most messages: of one phone, without retries
            statuses, devices, times = [1, 3, 2, 6, rng.choice(statuses)], [8001], times[rng.randrange(2) : 2]
        for _ in range(rng.randint(1, 10)):
            body: dict[str, Any] = status(
                sms_id, rng.choice(statuses), device_id=rng.choice(devices),
                sendto=rng.choice([None, "+49 1", "+492", 493, ""]), senttime=rng.choice(times),
            )  # fmt: skip
            channel = body.pop("channel_id")
            channels = [channel, 1, "1", None] if len(devices) > 1 else [1, "1"]
            body[rng.choice(["channel_id", "sim"])] = rng.choice(channels)
            body["status_id"] = rng.choice([body["status_id"], str(body["status_id"]), float(body["status_id"])])
            reports.append((rng.uniform(0, spread), body))
            if rng.random() < 0.1:
                reports.append((reports[-1][0] + rng.choice([0, 1]), body))
    rng.shuffle(reports)
    return reports


def simulated_history(seed: int, count: int) -> list[tuple[float, Any]]:
    """Return the simulator's webhooks, with all its errors."""
    reports = []
    for number, story in enumerate(generate_scenarios(seed, count)):
        seconds = number * 2.0
        for webhook in story.webhooks:
            seconds += webhook.delay_s
            reports.append((seconds, webhook.body))
    return sorted(reports, key=lambda each: each[0])


def stream_history(
    data: Path, history: list[tuple[float, Any]], partitions: int = 2, max_observations: int = MAX_OBSERVATIONS
) -> None:
    for partition in range(partitions):
        stream = Stream(data, partition, max_observations)
        mine = [(s, body) for s, body in history if crc32(_key("", body) or b"") % partitions == partition]
        for cut in range(0, len(mine), 700):
            stream.report(*mine[cut : cut + 700])
        stream.on_timer(20 * DAY)
        stream.settle(20 * DAY)


SENT_MESSAGE = [(0.0, status(1, 1)), (1.0, status(1, 3)), (2.0, status(1, 2)), (5.0, status(1, 6))]
