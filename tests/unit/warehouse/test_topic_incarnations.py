"""Whatever happens to a topic, each of its records is landed, and none twice."""

import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st
from landing import partition_records
from warehouse_records import NOON, raw, status, version

from core import topics
from warehouse.datasets import DATASET_BY_TOPIC
from warehouse.file_names import LANDED_FILE_NAME, format_file_name, parse_partition_log
from warehouse.partition_log import UNKNOWN_INCARNATION, PartitionLog
from warehouse.sink import parquet_files
from warehouse.sink.kafka_log_reader import KafkaLogReader
from warehouse.sink.range_metadata import (
    LAST_IDENTITY_KEY,
    NEXT_OFFSET_KEY,
    RANGE_START_KEY,
    RecordIdentity,
    extract_identities,
    read_last_identity,
    read_next_offset,
)
from warehouse.sink.record_conversion import build_table
from warehouse.sink.topic_incarnations import LogPosition, locate_log_position


@dataclass(frozen=True)
class Written:
    """A record of Kafka's. No two have one number."""

    offset: int
    number: int

    def made(self, topic: str) -> Any:
        made = (
            raw(self.offset, status(self.number, 6)) if topic == topics.RAW else version(self.offset, self.number % 5)
        )
        headers = [("source", b"s"), ("ingest_id", str(self.number).encode())] if topic == topics.RAW else []
        return made._replace(timestamp=NOON + self.number, headers=headers)


@dataclass
class KafkaPartition:
    """A partition as Kafka holds it."""

    topic_id: str
    records: tuple[Written, ...] = ()
    low: int = 0
    end: int = 0

    def copy(self) -> "KafkaPartition":
        return KafkaPartition(self.topic_id, self.records, self.low, self.end)


@dataclass
class History:
    """A partition of a topic, what was landed of it, and what happens to both."""

    topic: str
    kafka: KafkaPartition = field(default_factory=lambda: KafkaPartition("first"))
    copies: list[KafkaPartition] = field(default_factory=list)
    logs: dict[str, list[tuple[Path, bytes]]] = field(default_factory=dict)
    landed: list[int] = field(default_factory=list)
    given: int = 0
    is_old_release: bool = False
    """Whether the lander is of a release that knows no incarnations."""
    has_dropped_rows: bool = False
    superseded: set[int] = field(default_factory=set)
    """What Kafka has compacted, and a copy of it may still have."""

    # What happens to Kafka

    def produce(self, count: int) -> None:
        for _ in range(count):
            self.kafka.records += (Written(self.kafka.end, self.given),)
            self.kafka.end += 1
            self.given += 1
        if self.topic != topics.RAW:
            self.kafka.end += 1  # the marker of a transaction

    def copy(self) -> None:
        self.copies.append(self.kafka.copy())

    def restore(self, number: int) -> None:
        if self.copies and not self.is_old_release:
            self.kafka = self.copies[number % len(self.copies)].copy()

    def recreate(self) -> None:
        if not self.is_old_release:
            self.kafka = KafkaPartition(f"topic-{self.given}-{len(self.copies)}")

    def expire(self, count: int) -> None:
        """Let Kafka drop its oldest records, of those that were landed."""
        if self.topic == topics.RAW and not self.unlanded():
            self.kafka.low = min(self.kafka.low + count, self.kafka.end)
            self.kafka.records = tuple(each for each in self.kafka.records if each.offset >= self.kafka.low)

    def compact(self) -> None:
        """Let Kafka keep the newest record of each key, and the last of all."""
        if self.topic == topics.MESSAGES:
            newest = {each.number % 5: each for each in self.kafka.records[:-1]}
            kept = (*sorted(newest.values(), key=lambda each: each.offset), *self.kafka.records[-1:])
            self.superseded |= {each.number for each in self.kafka.records} - {each.number for each in kept}
            self.kafka.records = kept

    # What happens to the files

    def land(self, count: int = 1_000_000) -> None:
        """Land records as the lander does, as many as that."""
        log, start = self.locate()
        found = [each for each in self.kafka.records if each.offset >= start][:count]
        if not found:
            return
        made = [each.made(self.topic) for each in found]
        run = partition_records(made, log.incarnation)
        table, sink = build_table(run), io.BytesIO()
        parquet_files.write_range_file(table, sink)
        if self.is_old_release:
            sink = _written(table, {NEXT_OFFSET_KEY: str(found[-1].offset + 1).encode()})
        path = Path(DATASET_BY_TOPIC[self.topic], "date=2026-11-24", format_file_name(log, start))
        assert all(path.name > each.name for each, _ in self.logs.get(log.incarnation, []))
        self.logs.setdefault(log.incarnation, []).append((path, sink.getvalue()))
        self.landed += [each.number for each in found]

    def upgrade(self) -> None:
        self.is_old_release = False

    def merge(self) -> None:
        """Make one file of all that a log has."""
        for files in self.logs.values():
            tables = [pq.read_table(io.BytesIO(content)) for _, content in files]
            metadata = pq.read_metadata(io.BytesIO(files[-1][1])).metadata
            ending = {name: metadata[name] for name in (NEXT_OFFSET_KEY, LAST_IDENTITY_KEY) if name in metadata}
            start = {RANGE_START_KEY: str(LANDED_FILE_NAME.fullmatch(files[0][0].name)["start"]).encode()}  # type: ignore[index]
            merged = _written(pa.concat_tables([each.replace_schema_metadata() for each in tables]), ending | start)
            files[:] = [(files[-1][0], merged.getvalue())]

    def drop_rows(self) -> None:
        """Drop all rows, as retention does with days of long ago; the last file of a log leaves its end behind."""
        if self.is_old_release:
            return  # which left no record behind to compare
        self.has_dropped_rows = True
        for files in self.logs.values():
            (path, content) = files[-1]
            last = read_last_identity(io.BytesIO(content), path)
            end = {
                NEXT_OFFSET_KEY: str(
                    self.read_landed_position(PartitionLog(self.topic, 0, _incarnation(path)))
                ).encode()
            }
            end |= {LAST_IDENTITY_KEY: json.dumps(last).encode()}
            files[:] = [(path, _written(pq.read_table(io.BytesIO(content)).slice(0, 0), end).getvalue())]

    def locate(self) -> LogPosition:
        if self.is_old_release:
            files = self.logs.get(UNKNOWN_INCARNATION, [])
            log = PartitionLog(self.topic, 0)
            return LogPosition(log, self.read_landed_position(log) if files else 0)
        return locate_log_position(self, cast("KafkaLogReader", self), self.topic, 0, self.kafka.topic_id)

    def unlanded(self) -> set[int]:
        return {each.number for each in self.kafka.records} - set(self.landed) - self.superseded

    # Access to the files

    def list_incarnations(self, topic: str, partition: int) -> set[str]:
        return set(self.logs)

    def read_landed_position(self, log: PartitionLog) -> int:
        files = self.logs.get(log.incarnation)
        return read_next_offset(io.BytesIO(files[-1][1]), files[-1][0]) if files else 0

    def list_log_files(self, log: PartitionLog) -> list[Path]:
        return [path for path, _ in self.logs.get(log.incarnation, [])]

    def open_parquet_source(self, path: Path) -> io.BytesIO:
        (content,) = {content for files in self.logs.values() for each, content in files if each == path}
        return io.BytesIO(content)

    # Access to Kafka

    def read_offset_bounds(self, topic: str, partition: int) -> tuple[int, int]:
        return self.kafka.low, self.kafka.end

    def read_identities(self, topic: str, partition: int, start: int, end: int) -> dict[int, RecordIdentity]:
        made = [each.made(self.topic) for each in self.kafka.records if start <= each.offset < end]
        return extract_identities(build_table(partition_records(made))) if made else {}


def _written(table: pa.Table, metadata: dict[bytes, bytes]) -> io.BytesIO:
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata), sink)
    return sink


def _incarnation(path: Path) -> str:
    name = LANDED_FILE_NAME.fullmatch(path.name)
    assert name is not None
    return parse_partition_log(name).incarnation


Step = tuple[Any, ...]
SMALL = st.integers(1, 4)
PRODUCE, LAND = st.tuples(st.just("produce"), SMALL), st.tuples(st.just("land"))
RESTORE = st.tuples(st.just("restore"), SMALL)
OTHER = st.one_of(
    st.tuples(st.just("land"), SMALL),
    st.tuples(st.just("expire"), SMALL),
    st.sampled_from([("recreate",), ("compact",), ("merge",), ("drop_rows",), ("upgrade",)]),
)
STEP = st.one_of(PRODUCE, LAND, PRODUCE, LAND, RESTORE, st.just(("copy",)), OTHER)


def lived(topic: str, steps: list[Step], *, is_old_release: bool = False) -> History:
    """Return a history after its steps, and after all that Kafka holds was landed."""
    history = History(topic, is_old_release=is_old_release)
    for name, *arguments in steps:
        getattr(history, name)(*arguments)
    history.upgrade()
    history.land()
    return history


def assert_complete(history: History) -> None:
    assert not history.unlanded()
    # Without the rows that retention or Kafka's compaction has dropped, it cannot be decided, and nothing may be lost.
    if not history.has_dropped_rows and not history.superseded:
        assert len(history.landed) == len(set(history.landed))
    count = len(history.landed)
    history.land()
    assert len(history.landed) == count


def test_a_kafka_that_is_restored_twice_from_one_copy_has_nothing_landed_twice() -> None:
    history = History(topics.RAW)
    history.produce(3)
    history.land()
    history.copy()
    for _ in range(3):
        history.produce(4)
        history.land()
        history.restore(0)
    history.produce(1)
    assert history.locate() == (PartitionLog(topics.RAW, 0, "first.3"), 3)
    history.land()
    assert_complete(history)


def test_a_kafka_that_is_put_back_after_an_older_copy_of_it_goes_on_where_it_was_landed() -> None:
    history = History(topics.RAW)
    history.produce(3)
    history.copy()
    history.produce(4)
    history.land()
    history.copy()
    history.restore(0)
    history.produce(2)
    history.land()
    history.restore(1)
    history.produce(1)
    assert history.locate() == (PartitionLog(topics.RAW, 0, "first.2"), 7)
    history.land()
    assert_complete(history)


def test_a_kafka_restored_to_what_a_release_without_incarnations_landed_has_nothing_landed_twice() -> None:
    history = History(topics.RAW, is_old_release=True)
    history.produce(3)
    history.copy()
    history.produce(2)
    history.land()
    history.upgrade()
    history.produce(2)
    history.land()
    history.restore(0)
    history.produce(4)
    assert history.locate() == (PartitionLog(topics.RAW, 0, "first.1"), 3)
    history.land()
    assert_complete(history)


@settings(max_examples=150)
@given(st.sampled_from([topics.RAW, topics.MESSAGES]), st.lists(STEP, min_size=12, max_size=30), st.booleans())
def test_each_record_is_landed_and_none_twice_whatever_happens(topic: str, steps: list[Step], is_old: bool) -> None:
    assert_complete(lived(topic, steps, is_old_release=is_old))
