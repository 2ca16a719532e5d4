"""`smspulse erase`: removes phone numbers from files, spool and Kafka, and reports what it changed and what is left."""

import fcntl
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from confluent_kafka import KafkaException
from kafka import KafkaProducer
from kafka.errors import KafkaError

from core import records, topics
from core.errors import SmspulseError
from core.kafka_settings import KafkaSettings
from core.records import WebhookRecord
from core.topic_ids import TopicIds
from gateway.number_search import NumberSearch
from ingest.request_body import PayloadRedactor
from ingest.settings import IngestSettings
from ingest.spool import WebhookSpool
from smspulse.broker.login import client_properties_path
from smspulse.runtime.errors import EraseError
from warehouse.landed_files import list_incarnations_by_age
from warehouse.maintenance import erasure
from warehouse.partition_log import UNKNOWN_INCARNATION, PartitionLog, parse_topic_id
from warehouse.sink.kafka_log_reader import KafkaLogReader
from warehouse.sink.parquet_files import FolderStore
from warehouse.sink.range_metadata import find_first_lost_offsets
from warehouse.sink.topic_incarnations import locate_log_position

# Kafka may take so long for all tombstones.
_SEND_S: Final = 30.0
_TOPICS: Final = {topic.name: topic for topic in topics.TOPICS}


@dataclass(frozen=True, slots=True)
class ErasureReport:
    """Lines about changes and about remaining records, for people; and whether files in the data folder remain."""

    lines: list[str]
    remaining: list[str]
    has_remaining_files: bool


def erase_everywhere(data: Path, numbers: tuple[str, ...], kafka: Callable[[], KafkaSettings]) -> ErasureReport:
    """Erase numbers everywhere. An interrupted run must be repeated.

    Args:
        data: The data folder.
        numbers: Each in every spelling that differs by more than punctuation.
        kafka: Returns the settings of Kafka. Called only if Kafka is needed.

    Raises:
        EraseError: A number is not valid, or Kafka did not accept the tombstones.
        SmspulseError: Files or spool cannot be changed.
    """
    try:
        search, not_searched = erasure.create_number_search(data, numbers)
    except ValueError as error:
        msg = f"{error} has too few digits to be a phone number; nothing was erased"
        raise EraseError(msg) from error
    lines = []
    # The spool comes first: webhooks that are forwarded meanwhile are erased from the files.
    if (data / "spool" / "spool.sqlite").exists():
        lines.append(f"spool: {_erase_from_spool(data, search)} webhooks that wait for Kafka")
    done = erasure.erase_from_files(data, search)
    lines += [f"{name}: {rows:,} rows in {done.files[name]} files" for name, rows in sorted(done.rows.items())]
    if done.keys:
        _write_tombstones(kafka(), done.keys)
        lines.append(f"{topics.MESSAGES}: {len(done.keys):,} messages deleted by key")
    erasure.complete_pending_erasure(data)
    lines += [f"state of a stream worker: {path} was deleted, Kafka has it" for path in _delete_unused_states(data)]
    in_use = [
        f"{path.parent}: a stream worker uses it. Stop it and run the command again" for path in _list_state_locks(data)
    ]
    left = in_use + [f"{path} still holds it" for path in erasure.find_files_with_numbers(data, search)]
    stays = [*_describe_kept_ids(done.ids, not_searched), *_describe_kept_records(data, done.end_offsets, kafka)]
    return ErasureReport(lines, [*stays, *left], bool(left))


def _describe_kept_ids(ids: Mapping[tuple[str, str], int], not_searched: Iterable[str]) -> Iterator[str]:
    for (dataset, column), rows in sorted(ids.items()):
        yield f"{dataset}: {rows:,} rows have it as their {column}, by which they are counted"
    for digits in not_searched:
        yield (
            f"{digits}: not searched for, because an id or a number of another country may be written like it. If none "
            f"is, run the command again with --number {digits}"
        )


def _erase_from_spool(data: Path, search: NumberSearch) -> int:
    privacy = PayloadRedactor("mask", "drop")

    def mask_webhook(webhook: WebhookRecord) -> WebhookRecord:
        content_type = dict(webhook.headers).get(records.HEADER_CONTENT_TYPE, b"")
        if not search.is_in_body(webhook.body, content_type) and not search.is_in(content_type.decode("latin-1")):
            return webhook
        kept = privacy.redact_body(webhook.body, content_type)
        headers = dict(webhook.headers) | {records.HEADER_CONTENT_TYPE: kept.content_type}
        return webhook._replace(body=kept.body, headers=list(headers.items()))

    with closing(WebhookSpool(data, IngestSettings())) as spool:
        return spool.rewrite_webhooks(mask_webhook)


def _write_tombstones(kafka: KafkaSettings, keys: Iterable[tuple[int, str]]) -> None:
    """Write a tombstone for each message, durably."""
    try:
        with closing(KafkaProducer(**kafka.kafka_python_options(), acks="all")) as producer:
            sent = [producer.send(topics.MESSAGES, key=key.encode(), partition=number) for number, key in sorted(keys)]
            # After it, each record is written or has failed.
            producer.flush(timeout=_SEND_S)
            for each in sent:
                each.get(timeout=0)
    except (KafkaError, AssertionError) as error:
        msg = f"files were cleaned, but Kafka at {kafka.bootstrap} was not ({error}): run the command again"
        raise EraseError(msg) from error


def _find_end_offsets(
    data: Path, topic: str, ends: dict[PartitionLog, int], kafka: Callable[[], KafkaSettings]
) -> list[dict[str, Any]]:
    """Return the offsets in Kafka's present topic behind the newest affected records, by partition.

    Raises:
        KafkaException: Kafka does not answer.
    """
    found: dict[int, int] = {}
    topic_id = UNKNOWN_INCARNATION
    if list_incarnations_by_age(data, topic) != [UNKNOWN_INCARNATION]:
        ids = TopicIds(kafka()).read_ids([topic])
        if topic not in ids:
            return []
        topic_id = ids[topic]
    for log, end in ends.items():
        lost_from = find_first_lost_offsets(data, topic, log.partition, topic_id)
        first_lost = lost_from.get(log.incarnation)
        if log.incarnation == UNKNOWN_INCARNATION and not any(parse_topic_id(each) == topic_id for each in lost_from):
            # The files do not name their topic's incarnation. A comparison of records shows whether it is the present
            # one.
            with KafkaLogReader(kafka()) as reader:
                first_lost = locate_log_position(FolderStore(data), reader, topic, log.partition, topic_id).offset
        last = end if first_lost is None else min(end, first_lost)
        if last:
            found[log.partition] = max(found.get(log.partition, 0), last)
    return [{"topic": topic, "partition": number, "offset": offset} for number, offset in sorted(found.items())]


def _delete_unused_states(data: Path) -> Iterator[Path]:
    """Delete the local states that no worker uses, because their values cannot be searched; yield their folders."""
    for lock in _list_state_locks(data):
        with lock.open("rb+") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue
            shutil.rmtree(lock.parent)
            yield lock.parent


def _list_state_locks(data: Path) -> list[Path]:
    return sorted(data.glob("state/**/LOCK"))


def _describe_kept_records(
    data: Path, until: dict[PartitionLog, int], kafka: Callable[[], KafkaSettings]
) -> Iterator[str]:
    for topic in sorted({log.topic for log in until}):
        if topic == topics.ALERTS:
            yield f"{topic}: Kafka keeps the newest change of each alert, so until the alert changes again"
            continue
        days = f"{_TOPICS[topic].retention_days:g} days"
        # Kafka drops records of these topics by key, not by age.
        if _TOPICS[topic].cleanup == "compact":
            yield (
                f"{topic}: Kafka drops the old versions when it compacts the topic, after {days} at the "
                "latest or when a segment is full"
            )
            continue
        ends = {log: end for log, end in until.items() if log.topic == topic}
        try:
            partitions = _find_end_offsets(data, topic, ends, kafka)
        except (KafkaException, SmspulseError) as error:
            yield f"{topic}: Kafka may keep the records for {days}, and did not answer ({error})"
            continue
        # The topic of these records no longer exists.
        if not partitions:
            continue
        # Kafka's own tools log in to the embedded Kafka with it.
        path = client_properties_path(data)
        login = f" --command-config {path}" if path.exists() else ""
        wanted = json.dumps({"version": 1, "partitions": partitions})
        yield (
            f"{topic}: Kafka keeps the records for {days} by default. To drop them now, with all older "
            f"ones, which are landed: kafka-delete-records.sh{login} --offset-json-file FILE, with "
            f"this in it: {wanted}"
        )
