"""Lifecycles from the log agree with the stream's row for row, and what became different is found and mended."""

import random
import shutil
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from zlib import crc32

import orjson
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from landing import land_records
from warehouse_records import MadeRecord, at, moment, raw, status, version

from core import topics
from core.records import MAX_OBSERVATIONS
from gateway import payloads
from gateway.number_search import NumberSearch
from gateway.statuses import build_status_table, parse_status_meanings
from smspulse.cli.main import cli
from smspulse.simulator.scenarios import generate_scenarios
from streams import lifecycle
from streams.lifecycle import EXPIRE_AFTER_MS, LifecycleRules
from streams.message_processor import MessageProcessor
from warehouse import catalog, lifecycle_comparison, lifecycle_sql, views
from warehouse import rebuild as run
from warehouse.errors import RebuildError, WarehouseError
from warehouse.landed_files import find_newest_file, list_incarnations, list_incarnations_by_age
from warehouse.maintenance import atomic_replace
from warehouse.maintenance.compaction import compact_files
from warehouse.maintenance.erasure import erase_from_files
from warehouse.maintenance.retention import RetentionSettings, drop_expired_days
from warehouse.partition_log import PartitionLog
from warehouse.reader import open_warehouse
from warehouse.schemas import SCHEMAS
from warehouse.sink.range_metadata import RecordIdentity, read_landed_position, read_last_identity
from warehouse.sql_text import load_sql

DAY = 86_400
TABLE = build_status_table(parse_status_meanings("55=not_sent,56=delivered"))
TODAY = date(2026, 11, 24)


READ = {
    *("raw_webhooks", "live_messages", "messages_by_day", "messages", "changes"),
    *("delivery_hourly", "delivery_daily", "webhook_quality", "rebuild_differences"),
}
"""The views that are read here, and those that they read."""


@pytest.fixture(autouse=True)
def _published_views(monkeypatch: pytest.MonkeyPatch) -> None:
    """Publish those alone: each rebuild publishes, and to make all views took most of its time."""
    monkeypatch.setattr(views, "VIEWS", tuple(name for name in views.VIEWS if name in READ))


@pytest.fixture
def data(published: Path) -> Path:
    return published


class Stream:
    """The stream's fold over a store in memory, and landers beside it."""

    def __init__(self, data: Path, partition: int = 0, max_observations: int = MAX_OBSERVATIONS) -> None:
        self._data, self._partition = data, partition
        self._store: dict[bytes, bytes | None] = {}
        self._ends = {topics.RAW: 0, topics.MESSAGES: 0}
        self._incarnations = {topics.RAW: "", topics.MESSAGES: ""}
        self._fold = MessageProcessor(
            LifecycleRules(TABLE), lambda key: self._store[key] or b"" if key in self._store else None, UTC, 0,
            EXPIRE_AFTER_MS, 7 * EXPIRE_AFTER_MS, max_observations=max_observations,
        )  # fmt: skip

    def hear(self, *told: tuple[float, Any], source: str = "acme") -> list[MadeRecord]:
        """Land bodies by the seconds at which they are received; return the records."""
        records = [
            raw(self._ends[topics.RAW] + n, body, source=source, seconds=seconds, partition=self._partition)._replace(
                key=_key(source, body)
            )
            for n, (seconds, body) in enumerate(told)
        ]
        return self.land(topics.RAW, records)

    def fold(self, records: Sequence[MadeRecord], seconds: float = 0) -> None:
        self._write(self._fold.process(records).states, max((r.timestamp for r in records), default=at(seconds)))  # type: ignore[arg-type]

    def tell(self, *told: tuple[float, Any]) -> None:
        self.fold(self.hear(*told))

    def on_timer(self, seconds: float) -> None:
        keys = [key for key, state in self._store.items() if state]
        self._write(self._fold.on_timer(keys, at(seconds)).states, at(seconds))

    def later(self, seconds: float) -> None:
        """Let another message's way end so late that all before it is settled."""
        self.tell((seconds, status(10**9 * (self._partition + 1) + round(seconds), 7)))

    def copy(self) -> tuple[dict[bytes, bytes | None], dict[str, int]]:
        """Return a copy of what Kafka holds: the state, and the ends of the logs."""
        return self._store.copy(), self._ends.copy()

    def restore(self, copy: tuple[dict[bytes, bytes | None], dict[str, int]], **incarnations: str) -> None:
        """Go on from a copy, in new incarnations of `raw` and `messages`."""
        store, ends = copy
        self._store, self._ends = store.copy(), ends.copy()
        self._incarnations = {topics.RAW: incarnations["raw"], topics.MESSAGES: incarnations["messages"]}
        self._fold.clear_cache()

    def replace(self, topic: str, incarnation: str) -> None:
        """Begin another topic of that name; with sms.messages, the stream loses its state."""
        self._ends[topic], self._incarnations[topic] = 0, incarnation
        if topic == topics.MESSAGES:
            self._store.clear()
            self._fold.clear_cache()

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
    return run.rebuild_base(data, TABLE, timedelta(milliseconds=EXPIRE_AFTER_MS), **options)


def rows(data: Path, sql: str) -> list[tuple[Any, ...]]:
    with open_warehouse(data) as connection:
        return connection.execute(sql).fetchall()


def messages(data: Path) -> list[tuple[Any, ...]]:
    return rows(data, "SELECT * EXCLUDE (recorded_at) FROM messages ORDER BY ALL")


def dense(seed: int, count: int) -> list[tuple[float, Any]]:
    """Make reports that fall on each other: every status, place and spelling, within some milliseconds or days."""
    rng = random.Random(seed)  # noqa: S311 - repeatable on purpose
    told = []
    for sms_id in range(count):
        spread = rng.choice([0.02, 5, 3 * DAY])
        statuses = [1, 2, 3, 5, 6, 7, 8, 9, 10, 1, 2, 6, 55, 56, 77, 100]
        devices, times = [None, 8001, "8002"], [None, "2026-11-24 11:00:00", {"date": "2026-11-24 11:00:00.5"}, "soon"]
        if rng.random() < 0.5:  # like most: of one phone, without retries
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
            told.append((rng.uniform(0, spread), body))
            if rng.random() < 0.1:
                told.append((told[-1][0] + rng.choice([0, 1]), body))
    rng.shuffle(told)
    return told


def simulated(seed: int, count: int) -> list[tuple[float, Any]]:
    """Make the simulator's webhooks, with all that it knows to go wrong."""
    told = []
    for number, story in enumerate(generate_scenarios(seed, count)):
        seconds = number * 2.0
        for webhook in story.webhooks:
            seconds += webhook.delay_s
            told.append((seconds, webhook.body))
    return sorted(told, key=lambda each: each[0])


HISTORIES: dict[str, Callable[[], list[tuple[float, Any]]]] = {
    "dense": lambda: dense(5, 800),
    "simulated": lambda: simulated(3, 800),
}


def stream_of(
    data: Path, history: list[tuple[float, Any]], partitions: int = 2, max_observations: int = MAX_OBSERVATIONS
) -> None:
    for partition in range(partitions):
        stream = Stream(data, partition, max_observations)
        mine = [(s, body) for s, body in history if crc32(_key("", body) or b"") % partitions == partition]
        for cut in range(0, len(mine), 700):
            stream.tell(*mine[cut : cut + 700])
        stream.on_timer(20 * DAY)
        stream.later(20 * DAY)


@pytest.mark.parametrize("name", HISTORIES)
def test_stream_and_log_agree_row_for_row(data: Path, name: str) -> None:
    stream_of(data, HISTORIES[name]())
    before = messages(data)
    found = rebuild(data)
    assert (found.differing, found.repaired) == (0, 0)
    assert found.messages == len(before) > 750
    assert messages(data) == before
    assert_base_files_say_what_the_stream_says(data)


def assert_base_files_say_what_the_stream_says(data: Path) -> None:
    """Not by the comparison that the rebuild runs: by the base files alone, field by field."""
    columns = ", ".join(name for name in SCHEMAS["base"].names if name != "recorded_at")
    base, streamed = "dataset('base')", "dataset('messages')"
    order = 'row_number() OVER (PARTITION BY message_key ORDER BY version DESC, "offset" DESC) = 1'
    newest = f"SELECT * FROM {streamed} WHERE NOT is_forgotten QUALIFY {order}"  # noqa: S608 - names of ours
    for one, other in ((base, f"({newest})"), (f"({newest})", base)):
        assert rows(data, f"SELECT {columns} FROM {one} EXCEPT SELECT {columns} FROM {other}") == []  # noqa: S608


@pytest.mark.parametrize("seed", [11, 12])
@pytest.mark.parametrize("limit", [1, 4])
def test_stream_and_log_agree_on_messages_with_more_reports_than_they_hold(data: Path, seed: int, limit: int) -> None:
    stream_of(data, dense(seed, 200), 1, limit)
    found = rebuild(data, max_observations=limit)
    assert (found.differing, found.repaired) == (0, 0)
    observed = dict(rows(data, "SELECT len(observations), count(*) FROM messages GROUP BY ALL"))
    assert max(observed) == limit
    assert observed[limit] > 50
    assert_base_files_say_what_the_stream_says(data)
    assert rebuild(data, everything=True).differing > 50  # with the usual limit


MULTI_ATTEMPT, SIMPLE, SUMMARY = "lifecycle_multi_attempt", "lifecycle_simple", "message_summary"


def change_sql(monkeypatch: pytest.MonkeyPatch, file: str, right: str, wrong: str) -> None:
    """Replace a text in a file of the lifecycle's SQL."""
    assert right in load_sql("lifecycle", file)

    def load_changed_sql(*path: str) -> str:
        return load_sql(*path).replace(right, wrong) if path == ("lifecycle", file) else load_sql(*path)

    for module in (lifecycle_sql, lifecycle_comparison):
        monkeypatch.setattr(module, "load_sql", load_changed_sql)


EXCESS_MUTATIONS = {
    "the last observations are held": ("excess", "ORDER BY first_position", "ORDER BY first_position DESC"),
    "those received first are held": (
        "excess",
        "min(position) AS first_position",
        "min(reported_at) AS first_position",
    ),
    "those reported again last are held": ("excess", "min(position)", "max(position)"),
    "one more is held": ("excess", "> getvariable('max_observations')\n", "> getvariable('max_observations') + 1\n"),
}


@pytest.mark.parametrize("name", EXCESS_MUTATIONS)
def test_an_error_in_which_observations_are_held_is_caught(
    data: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    file, right, wrong = EXCESS_MUTATIONS[name]
    stream_of(data, dense(13, 120), 1, 4)
    change_sql(monkeypatch, file, right, wrong)
    assert rebuild(data, max_observations=4).differing > 0


MUTATIONS = {
    "a step behind a failure begins an attempt": (
        MULTI_ATTEMPT,
        "min(stretch) OVER (PARTITION BY message, status_id) < stretch",
        "stretch > 0",
    ),
    "each repeated step begins an attempt": (
        MULTI_ATTEMPT,
        "GROUP BY message, stretch",
        "GROUP BY message, stretch, status_id",
    ),
    "attempts begin disorder": (MULTI_ATTEMPT, " AND NOT is_restart", ""),
    "the first end wins": (
        MULTI_ATTEMPT,
        "arg_max(status_id, place) AS winner",
        "arg_min(status_id, place) AS winner",
    ),
    "an end reported again wins": (
        MULTI_ATTEMPT,
        "min(place) AS place, min(first_at)",
        "max(place) AS place, min(first_at)",
    ),
    "an end is when it was reported again": (MULTI_ATTEMPT, "place, min(first_at)", "place, max(first_at)"),
    "latencies of all attempts": (
        MULTI_ATTEMPT,
        "attempt = coalesce(decisive, 1) AND status_id = 2",
        "status_id = 2",
    ),
    "no order within a millisecond": (
        MULTI_ATTEMPT,
        "first_at, coalesce(rank, -1)",
        "first_at, -coalesce(rank, -1)",
    ),
    "contradictions across attempts": (
        MULTI_ATTEMPT,
        "(PARTITION BY message, attempt) <>",
        "(PARTITION BY message) <>",
    ),
    "the last recipient": (SUMMARY, "min(recipient)", "max(recipient)"),
    "a change of phone is plain": (SUMMARY, "min(hash(", "max(hash("),
    "another time of sending is plain": (SUMMARY, "said_at = max(sent_at)", "true"),
    "a status with and without a time of sending is plain": (SUMMARY, "(steps >> 6)", "0"),
    "an unknown status is plain": (SUMMARY, "(1 << 5) | (1 << 11)", "0"),
    "two ends are plain": (SUMMARY, "winner = max(", "winner <= max("),
    "an overtaken report is in order": (SIMPLE, "handed_at > ended_at", "false"),
    "plain reports of a millisecond are in no order": (SIMPLE, "'nth': nth", "'nth': -nth"),
    "plain observations are as documented": (
        "lifecycle_simple",
        "WHEN reordered THEN list_select",
        "WHEN false THEN list_select",
    ),
    "a time of sending is of all reports": (SIMPLE, "steps & 8 > 0", "true"),
    "a plain message has no duplicates": (SIMPLE, "handed_until > handed_at", "false"),
    "plain messages end undelivered": (SIMPLE, "winner = 7", "winner = 8"),
    "nothing expires": ("lifecycle", "<= getvariable('horizon')", "> getvariable('horizon')"),
    "missing steps are no flag": ("lifecycle", "'network_missing'", "NULL"),
}


@pytest.fixture(scope="module")
def landed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A warehouse in which stream and log agree."""
    folder = tmp_path_factory.mktemp("landed")
    catalog.publish_views(folder)
    stream_of(folder, [*dense(7, 150), *simulated(3, 100)], 1)
    assert rebuild(folder).differing == 0
    return folder


@pytest.mark.parametrize("name", MUTATIONS)
def test_an_error_in_the_second_implementation_is_caught(
    landed: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    file, right, wrong = MUTATIONS[name]
    change_sql(monkeypatch, file, right, wrong)
    assert rebuild(landed, everything=True).differing > 0


def test_observations_may_come_in_any_order(landed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change_sql(monkeypatch, MULTI_ATTEMPT, "places = range(1, observed + 1)", "false")
    assert rebuild(landed, everything=True).differing == 0


WAY = [(0.0, status(1, 1)), (1.0, status(1, 3)), (2.0, status(1, 2)), (5.0, status(1, 6))]


@pytest.mark.parametrize("lands", ["earlier release", "this release"])
@pytest.mark.parametrize("streams", ["earlier release", "this release"])
def test_stream_and_log_agree_on_long_addresses_whichever_release_took_them(
    data: Path, monkeypatch: pytest.MonkeyPatch, lands: str, streams: str
) -> None:
    stream, address = Stream(data), "+" + "4" * 300
    bodies = [status(n, step, sendto=address if n < 3 else "+4915700000001") for n in range(5) for step in (1, 6)]
    with monkeypatch.context() as patch:
        if lands == "earlier release":
            patch.setattr(payloads, "MAX_NAME_LENGTH", 10**6)
        records = stream.hear(*enumerate(bodies))
    with monkeypatch.context() as patch:
        if streams == "earlier release":
            patch.setattr(payloads, "MAX_NAME_LENGTH", 10**6)
            patch.setattr(lifecycle, "MAX_NAME_LENGTH", 10**6)
        stream.fold(records)
    stream.tell((60, status(0, 7, sendto=address)), (61, status(1, 6, sendto=address)), (62, status(3, 7)))
    with monkeypatch.context() as patch:
        if streams == "earlier release":
            patch.setattr(lifecycle, "MAX_NAME_LENGTH", 10**6)
        stream.on_timer(2 * DAY)  # 2 expires, and is told of no more
    stream.later(3 * DAY)
    found = rebuild(data)
    assert (found.differing, found.messages) == (0, 6)
    held = rows(data, "SELECT sms_id, recipient, outcome FROM messages WHERE sms_id < 10 ORDER BY sms_id")
    assert [row[:2] for row in held] == [(0, None), (1, None), (2, None), *((n, "+4915700000001") for n in (3, 4))]
    assert [row[2] for row in held] == ["delivered", "expired", "expired", "delivered", "expired"]


def test_a_closed_day_is_left_alone_until_something_new_is_heard(data: Path) -> None:
    stream = Stream(data)
    stream.tell(*WAY, (9, status(1, 7)))
    stream.later(2 * DAY)
    assert rebuild(data).days == {TODAY, TODAY + timedelta(2)}
    (file,) = data.glob(f"base/date={TODAY}/0-*")
    before = file.stat().st_ino
    stream.tell((2 * DAY, status(2, 1)))
    stream.later(3 * DAY)
    assert TODAY not in rebuild(data).days
    assert file.stat().st_ino == before
    stream.tell((3 * DAY, status(1, 8)))
    assert rows(data, "SELECT outcome FROM messages WHERE sms_id = 1") == [("undelivered",)]
    stream.later(4 * DAY)
    assert TODAY in rebuild(data).days
    assert rows(data, "SELECT outcome, contradicted FROM messages WHERE sms_id = 1") == [("undelivered", True)]
    assert rows(data, "SELECT version - len(observations) FROM messages WHERE sms_id = 1") == [(1,)]


def test_files_of_a_closed_day_become_one_and_are_replaced_when_there_is_news(data: Path) -> None:
    streams = [Stream(data, partition) for partition in (0, 1)]
    for number, stream in enumerate(streams):
        stream.tell((0, status(number, 7)), (DAY, status(10 + number, 7)))
        stream.later(3 * DAY)
    rebuild(data)
    before = messages(data)

    def files(day: int) -> list[str]:
        found = data.glob(f"base/date={TODAY + timedelta(day)}/*.parquet")
        return sorted(path.name.partition("-")[0] for path in found)

    def codecs() -> set[str]:
        written = (pq.read_metadata(path) for path in data.glob("base/date=2*/*.parquet"))
        return {file.row_group(0).column(0).compression for file in written}

    assert (files(0), files(1), files(3)) == (["0", "1"], ["0", "1"], ["0", "1"])
    assert codecs() == {"LZ4"}  # for look-ups, merged or not
    compact_files(data, datetime.now(UTC) + timedelta(days=9))
    assert codecs() == {"LZ4"}
    assert (files(0), files(1), files(3)) == (["all"], ["all"], ["0", "1"])
    assert messages(data) == before
    assert TODAY not in rebuild(data).days
    assert messages(data) == before
    streams[1].tell((3 * DAY + 9, status(11, 8)))
    for stream in streams:
        stream.later(5 * DAY)
    assert min(rebuild(data).days) == TODAY + timedelta(1)
    assert (files(0), files(1)) == (["all"], ["0", "1"])
    assert rows(data, "SELECT count(*), count(DISTINCT message_key) FROM messages") == [(8, 8)]
    assert rows(data, "SELECT outcome FROM messages WHERE sms_id = 11") == [("undelivered",)]


def test_an_open_message_keeps_its_day_open_until_it_expires(data: Path) -> None:
    stream = Stream(data)
    stream.tell(*WAY)
    stream.later(DAY - 60)
    assert TODAY in rebuild(data).open_days
    assert rows(data, "SELECT outcome FROM messages WHERE sms_id = 1") == [("sent",)]
    stream.on_timer(2 * DAY)
    stream.later(3 * DAY)
    found = rebuild(data)
    assert (found.differing, TODAY in found.open_days) == (0, False)
    assert rows(data, "SELECT outcome, ended_at FROM messages WHERE sms_id = 1") == [("expired", moment(5 + DAY))]


def test_what_was_reported_after_the_stream_forgot_is_whole_again(data: Path) -> None:
    stream = Stream(data)
    stream.tell(*WAY)
    for seconds in (DAY + 60, 9 * DAY):
        stream.on_timer(seconds)
    stream.tell((9 * DAY, status(1, 7)))
    stream.later(10 * DAY)
    assert rows(data, "SELECT outcome FROM messages WHERE sms_id = 1") == [("expired",)]
    found = rebuild(data)
    assert (found.repaired, found.differing) == (1, 0)
    now = "SELECT outcome, delivered_at, network_s, flags FROM messages WHERE sms_id = 1"
    assert rows(data, now) == [("delivered", moment(9 * DAY), 9 * DAY - 5.0, [])]
    stream.tell((10 * DAY, status(1, 7)))  # the stream still has but the end
    assert [row[0] for row in rows(data, now)] == ["delivered"]


EMPTY: tuple[dict[bytes, bytes | None], dict[str, int]] = ({}, {topics.RAW: 0, topics.MESSAGES: 0})


def break_last_version(stream: Stream, sms_id: int, seconds: float) -> None:
    """Land a version of a message that the stream cannot have made."""
    stream.land(
        topics.MESSAGES, [version(0, sms_id, "not_sent", seconds=seconds, version=20, last_seen_at=at(seconds))]
    )


def test_messages_that_the_stream_lost_with_sms_messages_are_whole_again_and_errors_are_still_found(data: Path) -> None:
    stream = Stream(data)
    stream.restore(EMPTY, raw="raw", messages="first")
    stream.tell(*WAY)
    stream.replace(topics.MESSAGES, "second")
    stream.tell((9, status(1, 7)), (9, status(2, 7)))
    stream.later(DAY)
    found = rebuild(data, everything=True)
    assert (found.repaired, found.differing) == (1, 0)
    assert rows(data, "SELECT outcome FROM messages WHERE sms_id = 1") == [("delivered",)]
    break_last_version(stream, 2, 9)
    stream.later(DAY + 60)
    found = rebuild(data, everything=True)
    assert (found.repaired, found.differing) == (1, 1)


def test_of_a_restored_kafka_only_messages_with_lost_records_are_whole_again(data: Path) -> None:
    stream = Stream(data)
    stream.restore(EMPTY, raw="raw", messages="messages")
    stream.tell(*WAY, (6, status(2, 1)))
    copy = stream.copy()
    stream.tell((7, status(2, 6)), (7, status(3, 6)))
    stream.restore(copy, raw="raw.1", messages="messages.1")
    stream.tell((9, status(1, 7)), (9, status(2, 7)), (9, status(3, 7)))
    stream.later(DAY)
    found = rebuild(data, everything=True)
    assert (found.repaired, found.differing) == (2, 0)
    break_last_version(stream, 1, 0)
    stream.later(DAY + 60)
    for _ in range(2):
        found = rebuild(data, everything=True)
        assert (found.repaired, found.differing) == (2, 1)
        compact_files(data, datetime.now(UTC) + timedelta(days=2))


def test_errors_are_found_in_a_kafka_that_came_back_after_the_in_memory_broker(data: Path) -> None:
    stream = Stream(data)
    stream.restore(EMPTY, raw="raw", messages="messages")
    stream.tell(*WAY)
    kafka = stream.copy()
    stream.restore(EMPTY, raw="memory-1", messages="memory-1")
    stream.tell((7, status(2, 6)), (8, status(1, 6)))
    stream.restore(kafka, raw="raw", messages="messages")
    stream.tell((9, status(2, 7)), (10, status(3, 7)))
    stream.later(DAY)
    found = rebuild(data, everything=True)
    assert (found.repaired, found.differing) == (2, 0)
    break_last_version(stream, 3, 10)
    stream.later(DAY + 60)
    found = rebuild(data, everything=True)
    assert (found.repaired, found.differing) == (2, 1)


@pytest.fixture(scope="module")
def of_many_incarnations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of an old release, of its topic afterwards, cut twice, and of the in-memory broker; not to be changed."""
    data = tmp_path_factory.mktemp("incarnations")
    catalog.publish_views(data)
    stream = Stream(data)
    stream.tell(*WAY, (6, status(2, 1)))
    kept = stream.copy()
    stream.restore(kept, raw="topic", messages="messages")
    for sms_id in range(10, 14):
        stream.tell((20, status(sms_id, 6)), (21, status(sms_id, 7)))
    stream.restore(kept, raw="topic.1", messages="messages.1")
    for sms_id in range(20, 24):
        stream.tell((30, status(sms_id, 6)), (31, status(sms_id, 7)))
    kafka = stream.copy()
    stream.restore(EMPTY, raw="memory-1", messages="memory-1")
    stream.tell((40, status(2, 6)), (41, status(30, 6)), (42, status(30, 7)))
    stream.restore(kafka, raw="topic.2", messages="messages.2")
    stream.tell((50, status(1, 7)), (51, status(2, 7)))
    stream.later(DAY)
    stream.later(2 * DAY)
    return data


def maintained(data: Path, step: str) -> None:
    """Do one step of maintenance, a few days later."""
    now = datetime.fromtimestamp(at(9 * DAY) / 1000, UTC)
    if step in {"compact", "retain"}:
        compact_files(data, max(now, datetime.now(UTC) + timedelta(days=2)))
    if step == "rebuild":
        assert rebuild(data, everything=True).differing == 0
    elif step == "erase":
        erase_from_files(data, NumberSearch(("+4915700000001",)))
    elif step == "retain":  # of what was counted
        drop_expired_days(data, RetentionSettings(versions_days=8, raw_days=8), now, timedelta(days=8))


def counted(data: Path) -> list[list[tuple[Any, ...]]]:
    """Return what is counted of messages and webhooks, and what is left of them."""
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
    maintained(data, "rebuild")
    before = counted(data)
    assert {row[0]: row[1] for row in before[1]}.items() >= {1: "delivered", 2: "delivered", 30: "delivered"}.items()
    steps = ["compact", "rebuild", "erase", "retain", "rebuild", "erase"]
    random.Random(seed).shuffle(steps)  # noqa: S311 - repeatable on purpose
    for number, step in enumerate(steps):
        maintained(data, step)
        assert counted(data) == before, steps[: number + 1]
        assert list_incarnations_by_age(data, topics.MESSAGES) == order, steps[: number + 1]
        assert {log: (read_landed_position(data, *log), last_landed(data, log)) for log in logs} == ends


def last_landed(data: Path, log: PartitionLog) -> RecordIdentity | None:
    path = find_newest_file(data / "raw", log)
    return path and read_last_identity(path, path)


def test_what_is_written_after_a_run_counts_also_where_it_adds_no_fact(data: Path) -> None:
    stream = Stream(data)
    stream.tell(*WAY, (6, status(1, 6)))
    stream.later(DAY / 4)
    rebuild(data)
    stream.tell((7, status(1, 6)), (7, status(1, 6, sendto="+4915")))
    latest = "SELECT recipient, last_seen_at, version FROM messages WHERE sms_id = 1"
    assert rows(data, latest) == [("+4915", moment(7), 6)]
    stream.later(DAY / 3)
    assert rebuild(data).differing == 0
    assert rows(data, latest) == [("+4915", moment(7), 6)]


def test_a_difference_is_listed_by_message_and_field_and_the_log_holds(data: Path) -> None:
    stream = Stream(data)
    stream.hear(*WAY, (9, status(1, 7)))
    stream.hear((0, status(2, 7)), (0, status(3, 7)))
    wrong = {"observations": [[7, 1, 2, None, at(0), at(0)]], "last_status_id": 7, "total_s": 0.0, "version": 2}
    stream.land(topics.MESSAGES, [
        version(0, 1, "sent", version=6, observations=[[6, 1, 2, None, at(0), at(9)]] * 5, last_seen_at=at(9)),
        version(0, 2, "delivered", **wrong | {"device_id": 99}),
        version(0, 4, "sent"),
    ])  # fmt: skip
    stream.later(DAY)
    assert rebuild(data).differing == 4
    listed = "SELECT sms_id, field, streamed, rebuilt FROM rebuild_differences WHERE sms_id > 1 ORDER BY ALL"
    assert rows(data, listed) == [
        (2, "device_id", "99", "1"),
        (2, "flags", "[]", "[queue_missing, device_missing, network_missing]"),
        (3, "message", None, "there"),
        (4, "message", "there", None),
    ]
    fields = "SELECT field FROM rebuild_differences WHERE sms_id = 1"
    assert {"outcome", "is_ended", "delivered_at", "observations"} <= {field for (field,) in rows(data, fields)}
    assert rows(data, "SELECT sms_id, outcome, device_id FROM messages WHERE sms_id < 9 ORDER BY 1") == [
        (1, "delivered", 1), (2, "delivered", 1), (3, "delivered", 1), (4, "sent", 1),
    ]  # fmt: skip


def test_neither_lagging_stream_nor_lagging_lander_is_a_difference(data: Path) -> None:
    stream = Stream(data)
    heard = stream.hear(*WAY)
    assert rebuild(data).differing == 0  # the stream has told nothing yet
    stream.fold(heard)
    records = [raw(0, status(5, 7), seconds=30)._replace(key=b"acme:5")]
    stream.fold(records)  # of raw, this was not landed yet
    found = rebuild(data)
    assert (found.differing, found.unsettled, TODAY in found.open_days) == (0, 1, True)
    assert rows(data, "SELECT sms_id, outcome FROM messages ORDER BY 1") == [(1, "sent"), (5, "delivered")]
    stream.land(topics.RAW, records)
    stream.tell((60, status(1, 7)))
    stream.later(DAY)
    found = rebuild(data)
    assert (found.differing, found.unsettled) == (0, 0)


def test_a_webhook_that_is_in_the_log_twice_is_one_and_one_delivered_again_a_duplicate(data: Path) -> None:
    stream = Stream(data)
    heard = stream.hear(*WAY)
    stream.fold(heard)
    stream.fold(stream.land(topics.RAW, heard[:1]))
    stream.later(DAY / 4)
    assert rebuild(data).differing == 0
    assert rows(data, "SELECT flags FROM messages WHERE sms_id = 1") == [([],)]
    stream.tell((7, status(1, 6)))
    stream.later(DAY / 2)
    assert rebuild(data).differing == 0
    assert rows(data, "SELECT flags FROM messages WHERE sms_id = 1") == [(["duplicated"],)]


def test_one_day_alone_is_rebuilt(data: Path) -> None:
    stream = Stream(data)
    stream.tell(*WAY, (DAY, status(2, 7)), (DAY + 1, status(1, 7)))
    stream.later(3 * DAY)
    before = messages(data)
    assert rebuild(data, day=TODAY + timedelta(1)).messages == 1
    assert [path.parent.name for path in data.glob("base/*/0-*.parquet")] == ["date=2026-11-25"]
    assert messages(data) == before
    with pytest.raises(RebuildError, match="raw webhooks begin on 2026-11-24"):
        rebuild(data, day=TODAY - timedelta(1))


def test_nothing_is_rebuilt_of_nothing(data: Path) -> None:
    assert rebuild(data) == run.RebuildResult(set(), set())
    assert messages(data) == []


def test_a_run_that_is_cut_off_anywhere_leaves_every_number_as_it_was(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Stream(data)
    stream.tell(*WAY, (DAY, status(2, 7)))
    stream.later(3 * DAY)
    rebuild(data)
    stream.tell((DAY + 1, status(1, 7)), (3 * DAY, status(3, 9)))
    before = messages(data)
    exchange, cut, left = atomic_replace._exchange_folders, 0, 0

    class Cut(BaseException):
        """As if the process had been killed."""

    def until_cut(*paths: Path) -> None:
        nonlocal left
        if not left:
            raise Cut
        left -= 1
        exchange(*paths)

    monkeypatch.setattr(atomic_replace, "_exchange_folders", until_cut)
    while True:
        left = cut
        try:
            rebuild(data, everything=True)
            break
        except Cut:
            assert messages(data) == before
        cut += 1
    assert cut >= 1
    assert messages(data) == before


def test_damage_is_one_clear_line(data: Path) -> None:
    (data / "base" / "covered.json").write_text("{")
    with pytest.raises(WarehouseError, match=r"covered\.json is damaged: remove it"):
        rebuild(data)
    (data / "base" / "covered.json").unlink()
    (data / "raw" / "date=1970-01-01" / "torn.parquet").write_bytes(b"PAR1")
    with pytest.raises(RebuildError, match=r"nothing was changed: .*torn\.parquet"):
        rebuild(data)


def test_the_command_says_what_it_found_and_ends_with_1_when_something_differs(data: Path) -> None:
    stream = Stream(data)
    stream.tell(*WAY, (9, status(1, 7)))
    stream.later(DAY)
    command = ["rebuild", "--data", str(data)]
    right = CliRunner().invoke(cli, command)
    assert right.exit_code == 0
    assert "2 messages of 2 days from 6 reports" in right.output
    stream.hear((DAY, status(2, 7)))
    stream.later(2 * DAY)
    wrong = CliRunner().invoke(cli, [*command, "--all"])
    assert wrong.exit_code == 1
    assert "1 differ" in wrong.output
    assert rows(data, "SELECT sms_id, field FROM rebuild_differences") == [(2, "message")]
    assert CliRunner().invoke(cli, [*command, "--all", "--date", "2026-11-24"]).exit_code == 2
