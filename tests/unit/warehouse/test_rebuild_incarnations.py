"""The rebuild across incarnations of the topics: lost and restored topics, and maintenance in any order."""

import random
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rebuilt_streams import DAY, SENT_MESSAGE, Stream, rebuild, rows
from warehouse_records import at, status, version

from core import topics
from gateway.number_search import NumberSearch
from warehouse import catalog
from warehouse.landed_files import find_newest_file, list_incarnations, list_incarnations_by_age
from warehouse.maintenance.compaction import compact_files
from warehouse.maintenance.erasure import erase_from_files
from warehouse.maintenance.retention import drop_expired_days
from warehouse.partition_log import PartitionLog
from warehouse.settings import RetentionSettings
from warehouse.sink.range_metadata import RecordIdentity, read_landed_position, read_last_identity

pytestmark = pytest.mark.usefixtures("published_views")


@pytest.fixture
def data(published: Path) -> Path:
    return published


EMPTY: tuple[dict[bytes, bytes | None], dict[str, int]] = ({}, {topics.RAW: 0, topics.MESSAGES: 0})


def break_last_version(stream: Stream, sms_id: int, seconds: float) -> None:
    """Land a version of a message that the stream cannot have written."""
    stream.land(
        topics.MESSAGES, [version(0, sms_id, "not_sent", seconds=seconds, version=20, last_seen_at=at(seconds))]
    )


def test_messages_lost_with_sms_messages_are_complete_again_and_errors_are_still_detected(data: Path) -> None:
    stream = Stream(data)
    stream.restore(EMPTY, raw="raw", messages="first")
    stream.report(*SENT_MESSAGE)
    stream.replace(topics.MESSAGES, "second")
    stream.report((9, status(1, 7)), (9, status(2, 7)))
    stream.settle(DAY)
    found = rebuild(data, everything=True)
    assert (found.repaired, found.differing) == (1, 0)
    assert rows(data, "SELECT outcome FROM messages WHERE sms_id = 1") == [("delivered",)]
    break_last_version(stream, 2, 9)
    stream.settle(DAY + 60)
    found = rebuild(data, everything=True)
    assert (found.repaired, found.differing) == (1, 1)


def test_of_a_restored_kafka_only_messages_with_lost_records_are_repaired(data: Path) -> None:
    stream = Stream(data)
    stream.restore(EMPTY, raw="raw", messages="messages")
    stream.report(*SENT_MESSAGE, (6, status(2, 1)))
    copy = stream.copy()
    stream.report((7, status(2, 6)), (7, status(3, 6)))
    stream.restore(copy, raw="raw.1", messages="messages.1")
    stream.report((9, status(1, 7)), (9, status(2, 7)), (9, status(3, 7)))
    stream.settle(DAY)
    found = rebuild(data, everything=True)
    assert (found.repaired, found.differing) == (2, 0)
    break_last_version(stream, 1, 0)
    stream.settle(DAY + 60)
    for _ in range(2):
        found = rebuild(data, everything=True)
        assert (found.repaired, found.differing) == (2, 1)
        compact_files(data, datetime.now(UTC) + timedelta(days=2))


def test_errors_are_detected_in_a_kafka_that_follows_the_in_memory_broker(data: Path) -> None:
    stream = Stream(data)
    stream.restore(EMPTY, raw="raw", messages="messages")
    stream.report(*SENT_MESSAGE)
    kafka = stream.copy()
    stream.restore(EMPTY, raw="memory-1", messages="memory-1")
    stream.report((7, status(2, 6)), (8, status(1, 6)))
    stream.restore(kafka, raw="raw", messages="messages")
    stream.report((9, status(2, 7)), (10, status(3, 7)))
    stream.settle(DAY)
    found = rebuild(data, everything=True)
    assert (found.repaired, found.differing) == (2, 0)
    break_last_version(stream, 3, 10)
    stream.settle(DAY + 60)
    found = rebuild(data, everything=True)
    assert (found.repaired, found.differing) == (2, 1)


@pytest.fixture(scope="module")
def of_many_incarnations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of an old release, of its topic afterwards, which was cut twice, and of the in-memory broker. Read-only."""
    data = tmp_path_factory.mktemp("incarnations")
    catalog.publish_views(data)
    stream = Stream(data)
    stream.report(*SENT_MESSAGE, (6, status(2, 1)))
    kept = stream.copy()
    stream.restore(kept, raw="topic", messages="messages")
    for sms_id in range(10, 14):
        stream.report((20, status(sms_id, 6)), (21, status(sms_id, 7)))
    stream.restore(kept, raw="topic.1", messages="messages.1")
    for sms_id in range(20, 24):
        stream.report((30, status(sms_id, 6)), (31, status(sms_id, 7)))
    kafka = stream.copy()
    stream.restore(EMPTY, raw="memory-1", messages="memory-1")
    stream.report((40, status(2, 6)), (41, status(30, 6)), (42, status(30, 7)))
    stream.restore(kafka, raw="topic.2", messages="messages.2")
    stream.report((50, status(1, 7)), (51, status(2, 7)))
    stream.settle(DAY)
    stream.settle(2 * DAY)
    return data


def run_maintenance(data: Path, step: str) -> None:
    """Run one step of maintenance, a few days later."""
    now = datetime.fromtimestamp(at(9 * DAY) / 1000, UTC)
    if step in {"compact", "retain"}:
        compact_files(data, max(now, datetime.now(UTC) + timedelta(days=2)))
    if step == "rebuild":
        assert rebuild(data, everything=True).differing == 0
    elif step == "erase":
        erase_from_files(data, NumberSearch(("+4915700000001",)))
    elif step == "retain":  # only days whose totals are in the rollups
        drop_expired_days(data, RetentionSettings(versions_days=8, raw_days=8), now, timedelta(days=8))


def totals_of(data: Path) -> list[list[tuple[Any, ...]]]:
    """Return the totals of messages and webhooks, and the remaining messages."""
    totals = "SELECT source, day, attempted, ended, delivered FROM delivery_daily ORDER BY ALL"
    ends = "SELECT sms_id, outcome, last_seen_at FROM messages ORDER BY ALL"
    webhooks = "SELECT source, day, webhooks, status_reports, duplicates FROM webhook_quality ORDER BY ALL"
    return [rows(data, sql) for sql in (totals, ends, webhooks)]


@pytest.mark.parametrize("seed", range(2))
def test_maintenance_in_any_order_changes_nothing_of_many_incarnations(
    of_many_incarnations: Path, tmp_path: Path, seed: int
) -> None:
    data = tmp_path / "data"
    shutil.copytree(of_many_incarnations, data)
    order = list_incarnations_by_age(data, topics.MESSAGES)
    assert order == ["", "messages", "messages.1", "memory-1", "messages.2"]
    logs = [PartitionLog(topics.RAW, 0, each) for each in list_incarnations(data, topics.RAW, 0)]
    ends = {log: (read_landed_position(data, *log), last_landed(data, log)) for log in logs}
    run_maintenance(data, "rebuild")
    before = totals_of(data)
    assert {row[0]: row[1] for row in before[1]}.items() >= {1: "delivered", 2: "delivered", 30: "delivered"}.items()
    steps = ["compact", "rebuild", "erase", "retain", "rebuild", "erase"]
    random.Random(seed).shuffle(steps)  # noqa: S311 - repeatable on purpose
    for number, step in enumerate(steps):
        run_maintenance(data, step)
        assert totals_of(data) == before, steps[: number + 1]
        assert list_incarnations_by_age(data, topics.MESSAGES) == order, steps[: number + 1]
        assert {log: (read_landed_position(data, *log), last_landed(data, log)) for log in logs} == ends


def last_landed(data: Path, log: PartitionLog) -> RecordIdentity | None:
    path = find_newest_file(data / "raw", log)
    return path and read_last_identity(path, path)
