"""Expired days are dropped. Their counts and the start offsets of landers are kept."""

from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from landing import land_records
from restored import RestoredFolder
from warehouse_records import NOON, deadletter, raw, status, version

from core import topics
from gateway.statuses import build_status_table
from smspulse.cli.main import cli
from warehouse import catalog
from warehouse import rebuild as run
from warehouse.errors import OvertakenError, RebuildError, RetentionError
from warehouse.maintenance import atomic_replace
from warehouse.maintenance.compaction import compact_files
from warehouse.maintenance.retention import drop_expired_days
from warehouse.quality import append_check_results
from warehouse.reader import open_warehouse
from warehouse.settings import RetentionSettings
from warehouse.sink.range_metadata import read_landed_position

DAY_S = 86_400
NOW = datetime.fromtimestamp(NOON / 1000, UTC) + timedelta(days=20)
WEEK = timedelta(days=9)
FIRST = date(2026, 11, 24)


def at_day(day: int, sms_id: int) -> tuple[Any, Any]:
    """Land a delivered message of a day: its webhook and its version."""
    seconds = day * DAY_S
    made = version(
        day, sms_id, "delivered", seconds=seconds, version=2, last_status_id=7, total_s=0.0, recipient="+4915700000001",
        flags=["queue_missing", "device_missing", "network_missing"],
        observations=[[7, 1, 2, None, NOON + seconds * 1000, NOON + seconds * 1000]],
    )  # fmt: skip
    return raw(day, status(sms_id, 7), seconds=seconds), made


@pytest.fixture(scope="module")
def _rebuilt(tmp_path_factory: pytest.TempPathFactory) -> RestoredFolder:
    folder = tmp_path_factory.mktemp("rebuilt") / "data"
    folder.mkdir()
    catalog.publish_views(folder)
    for day in range(20):
        for record in at_day(day, 100 + day):
            land_records(folder, day, [record])
    land_records(folder, 0, [deadletter(0, b"{", "not_json", "sms.raw:0:0")])
    assert rebuild(folder).differing == 0
    compact_files(folder, NOW)
    return RestoredFolder(folder)


@pytest.fixture
def data(_rebuilt: RestoredFolder, tmp_path: Path) -> Iterator[Path]:
    """A message a day for 20 days, rebuilt."""
    with _rebuilt.restored(tmp_path / "data") as folder:
        yield folder


def rebuild(data: Path, **options: Any) -> run.RebuildResult:
    return run.rebuild_base(data, build_status_table({}), timedelta(days=1), **options)


def rows(data: Path, sql: str) -> list[tuple[Any, ...]]:
    with open_warehouse(data) as connection:
        return connection.execute(sql).fetchall()


def counts(data: Path) -> list[list[tuple[Any, ...]]]:
    marts = ("delivery_hourly", "delivery_daily", "delivery_by_device", "latency_hourly")
    received = rows(data, "SELECT day, webhooks, duplicates FROM webhook_quality ORDER BY ALL")
    return [received, *(rows(data, f"FROM {mart} ORDER BY ALL") for mart in marts)]


def settings(**days: int) -> RetentionSettings:
    return RetentionSettings(**days)  # type: ignore[arg-type]


def test_nothing_is_dropped_by_default(data: Path) -> None:
    assert drop_expired_days(data, RetentionSettings(), NOW + timedelta(days=9_999), WEEK) == {}
    assert rows(data, "SELECT count(*) FROM messages") == [(20,)]


def test_counts_are_kept_after_messages_and_log(data: Path) -> None:
    before = counts(data)
    done = drop_expired_days(
        data, settings(raw_days=10, messages_days=12, versions_days=1, deadletters_days=5), NOW, WEEK
    )
    found = {name: (len(days), min(days), max(days)) for name, days in done.items()}
    assert found == {
        "base": (8, FIRST, FIRST + timedelta(7)),
        "raw": (10, FIRST, FIRST + timedelta(9)),
        "messages": (18, FIRST, FIRST + timedelta(17)),
        "deadletters": (1, FIRST, FIRST),
    }
    assert counts(data) == before
    assert rows(data, "SELECT count(*), min(sms_id) FROM messages") == [(12, 108)]
    assert rows(data, "SELECT count(*), min(sms_id) FROM status_events") == [(10, 110)]
    assert drop_expired_days(data, settings(raw_days=10, messages_days=12), NOW, WEEK) == {}


def test_results_of_checks_have_their_own_retention(tmp_path: Path) -> None:
    for days in (9, 8, 1):
        append_check_results(tmp_path, NOW - timedelta(days), [{"expectation": "a", "success": True, "rows": []}])
    dropped = drop_expired_days(tmp_path, settings(quality_days=8), NOW, WEEK)
    assert dropped == {"quality": [(NOW - timedelta(9)).date()]}
    assert rows(tmp_path, "SELECT count(*) FROM quality_history") == [(2,)]


def test_a_rebuild_does_not_restore_dropped_days(data: Path) -> None:
    before = counts(data)
    drop_expired_days(data, settings(raw_days=10, messages_days=12), NOW, WEEK)
    messages = rows(data, "FROM messages ORDER BY ALL")
    for options in ({}, {"everything": True}):
        found = rebuild(data, **options)
        assert (found.differing, min(found.days) >= FIRST + timedelta(11)) == (0, True)
        assert (counts(data), rows(data, "FROM messages ORDER BY ALL")) == (before, messages)
    with pytest.raises(RebuildError, match="raw webhooks begin on 2026-12-05, 2026-12-04 cannot be rebuilt"):
        rebuild(data, day=FIRST + timedelta(10))


def test_landers_continue_at_their_offsets_after_everything_is_dropped(data: Path) -> None:
    late = NOW + timedelta(days=100)
    drop_expired_days(data, settings(raw_days=9, messages_days=9, versions_days=1, deadletters_days=1), late, WEEK)
    positions = [read_landed_position(data, topic, 0) for topic in (topics.RAW, topics.MESSAGES, topics.DEADLETTERS)]
    assert positions == [20, 20, 1]
    assert rows(data, "SELECT count(*) FROM raw_webhooks") == [(0,)]
    with pytest.raises(OvertakenError):
        land_records(data, 19, [at_day(19, 119)[0]])
    land_records(data, 20, [at_day(20, 120)[0]])
    assert read_landed_position(data, topics.RAW, 0) == 21


def test_without_a_rebuild_webhooks_and_versions_are_all_there_is(published: Path) -> None:
    for record in at_day(0, 1):
        land_records(published, 0, [record])
    assert drop_expired_days(published, settings(raw_days=9, messages_days=9, versions_days=1), NOW, WEEK) == {}


@pytest.mark.parametrize(
    ("days", "error"),
    [
        ({"raw_days": 8}, "raw_days is 8, but messages can change for 9 days"),
        ({"raw_days": 20, "messages_days": 10}, "messages_days needs raw_days of as many or fewer"),
        ({"messages_days": 10}, "messages_days needs raw_days of as many or fewer"),
    ],
)
def test_settings_that_would_lose_something_are_refused(data: Path, days: dict[str, int], error: str) -> None:
    with pytest.raises(RetentionError, match=error):
        drop_expired_days(data, settings(**days), NOW, WEEK)
    assert rows(data, "SELECT count(*) FROM messages") == [(20,)]


def test_a_run_that_is_killed_at_any_step_changes_no_count(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = counts(data)

    class Cut(BaseException):
        """A kill of the process."""

    exchange: Callable[..., None] = atomic_replace._exchange_folders
    cut = 0
    while True:
        left = iter(range(cut))

        def until_cut(*paths: Path, left: Any = left) -> None:
            if next(left, None) is None:
                raise Cut
            exchange(*paths)

        monkeypatch.setattr(atomic_replace, "_exchange_folders", until_cut)
        try:
            drop_expired_days(data, settings(raw_days=10, messages_days=12, versions_days=9), NOW, WEEK)
            break
        except Cut:
            assert counts(data) == before
        cut += 5
    assert cut >= 5
    assert counts(data) == before


def test_the_command_prints_the_dropped_days(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert CliRunner().invoke(cli, ["retain", "--data", str(data)]).output == "no day has expired\n"
    monkeypatch.setenv("SMSPULSE_RETAIN_DEADLETTERS_DAYS", "1")
    monkeypatch.setattr("smspulse.cli.warehouse.datetime", type("Then", (datetime,), {"now": lambda zone: NOW}))
    output = CliRunner().invoke(cli, ["retain", "--data", str(data)]).output
    assert output == "deadletters: 1 days dropped, 2026-11-24 to 2026-11-24\n"


def test_webhooks_of_a_restored_kafka_do_not_replace_the_counts_of_their_day(data: Path) -> None:
    again, _ = at_day(1, 101)
    other = raw(20, status(555, 7), seconds=DAY_S + 60)
    land_records(data, 20, [other])
    rebuild(data)
    compact_files(data, NOW)
    before = rows(data, "SELECT source, day, webhooks FROM webhook_quality ORDER BY ALL")
    assert (("acme", FIRST + timedelta(days=1), 2)) in before
    drop_expired_days(data, settings(raw_days=9), NOW, WEEK)
    land_records(data, 0, [again], incarnation="topic.1")
    compact_files(data, datetime.now(UTC) + timedelta(days=30))
    drop_expired_days(data, settings(raw_days=9), NOW, WEEK)
    assert rows(data, "SELECT source, day, webhooks FROM webhook_quality ORDER BY ALL") == before
