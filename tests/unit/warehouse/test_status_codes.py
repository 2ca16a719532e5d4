"""Which status is unknown has one answer, in the views, the alerts, the checks, the page and on the command line."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from landing import land_records
from warehouse_records import at, raw, status, version

from expectations.runner import run_checks
from expectations.settings import CheckSettings
from gateway.statuses import STATUSES, Outcome, build_status_table, parse_status_meanings
from smspulse.alerting.rules import WarehouseRules
from smspulse.cli.main import cli
from smspulse.dashboard.queries import PageSnapshot
from smspulse.runtime.message_history import find_message, format_history
from warehouse import catalog, status_codes
from warehouse.errors import DamagedFileError
from warehouse.maintenance import retention
from warehouse.maintenance.compaction import compact_files
from warehouse.reader import open_warehouse, query
from warehouse.rebuild import rebuild_base
from warehouse.settings import RetentionSettings
from warehouse.sink.parquet_files import FolderStore

SETTING = "SMSPULSE_STREAM_STATUS_MEANINGS"
NEXT_DAY = datetime(2026, 11, 25, 9, tzinfo=UTC)


@pytest.fixture
def data(published: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Forty reports: half of them of status 42, one in eight of status 43."""
    monkeypatch.delenv(SETTING, raising=False)
    ids = [42, 42, 7, 43, 42, 42, 7, 7]
    land_records(published, 0, [raw(n, status(n, ids[n % 8]), seconds=-n) for n in range(40)])
    return published


def unknown(data: Path) -> Any:
    with open_warehouse(data) as connection:
        return connection.execute("SELECT sum(unknown)::INT, sum(webhooks)::INT FROM webhook_quality").fetchone()


def alerting(data: Path) -> dict[str, int]:
    found = {each.alert.kind: each.alert.errors for each in WarehouseRules(data).read_findings(at(1)) if each.is_bad}
    return found.get("webhook_quality", {})


def codes_are_known(data: Path) -> bool:
    now = datetime(2026, 11, 24, 12, 0, 1, tzinfo=UTC)
    statuses = status_codes.load_known_statuses(data)
    report = run_checks(data, CheckSettings(), now, suites=("raw",), statuses=statuses)
    (row,) = [row for row in report.rows if row.expectation == "raw_codes_known"]
    return row.success


@pytest.mark.parametrize("is_counted", [False, True], ids=["at query time", "by compaction"])
def test_view_and_alert_agree_and_a_new_meaning_reaches_days_that_were_counted(
    data: Path, monkeypatch: pytest.MonkeyPatch, is_counted: bool
) -> None:
    if is_counted:
        compact_files(data, NEXT_DAY)
        assert list(data.glob("webhooks/date=2026-11-24/0-*"))
    assert (unknown(data), alerting(data)) == ((25, 40), {"42": 20, "43": 5})
    monkeypatch.setenv(SETTING, "42=not_sent")
    catalog.publish_views(data)
    assert (unknown(data), alerting(data)) == ((5, 40), {})  # five are too few for an alert
    monkeypatch.setenv(SETTING, "42=not_sent,43=delivered")
    catalog.publish_views(data)
    assert (unknown(data), alerting(data)) == ((0, 40), {})
    monkeypatch.setenv(SETTING, "")
    catalog.publish_views(data)
    assert (unknown(data), alerting(data)) == ((25, 40), {"42": 20, "43": 5})


def test_a_new_meaning_reaches_days_whose_webhooks_are_not_kept_any_more(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compact_files(data, NEXT_DAY)
    rebuild_base(data, STATUSES, timedelta(days=1))
    retention.drop_expired_days(data, RetentionSettings(raw_days=1), NEXT_DAY + timedelta(days=9), timedelta())
    with open_warehouse(data) as connection:
        assert connection.execute("SELECT count(*) FROM raw_webhooks").fetchone() == (0,)
    assert unknown(data) == (25, 40)
    monkeypatch.setenv(SETTING, "42=not_sent")
    catalog.publish_views(data)
    assert unknown(data) == (5, 40)


def test_a_process_without_the_setting_goes_by_what_is_recorded(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meanings = build_status_table(parse_status_meanings("42=not_sent"))
    status_codes.write_status_codes(data, meanings)  # as the lander does when it starts
    catalog.publish_views(data)
    compact_files(data, NEXT_DAY)
    assert (unknown(data), alerting(data)) == ((5, 40), {})
    assert dict(status_codes.load_known_statuses(data)) == dict(meanings)
    status_codes.write_status_codes(data, STATUSES)
    assert unknown(data) == (25, 40)


def test_a_lander_that_starts_records_the_setting_even_where_it_is_not_set(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SETTING, "42=not_sent")
    FolderStore(data).prepare_store()
    monkeypatch.delenv(SETTING)
    compact_files(data, NEXT_DAY)
    assert unknown(data) == (5, 40)
    FolderStore(data).prepare_store()
    assert unknown(data) == (25, 40)


def test_check_page_and_message_go_by_the_same_table(data: Path) -> None:
    observations = [[42, 1, 2, None, at(0), at(0)]]
    failed = version(0, 1, "not_sent", last_status_id=42, failure_class="other", observations=observations)
    land_records(data, 0, [failed])
    numbers = PageSnapshot(data, dict)
    for meanings, in_words in (("", "undocumented status 42"), ("42=not_sent,43=delivered", "not_sent")):
        status_codes.write_status_codes(data, build_status_table(parse_status_meanings(meanings)))
        assert codes_are_known(data) == bool(meanings)
        message = find_message(data, "acme:1")
        assert message is not None
        assert f"failed: {in_words}" in format_history(message)
        numbers.refresh()
        assert (42 in numbers.statuses) == bool(meanings)


def test_check_payload_knows_configured_statuses(monkeypatch: pytest.MonkeyPatch) -> None:
    body = b'{"sms_id": 1, "status_id": 42, "channel_id": 1, "device_id": 2, "sendto": "+4915752982212"}'
    for setting, complains in (("", True), ("42=not_sent", False)):
        monkeypatch.setenv(SETTING, setting)
        found = CliRunner().invoke(cli, ["check", "payload", "-"], input=body)
        assert ("✗ warning raw_codes_known" in found.output) == complains, found.output


def test_the_file_is_written_only_when_it_changes_and_damage_is_named(data: Path) -> None:
    path = data / "status_codes" / "date=1970-01-01" / "status_codes.parquet"
    before = path.stat().st_ino
    catalog.publish_views(data)
    assert path.stat().st_ino == before
    rows = duckdb.sql(f"SELECT status_id, outcome, is_documented FROM '{path}' ORDER BY 1").fetchall()  # noqa: S608 - a path of ours
    assert rows == [(id_, each.outcome.value, True) for id_, each in sorted(STATUSES.items())]
    status_codes.write_status_codes(data, build_status_table({42: Outcome.NOT_SENT}))
    assert path.stat().st_ino != before
    path.write_bytes(b"PAR1")
    with pytest.raises(DamagedFileError, match=r"status_codes\.parquet"):
        status_codes.load_known_statuses(data)
    status_codes.write_status_codes(data, STATUSES)
    assert status_codes.load_known_statuses(data) == STATUSES


def test_the_view_has_each_status_with_its_stage_and_advice(data: Path) -> None:
    catalog.publish_views(data)
    found = query(data, "FROM statuses ORDER BY status_id").set_index("status_id")
    assert found.index.tolist() == sorted(STATUSES)
    stages = ["pending", "accepted", "queued", "sent", "end"]
    assert found.loc[[1, 2, 3, 6, 7], "stage"].tolist() == stages
    assert found.loc[10, ["outcome", "failure_class", "retry"]].tolist() == ["not_sent", "no_service", "after_fix"]
    assert (found["likely_cause"] != "").all()
    assert (found["what_to_do"] != "").all()


def test_a_failed_message_is_shown_with_its_cause_and_what_to_do(data: Path) -> None:
    catalog.publish_views(data)
    land_records(data, 0, [version(0, 1, "not_sent", last_status_id=12, failure_class="radio_off")])
    message = find_message(data, "acme:1")
    assert message
    assert (message["likely_cause"], message["retry"]) == (STATUSES[12].likely_cause, "yes")
    lines = format_history(message).splitlines()
    assert lines[1:3] == [f"Likely cause: {STATUSES[12].likely_cause}", f"What to do: {STATUSES[12].what_to_do}"]


def test_a_file_of_an_earlier_release_gets_the_texts_of_this_one(data: Path) -> None:
    meanings = build_status_table({42: Outcome.NOT_SENT})
    catalog.publish_views(data)
    path = data / "status_codes" / "date=1970-01-01" / "status_codes.parquet"
    table = pq.read_table(path)
    columns = ["status_id", "name", "outcome", "failure_class", "is_documented"]
    values = [[42], ["not_sent"], ["not_sent"], ["other"], [False]]
    further = pa.table(dict(zip(columns, values, strict=True)), schema=table.select(columns).schema)
    pq.write_table(pa.concat_tables([table.select(columns), further]).replace_schema_metadata(None), path)
    catalog.publish_views(data)
    assert status_codes.load_known_statuses(data) == meanings
    assert query(data, "SELECT count(*) AS n FROM statuses WHERE what_to_do <> ''")["n"].tolist() == [len(meanings)]
