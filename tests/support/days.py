"""Simulated days in a data folder, made with the simulator, the stream's processor and the sink."""

import heapq
import random
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from aiokafka.partitioner import murmur2
from landing import land_records
from warehouse_records import MadeRecord

from core import records, topics
from gateway.errors import UnreadablePayload
from gateway.payloads import parse_payload
from gateway.statuses import STATUSES
from smspulse.simulator.options import GatewayBehaviour
from smspulse.simulator.scenarios import generate_scenarios
from streams.lifecycle import EXPIRE_AFTER_MS, LifecycleRules
from streams.message_processor import MessageProcessor
from warehouse import catalog

LAST = date(2026, 11, 24)
SOURCE = "acme"
PARTITIONS = 4
_DAY_S = 86_400
_RUN = 200


class Days:
    """A data folder and the days that are simulated in it, in order.

    Args:
        data: The folder.
        seed: Seed of all random choices.
        messages: Outgoing messages of a day, at random times.
    """

    def __init__(self, data: Path, seed: int, messages: int) -> None:
        catalog.publish_views(data)
        self.data, self._seed, self._messages = data, seed, messages
        self._random = random.Random(seed)  # noqa: S311 - repeatable on purpose
        self._pending: list[tuple[float, int, bytes, str]] = []
        self._count = 0
        self._partitions = [_Partition(data, number) for number in range(PARTITIONS)]

    def simulate_day(
        self,
        day: date,
        *,
        files: int = 1,
        skip: tuple[float, float] | None = None,
        behaviour: GatewayBehaviour | None = None,
    ) -> datetime:
        """Simulate a day, land its records, and return its end.

        Args:
            day: A day later than the previous one.
            files: Files of each partition.
            skip: First and last hour of a period without webhooks.
            behaviour: Behaviour of the gateway; the default one if None.
        """
        midnight = datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()
        for story in generate_scenarios(self._seed * 1_000 + day.toordinal() % 1_000, self._messages, behaviour):
            at = midnight + self._random.random() * _DAY_S
            for sent in story.webhooks:
                at += sent.delay_s
                self._count += 1
                heapq.heappush(self._pending, (at, self._count, sent.body, sent.content_type))
        # Late webhooks are received on a day that is not simulated itself.
        first = min(midnight, self._pending[0][0] // _DAY_S * _DAY_S) if self._pending else midnight
        idle = [first + _DAY_S * number for number in range(1, int((midnight - first) / _DAY_S) + 1)]
        for end in (*idle, *(midnight + _DAY_S / files * number for number in range(1, files + 1))):
            received: list[tuple[float, int, bytes, str]] = []
            while self._pending and self._pending[0][0] < end:
                webhook = heapq.heappop(self._pending)
                if not skip or not skip[0] <= (webhook[0] - midnight) / 3600 < skip[1]:
                    received.append(webhook)
            made: list[list[MadeRecord]] = [[] for _ in self._partitions]
            for at, _, body, content_type in received:
                record = self.webhook(at, body, content_type)
                made[record.partition].append(record)
            for partition, records_ in zip(self._partitions, made, strict=True):
                partition.take(records_, end)
        return datetime.fromtimestamp(midnight + _DAY_S, UTC)

    def webhook(self, at: float, body: bytes, content_type: str = "application/json") -> MadeRecord:
        """Return the record that ingest writes. Its offset is set when it lands."""
        received_at = int(at * 1000)
        digits = f"{received_at:012x}7{self._random.getrandbits(12):03x}{0x8 << 60 | self._random.getrandbits(60):016x}"
        ingest_id = "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
        try:
            key = records.message_key(SOURCE, parse_payload(body).sms_id)
        except UnreadablePayload:
            key = None
        partition = (murmur2(key) & 0x7FFFFFFF if key else self._count) % PARTITIONS
        headers: list[tuple[str, bytes | None]] = [
            (records.HEADER_SOURCE, SOURCE.encode()),
            (records.HEADER_RECEIVED_AT, b"%d" % received_at),
            (records.HEADER_INGEST_ID, ingest_id.encode()),
            (records.HEADER_CONTENT_TYPE, content_type.encode()),
        ]
        return MadeRecord(topics.RAW, partition, 0, received_at, key, body, headers)


class _Partition:
    """One partition: the landed records of its topics, and the state of the stream."""

    def __init__(self, data: Path, number: int) -> None:
        self._data, self._number = data, number
        self._ends = dict.fromkeys((topics.RAW, topics.MESSAGES, topics.DEADLETTERS), 0)
        self._store: dict[bytes, bytes | None] = {}
        self._due: dict[bytes, int] = {}
        self._processor = MessageProcessor(
            LifecycleRules(STATUSES),
            lambda key: self._store[key] or b"" if key in self._store else None,
            UTC,
            10_000,
            EXPIRE_AFTER_MS,
            7 * EXPIRE_AFTER_MS,
        )

    def take(self, batch: Sequence[MadeRecord], now: float) -> None:
        """Land records, the stream's output for them, and the output of its timers until now."""
        landed = self._land(topics.RAW, batch)
        made: list[MadeRecord] = []
        for start in range(0, len(landed), _RUN):
            run = landed[start : start + _RUN]
            made += self._write(self._processor.process(run), run[-1].timestamp)  # type: ignore[arg-type]
        at = int(now * 1000)
        due = [key for key, when in self._due.items() if when <= at]
        made += self._write(self._processor.on_timer(due, at), at)
        for topic in (topics.MESSAGES, topics.DEADLETTERS):
            self._land(topic, [record for record in made if record.topic == topic])

    def _write(self, outputs: Any, at: int) -> list[MadeRecord]:
        made = []
        for key, value, due in outputs.states:
            self._store[key] = value
            if due is not None:
                self._due[key] = due
            made.append(MadeRecord(topics.MESSAGES, self._number, 0, at, key, value, []))
        self._due |= dict(outputs.rescheduled)
        for key in outputs.expired:
            self._due.pop(key, None)
            self._store.pop(key, None)
        made += [
            MadeRecord(topics.DEADLETTERS, self._number, 0, at, each.key, each.value, each.headers)
            for each in outputs.records
            if each.topic == topics.DEADLETTERS
        ]
        return made

    def _land(self, topic: str, batch: Iterable[MadeRecord]) -> list[MadeRecord]:
        start = self._ends[topic]
        # The marker of the previous transaction takes an offset.
        first = start + (topic != topics.RAW)
        numbered = [record._replace(offset=first + number) for number, record in enumerate(batch)]
        if numbered:
            land_records(self._data, start, numbered)
            self._ends[topic] = first + len(numbered)
        return numbered


def weeks(
    data: Path,
    seed: int,
    messages: int,
    back: Sequence[int] = (15, 14, 8, 7, 6, 5, 4, 3, 2, 1),
    skip: tuple[float, float] | None = None,
) -> datetime:
    """Simulate days so many days before the last one, and the last one; return its end."""
    days = Days(data, seed, messages)
    for each in back:
        days.simulate_day(LAST - timedelta(days=each), files=2 if each < 3 else 1)  # enough files for a compaction
    return days.simulate_day(LAST, files=4, skip=skip)
