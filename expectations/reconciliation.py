"""The suite `reconciliation`: what ingest answered 2xx is landed, in Kafka or in the spool; each end is told once."""

import re
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, time, timedelta
from importlib.resources import files
from pathlib import Path
from time import monotonic
from typing import Any, Final, NamedTuple

import duckdb
import orjson
import pyarrow as pa
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from core import records, topics
from core.group_lag import BROKER_PATIENCE_S, is_reachable, log_if_slow
from core.kafka_settings import KafkaSettings
from core.topic_ids import TopicIds
from expectations.catalogue import build_checks
from expectations.measurement import SuiteMeasures
from expectations.settings import CheckSettings
from ingest.receipts import ID_BYTES, read_receipts
from ingest.spool import read_spooled_ids
from warehouse.catalog import dataset_scan_sql, read_base_watermark
from warehouse.reader import open_warehouse, retry_after_merge
from warehouse.sink.parquet_files import list_incarnations_by_age
from warehouse.sink.storage import FolderStore
from warehouse.sink.topic_incarnations import KafkaLogReader, locate_log_position

SUITE: Final = "reconciliation"
_TIMEOUT_S: Final = BROKER_PATIENCE_S
_OUTCOMES_LOOKBACK: Final = timedelta(hours=1)
"""How far back outcomes are read if it is not said: they are read one by one, and a check runs every few minutes."""
_TIME: Final = pa.timestamp("ms", tz="UTC")
_ID: Final = pa.binary(ID_BYTES)


class KafkaContents(NamedTuple):
    """What Kafka holds.

    Args:
        since: From when on outcomes were read.
        waiting: Records of sms.raw that were not landed: source, received_at, id, record.
        outcomes: Those of sms.outcomes: source, sms_id, outcome, is_ended, correction, told_at.
    """

    since: datetime
    waiting: pa.Table
    outcomes: pa.Table


WAITING_SCHEMA: Final = pa.schema({"source": pa.string(), "received_at": _TIME, "id": _ID, "record": pa.string()})
OUTCOMES_SCHEMA: Final = pa.schema({
    "source": pa.string(), "sms_id": pa.int64(), "outcome": pa.string(), "is_ended": pa.bool_(),
    "correction": pa.bool_(), "told_at": _TIME,
})  # fmt: skip


def read_kafka_contents(
    kafka: KafkaSettings, data: Path, now: datetime, since: datetime | None = None
) -> KafkaContents:
    """Read what Kafka has of sms.raw after what was landed, and the outcomes that were told `since`, or lately.

    Of the in-memory broker, which knows no times and forgets when it is started anew, no outcomes are read.

    Raises:
        KafkaException: Kafka does not answer.
        OSError: The data folder cannot be read.
    """
    if not is_reachable(kafka):
        raise KafkaException(KafkaError(KafkaError._TRANSPORT))
    with log_if_slow(f"waiting for Kafka at {kafka.bootstrap}, up to {BROKER_PATIENCE_S:g} s an answer"):
        return _consume_contents(kafka, data, now if kafka.in_memory else since or now - _OUTCOMES_LOOKBACK)


def _consume_contents(kafka: KafkaSettings, data: Path, since: datetime) -> KafkaContents:
    options = {"group.id": "smspulse-check", "enable.auto.commit": False, "enable.partition.eof": True, "log_level": 0}
    with closing(Consumer(kafka.confluent_options() | options | {"auto.offset.reset": "earliest"})) as consumer:
        there = consumer.list_topics(timeout=_TIMEOUT_S).topics
        raw_partitions, outcome_partitions = (
            list(there[name].partitions) if name in there else [] for name in (topics.RAW, topics.OUTCOMES)
        )
        asked = [TopicPartition(topics.OUTCOMES, each, int(since.timestamp() * 1000)) for each in outcome_partitions]
        starts = [] if kafka.in_memory else consumer.offsets_for_times(asked, _TIMEOUT_S)
        starts += _unlanded_positions(kafka, data, raw_partitions)
        waiting, outcomes = [], []
        for message in _consume_to_end(consumer, starts):
            if message.topic() == topics.RAW:
                waiting.append(_waiting_record(message))
            else:
                outcome = orjson.loads(message.value() or b"{}")
                outcomes.append({**outcome, "told_at": message.timestamp()[1]})
    return KafkaContents(since, *(
        pa.Table.from_pylist(rows, schema) for rows, schema in ((waiting, WAITING_SCHEMA), (outcomes, OUTCOMES_SCHEMA))
    ))  # fmt: skip


def _unlanded_positions(kafka: KafkaSettings, data: Path, partitions: list[int]) -> list[TopicPartition]:
    """Return where the records of sms.raw that are not landed begin in each partition.

    Raises:
        KafkaException: Kafka does not answer.
        OSError: The data folder cannot be read.
    """
    folder = FolderStore(data)
    ids = TopicIds(kafka).read_ids([topics.RAW]) if partitions else {}
    if topics.RAW not in ids:
        return []
    with KafkaLogReader(kafka) as reader:
        found = [locate_log_position(folder, reader, topics.RAW, each, ids[topics.RAW]) for each in partitions]
    return [TopicPartition(position.log.topic, position.log.partition, position.offset) for position in found]


def _newest_incarnation_began(connection: duckdb.DuckDBPyConnection, data: Path) -> datetime | None:
    """Return since when the newest of several incarnations of sms.messages has records; None if there is but one."""
    known = list_incarnations_by_age(data, topics.MESSAGES)
    if len(known) < 2:  # noqa: PLR2004 - there is no earlier one
        return None
    sql = f"SELECT min(recorded_at) FROM {dataset_scan_sql(data.resolve() / 'messages')} WHERE incarnation = ?"  # noqa: S608 - ours
    ((began,),) = retry_after_merge(lambda: connection.execute(sql, [known[-1]]).fetchall())
    return None if began is None else began.astimezone(UTC)


def _consume_to_end(consumer: Consumer, starts: list[TopicPartition]) -> Iterator[Message]:
    """Yield the records from `starts` to where each partition ends."""
    consumer.assign(starts)
    left, deadline = {(each.topic, each.partition) for each in starts}, monotonic() + _TIMEOUT_S
    while left:
        messages = consumer.consume(10_000, 0.1)  # so long it waits for as many
        if messages:
            deadline = monotonic() + _TIMEOUT_S
        elif monotonic() > deadline:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
        for message in messages:
            if (error := message.error()) is None:
                yield message
            elif error.code() == KafkaError._PARTITION_EOF:
                left.discard((str(message.topic()), message.partition()))
            else:
                raise KafkaException(error)


def _waiting_record(message: Message) -> dict[str, Any]:
    headers = {name: value.decode(errors="replace") for name, value in message.headers() or () if value}
    ingest_id = headers.get(records.HEADER_INGEST_ID, "").replace("-", "")
    return {
        "source": headers.get(records.HEADER_SOURCE, "(no source)"),
        "received_at": message.timestamp()[1],
        "id": bytes.fromhex(ingest_id) if re.fullmatch("[0-9a-f]{32}", ingest_id) else None,
        "record": f"{message.topic()}:{message.partition()}:{message.offset()}",
    }


def _read_accepted_ids(data: Path, since: datetime) -> pa.Table:
    """Return the ids that ingest answered with success since a time: source, hour, id."""
    schema = pa.schema({"source": pa.string(), "hour": _TIME, "id": _ID})
    parts = [schema.empty_table()]
    for source, hour, found in read_receipts(data, since):
        count = len(found) // ID_BYTES
        ids = pa.FixedSizeBinaryArray.from_buffers(_ID, count, [None, pa.py_buffer(found)])
        columns: list[Any] = [pa.repeat(source, count), pa.repeat(pa.scalar(hour, _TIME), count), ids]
        parts.append(pa.table(columns, schema))
    return pa.concat_tables(parts)


def measure_reconciliation(
    data: Path,
    settings: CheckSettings,
    now: datetime,
    since: datetime | None = None,
    kafka: KafkaContents | None = None,
) -> SuiteMeasures:
    """Compare ingest's record of what it answered with what was landed, from `since` on, or of the recent hours.

    Without `kafka`, what is in Kafka alone counts as missing, and outcomes are not looked at.

    Raises:
        SpoolError: The spool cannot be read.
        NoWarehouseError: Nothing was published in the folder.
    """
    since = (since or now - timedelta(hours=settings.recent_h)).replace(minute=0, second=0, microsecond=0)
    if base := read_base_watermark(data.resolve()):
        since = max(since, datetime.combine(base.floor, time(), UTC))  # before it, raw was dropped for its age
    spooled = pa.array([bytes.fromhex(each.replace("-", "")) for each in read_spooled_ids(data)], _ID)
    contents = kafka or KafkaContents(now, WAITING_SCHEMA.empty_table(), OUTCOMES_SCHEMA.empty_table())
    sql = files("expectations").joinpath("reconciliation.sql").read_text("utf-8")
    moments = {"since": since, "until": now - timedelta(seconds=settings.max_waiting_s), "told_since": contents.since}
    with open_warehouse(data) as connection:
        if began := _newest_incarnation_began(connection, data):
            # Outcomes of messages of before were lost with the topics that Kafka lost.
            moments["told_since"] = max(contents.since, began)
        connection.register("accepted", _read_accepted_ids(data, since))
        connection.register("spooled", pa.table([spooled], names=["id"]))
        connection.register("waiting", contents.waiting)
        connection.register("outcomes", contents.outcomes)
        frame = retry_after_merge(lambda: connection.execute(sql, moments).df())
    checks = [check for check in build_checks(settings) if check.suite == SUITE]
    return SuiteMeasures(SUITE, checks, frame)
