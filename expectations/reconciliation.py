"""The suite `reconciliation`: each webhook answered 2xx is landed, in Kafka or spooled. Each end is written once."""

import re
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from time import monotonic
from typing import Any, Final, NamedTuple

import duckdb
import orjson
import pandas as pd
import pyarrow as pa
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from core import records, topics
from core.consumer_lag import BROKER_PATIENCE_S, is_reachable, log_if_slow
from core.kafka_settings import KafkaSettings
from core.topic_ids import TopicIds
from expectations.catalogue import read_resource
from expectations.measurement import earliest_complete_time, fetch_frame
from expectations.settings import CheckSettings
from ingest.receipts import ID_BYTES, read_receipts
from ingest.spool import read_spooled_ids
from warehouse.landed_files import list_incarnations_by_age
from warehouse.reader import fetch_rows, open_warehouse
from warehouse.sink.kafka_log_reader import KafkaLogReader
from warehouse.sink.parquet_files import FolderStore
from warehouse.sink.topic_incarnations import locate_log_position

# Default period of outcomes. They are read one by one, and a check runs every few minutes.
_OUTCOMES_LOOKBACK: Final = timedelta(hours=1)
_TIME: Final = pa.timestamp("ms", tz="UTC")
_ID: Final = pa.binary(ID_BYTES)


WAITING_SCHEMA: Final = pa.schema({"source": pa.string(), "received_at": _TIME, "id": _ID, "record": pa.string()})
OUTCOMES_SCHEMA: Final = pa.schema({
    "source": pa.string(), "sms_id": pa.int64(), "attempt": pa.int32(), "outcome": pa.string(), "is_ended": pa.bool_(),
    "correction": pa.bool_(), "written_at": _TIME,
})  # fmt: skip


class KafkaContents(NamedTuple):
    """Records in Kafka that the reconciliation needs.

    Args:
        since: Start of the period of outcomes.
        waiting: Records of sms.raw that have not landed: source, received_at, id, record.
        outcomes: Records of sms.outcomes: source, sms_id, attempt (null: the first), outcome,
            is_ended, correction, written_at.
    """

    since: datetime
    waiting: pa.Table = WAITING_SCHEMA.empty_table()
    outcomes: pa.Table = OUTCOMES_SCHEMA.empty_table()


def read_kafka_contents(
    kafka: KafkaSettings, data: Path, now: datetime, since: datetime | None = None
) -> KafkaContents:
    """Read the records of sms.raw that have not landed, and the outcomes of a period, by default the last hour.

    No outcomes are read from the in-memory broker: it has no index of times, and a restart loses its records.

    Raises:
        KafkaException: Kafka does not answer.
        OSError: The data folder cannot be read.
    """
    if not is_reachable(kafka):
        raise KafkaException(KafkaError(KafkaError._TRANSPORT))
    since = now if kafka.in_memory else since or now - _OUTCOMES_LOOKBACK
    options = {"group.id": "smspulse-check", "enable.auto.commit": False, "enable.partition.eof": True, "log_level": 0}
    options |= kafka.confluent_options() | {"auto.offset.reset": "earliest"}
    slow = f"waiting for Kafka at {kafka.bootstrap}, up to {BROKER_PATIENCE_S:g} s an answer"
    with log_if_slow(slow), closing(Consumer(options)) as consumer:
        existing = consumer.list_topics(timeout=BROKER_PATIENCE_S).topics
        raw_partitions, outcome_partitions = (
            list(existing[name].partitions) if name in existing else [] for name in (topics.RAW, topics.OUTCOMES)
        )
        wanted = [TopicPartition(topics.OUTCOMES, each, int(since.timestamp() * 1000)) for each in outcome_partitions]
        starts = [] if kafka.in_memory else consumer.offsets_for_times(wanted, BROKER_PATIENCE_S)
        starts += _unlanded_positions(kafka, data, raw_partitions)
        waiting, outcomes = [], []
        for message in _consume_to_end(consumer, starts):
            if message.topic() == topics.RAW:
                waiting.append(_waiting_record(message))
            else:
                outcome = orjson.loads(message.value() or b"{}")
                outcomes.append({**outcome, "written_at": message.timestamp()[1]})
    return KafkaContents(
        since, pa.Table.from_pylist(waiting, WAITING_SCHEMA), pa.Table.from_pylist(outcomes, OUTCOMES_SCHEMA)
    )


def _unlanded_positions(kafka: KafkaSettings, data: Path, partitions: list[int]) -> list[TopicPartition]:
    """Return the position in each partition of the first record of sms.raw that has not landed.

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


def _outcomes_complete_since(connection: duckdb.DuckDBPyConnection, data: Path, since: datetime) -> datetime:
    """Return `since`, or the later time of the first record of the newest incarnation of sms.messages.

    The outcomes of older messages were lost with an earlier incarnation of the topics.
    """
    known = list_incarnations_by_age(data, topics.MESSAGES)
    if len(known) < 2:  # noqa: PLR2004 - there is no earlier one
        return since
    sql = "SELECT min(recorded_at) AS began FROM dataset('messages') WHERE incarnation = ?"
    began: datetime | None = fetch_rows(connection, sql, [known[-1]])[0]["began"]
    return max(since, began or since)


def _consume_to_end(consumer: Consumer, starts: list[TopicPartition]) -> Iterator[Message]:
    """Yield the records from `starts` to the end of each partition."""
    consumer.assign(starts)
    left, deadline = {(each.topic, each.partition) for each in starts}, monotonic() + BROKER_PATIENCE_S
    while left:
        # Waits 0.1 s at most for so many records.
        messages = consumer.consume(10_000, 0.1)
        if messages:
            deadline = monotonic() + BROKER_PATIENCE_S
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
    # Another writer to sms.raw may have written any header. A record without an id is never found in the warehouse.
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
    read_kafka: Callable[[], KafkaContents | None] = lambda: None,
) -> pd.DataFrame:
    """Compare the receipts of ingest with the landed webhooks, from `since` on, or of the recent hours.

    Without contents of Kafka, webhooks that are only there count as missing, and outcomes are not compared.

    Args:
        data: The data folder.
        settings: The thresholds.
        now: The time before the first read. Younger webhooks may be in transit.
        since: Start of the period.
        read_kafka: Returns the contents of Kafka, or None if it cannot be read.

    Raises:
        SpoolError: The spool cannot be read.
        NoWarehouseError: Nothing was published in the folder.
    """
    since = (since or now - timedelta(hours=settings.recent_h)).replace(minute=0, second=0, microsecond=0)
    since = max(since, earliest_complete_time(data.resolve()))
    # In the order in which a webhook moves: spool, Kafka, warehouse. One that moves meanwhile is seen at least once.
    spooled = pa.array([bytes.fromhex(each.replace("-", "")) for each in read_spooled_ids(data)], _ID)
    contents = read_kafka() or KafkaContents(now)
    moments = {"since": since, "until": now - timedelta(seconds=settings.max_waiting_s)}
    with open_warehouse(data) as connection:
        moments["outcomes_since"] = _outcomes_complete_since(connection, data, contents.since)
        connection.register("accepted", _read_accepted_ids(data, since))
        connection.register("spooled", pa.table([spooled], names=["id"]))
        connection.register("waiting", contents.waiting)
        connection.register("outcomes", contents.outcomes)
        return fetch_frame(connection, read_resource("measures", "reconciliation.sql"), moments)
