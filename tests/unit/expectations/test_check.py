"""The suites on simulated days: valid data passes, and faults are detected. `make bench-checks` injects all faults."""

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd
import pytest
from click.testing import CliRunner
from data_faults import COULD_NOT_RUN, FAULTS, ODD_HOUR, change, edit, files
from days import weeks
from landing import land_records
from warehouse_records import version

from core import topics
from core.atomic_file import delete_orphaned_files
from core.errors import SmspulseError
from expectations import SUITE_NAMES
from expectations.catalogue import build_checks
from expectations.errors import MissingExtraError, UnreadableDataError
from expectations.measurement import MeasurementSession
from expectations.quality_check import CheckReport, CheckResult, Severity
from expectations.runner import LANDED_SUITES, run_checks
from expectations.settings import CheckSettings
from gateway.number_search import NumberSearch
from gateway.statuses import STATUSES
from smspulse.cli.main import cli
from warehouse.file_names import TEMPORARY_FOLDER
from warehouse.maintenance.compaction import compact_files
from warehouse.maintenance.erasure import erase_from_files
from warehouse.maintenance.retention import drop_expired_days
from warehouse.quality import append_check_results
from warehouse.reader import open_warehouse, retry_after_merge
from warehouse.rebuild import rebuild_base
from warehouse.settings import RetentionSettings
from warehouse.sink.range_metadata import read_landed_position

ROOT = Path(__file__).parents[3]
END = datetime(2026, 11, 25, tzinfo=UTC)
CHECKS = [check for check in build_checks(CheckSettings()) if check.suite in LANDED_SUITES]
TOGETHER = (
    ("a shifted time zone of receipts", "a lander that stopped", "a lost file of messages"),
    (
        *("a lost file", "a lost partition", "one row in place of another", "a column of another type"),
        *("a stuck device", "negative latencies", "dead letters without a reason", "a view that leaves devices out"),
    ),
)
"""Groups of faults that do not hide each other, with one run for each group. `bench/checks.py` injects all faults."""


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two weeks of a gateway, in a folder whose name has special characters of globs and partition keys."""
    folder = tmp_path_factory.mktemp("world") / "source=prod" / "it's [odd]*"
    assert weeks(folder, seed=1, messages=240) == END
    return folder.rename(folder.with_name("right"))


@pytest.fixture
def data(right: Path) -> Iterator[Path]:
    """A copy in the folder for which its views were published."""
    folder = right.with_name("it's [odd]*")
    shutil.copytree(right, folder)
    yield folder
    shutil.rmtree(folder)


def failed(report: CheckReport) -> dict[str, str]:
    return {row.expectation: row.observed for row in report.rows if not row.success}


def test_valid_data_passes_every_check(data: Path) -> None:
    def state() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in data.rglob("*")}

    before = state()
    report = run_checks(data, CheckSettings(), END)
    assert failed(report) == {}
    assert report.exit_code == 0
    assert [row.expectation for row in report.rows] == [check.name for check in CHECKS]
    assert report.note.startswith("checked ")
    for row in report.rows:
        assert len(row.meaning) > 20, row
        assert row.action.endswith("."), row
        assert row.expected, row
    assert state() == before
    assert delete_orphaned_files(data / TEMPORARY_FOLDER) == 0


@pytest.mark.parametrize("names", TOGETHER, ids=len)
def test_faults_are_detected(data: Path, names: tuple[str, ...]) -> None:
    for name in names:
        FAULTS[name].inject(data)
    seen_by = {check for name in names for check in FAULTS[name].seen_by}
    suites = {check.suite for check in CHECKS if check.name in seen_by}
    report = run_checks(data, CheckSettings(min_expected=5), END, suites=suites)
    assert seen_by <= failed(report).keys()
    assert report.exit_code == 1


def test_warnings_do_not_fail_the_run() -> None:
    def report(severity: Severity) -> CheckReport:
        return CheckReport((CheckResult("a", "raw", severity, False, "", "", "", ""),), "", END)

    assert [report(severity).exit_code for severity in ("info", "warning", "critical")] == [0, 0, 1]


def test_the_table_of_faults_is_current() -> None:
    lines = (ROOT / "docs" / "faults.md").read_text().splitlines()
    table = [line.strip("| ").split(" | ")[:2] for line in lines if line.startswith("| ")][1:]
    severities = {check.name: check.severity for check in CHECKS} | {COULD_NOT_RUN: "exit code 2"}
    assert table == [
        [name, ", ".join(f"`{check}` ({severities[check]})" for check in fault.seen_by)]
        for name, fault in FAULTS.items()
    ], "make bench-checks"
    assert len(table) >= 40


def test_each_check_detects_a_fault() -> None:
    seen_by = {check for fault in FAULTS.values() for check in fault.seen_by}
    assert seen_by == {check.name for check in CHECKS} | {COULD_NOT_RUN}


def test_faulty_rows_are_named(data: Path) -> None:
    edit("raw", "body = NULL", '"offset" = (SELECT min("offset") FROM t)', count=1)(data)
    edit("messages", "network_s = -1", '"offset" = (SELECT min("offset") FROM t WHERE network_s > 0)', count=1)(data)
    suites = ("raw", "messages")
    rows = {row.expectation: row for row in run_checks(data, CheckSettings(), END, suites=suites).rows}
    offset = int(files(data, "raw")[0].stem.split("+")[2])
    assert rows["raw_bodies_there"].rows == (f"sms.raw:0:{offset}",)
    with open_warehouse(data) as connection:
        found = connection.execute("SELECT message_key FROM messages WHERE network_s < 0").fetchall()
    assert [rows["messages_latencies_not_negative"].rows] == found


def test_hours_whose_counts_differ_from_the_raw_webhooks_are_named_with_both_counts(data: Path) -> None:
    FAULTS["deliveries of an hour made failures"].inject(data)
    with open_warehouse(data) as connection:
        counts = "count(*) FILTER (outcome = 'delivered'), count(*) FILTER (is_ended), count(*)"
        sql = f"SELECT {counts} FROM messages WHERE date_trunc('hour', first_seen_at) = TIMESTAMPTZ '{ODD_HOUR}'"  # noqa: S608
        delivered, ended, attempted = connection.execute(f"{sql} AND outcome <> 'incoming'").fetchall()[0]
    rows = {row.expectation: row for row in run_checks(data, CheckSettings(), END, suites=("delivery",)).rows}
    found = rows["delivery_from_raw"]
    hour = "acme 2026-11-24 13:00"
    lacking = int(found.observed.removeprefix(f"{hour}: "))
    assert lacking > 0
    counts = f"{delivered} delivered, {ended} ended of {attempted}"
    assert found.rows == (f"{hour}: {counts}; in raw {delivered + lacking}, {ended} of {attempted}",)
    assert rows["delivery_adds_up"].success


def test_a_lag_of_the_lander_in_one_partition_is_no_fault_of_the_stream(data: Path) -> None:
    newest = max(path for path in files(data, "raw") if path.stem.split("+")[1] == "1")
    change(newest, "SELECT * FROM t WHERE received_at < (SELECT max(received_at) FROM t) - INTERVAL 1 HOUR")
    found = failed(run_checks(data, CheckSettings(), END))
    assert found.keys() & {"delivery_from_raw", "messages_in_log", "messages_complete", "deadletters_in_log"} == set()


def test_suites_and_a_period_can_be_selected(data: Path) -> None:
    shutil.rmtree(data / "raw" / "date=2026-11-20")
    report = run_checks(data, CheckSettings(), END, suites=("raw",))
    assert set(failed(report)) == {"raw_offsets_contiguous", "raw_files_contiguous"}
    assert {row.dataset for row in report.rows} == {"raw"}
    assert failed(run_checks(data, CheckSettings(), END, since=END - timedelta(days=2))) == {}


def test_of_many_faults_some_are_named_and_the_rest_is_counted(data: Path) -> None:
    edit("messages", "outcome = 'lost'; source = 'source-' || sms_id % 8", "outcome = 'delivered'")(data)
    report = run_checks(data, CheckSettings(), END, suites=("messages",))
    observed = failed(report)["messages_outcomes_known"]
    assert observed.count("lost") == 5
    assert observed.endswith("and 3 more")


def test_an_empty_warehouse_passes_with_a_note(published: Path) -> None:
    report = run_checks(published, CheckSettings())
    assert (report.rows, report.exit_code) == ((), 0)
    assert "is empty" in report.note


def test_a_period_without_data_is_not_reported_as_an_empty_warehouse(data: Path) -> None:
    assert "has nothing since 2027" in run_checks(data, CheckSettings(), END, since=END + timedelta(days=90)).note


def test_keys_with_the_same_hash_are_different_messages(data: Path) -> None:
    same_hash = (7_890_000_000_348, 7_870_000_000_948)
    with open_warehouse(data) as connection:
        hashes = connection.execute("SELECT hash('acme:' || unnest(?))", [same_hash]).fetchall()
    assert hashes[0] == hashes[1]
    position = read_landed_position(data, topics.MESSAGES, 0)
    land_records(data, position, [version(position + n, sms_id) for n, sms_id in enumerate(same_hash)])
    assert "messages_keys_unique" not in failed(run_checks(data, CheckSettings(), END, suites=("messages",)))


def test_a_truncated_file_is_an_error_with_its_name_and_no_result(data: Path) -> None:
    torn = files(data, "raw")[0]
    torn.write_bytes(torn.read_bytes()[:100])
    with pytest.raises(UnreadableDataError, match=torn.name.replace("+", r"\+")) as raised:
        run_checks(data, CheckSettings(), END)
    assert "\n" not in str(raised.value)


def test_a_folder_without_a_warehouse_is_an_error_and_no_result(tmp_path: Path) -> None:
    with pytest.raises(SmspulseError, match=str(tmp_path)):
        run_checks(tmp_path, CheckSettings())


def test_without_great_expectations_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "great_expectations"]:
        monkeypatch.delitem(sys.modules, name)
    bare = [path for path in sys.path if not (Path(path) / "great_expectations").is_dir()]
    monkeypatch.setattr(sys, "path", bare)
    with pytest.raises(MissingExtraError, match=r"smspulse\[expectations\]"):
        run_checks(tmp_path, CheckSettings())


def test_the_command_prints_three_formats_and_stores_the_results(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[CheckReport] = []

    def once(*arguments: Any, **options: Any) -> CheckReport:
        made[:] = made or [run_checks(*arguments, **options)]
        return replace(made[0], checked_at=datetime.now(UTC))

    monkeypatch.setattr("expectations.runner.run_checks", once)
    FAULTS["no body"].inject(data)
    run = ["check", "--data", str(data), "--suite", "raw"]
    shown = CliRunner().invoke(cli, [*run, "--docs"])
    assert shown.exit_code == 1
    for part in ("✗ critical raw_bodies_there", "acme: ", "sms.raw:0:", "means ", "do "):
        assert part in shown.output
    page = (data / "quality" / "index.html").read_text()
    for check in CHECKS:
        assert (f"<td>{check.name}<br>" in page) == (check.suite == "raw")
    assert page.count("✗ critical") == 2  # in the summary, and in its suite
    assert not re.search(r"<script|<link|<img|url\(|https?:|@import", page)

    rows = json.loads(CliRunner().invoke(cli, [*run, "--format", "json"]).stdout)["expectations"]
    root = ElementTree.fromstring(CliRunner().invoke(cli, [*run, "--format", "junit"]).stdout)  # noqa: S314 - ours
    failures = [case.get("name") for case in root.iter("testcase") if case.find("failure") is not None]
    assert failures == [row["expectation"] for row in rows if not row["success"] and row["severity"] == "critical"]
    assert "raw_bodies_there" in failures
    with open_warehouse(data) as connection:
        kept = connection.execute("SELECT count(*), count(DISTINCT checked_at) FROM quality_history").fetchall()
        assert kept == [(3 * len(rows), 3)]
        now = connection.execute("SELECT success, rows FROM quality WHERE expectation = 'raw_bodies_there'").fetchall()
        assert now == [(False, rows[[row["expectation"] for row in rows].index("raw_bodies_there")]["rows"])]


def test_quality_has_the_last_result_and_the_start_of_a_failure(tmp_path: Path) -> None:
    for hour, success in ((22, False), (23, True), (24, False), (25, False)):
        append_check_results(
            tmp_path, END - timedelta(hours=25 - hour), [{"expectation": "a", "success": success, "rows": []}]
        )
    with open_warehouse(tmp_path) as connection:
        found = connection.execute("SELECT expectation, success, checked_at, failing_since FROM quality").fetchall()
        assert found == [("a", False, END, END - timedelta(hours=1))]
        assert connection.execute("SELECT count(*) FROM quality_history").fetchall() == [(4,)]


def test_data_that_lands_during_a_check_is_no_fault(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = MeasurementSession.measure_suite

    def landing_between(run: MeasurementSession, suite: str) -> pd.DataFrame:
        if suite == "delivery":
            position = read_landed_position(data, topics.MESSAGES, 0)
            land_records(data, position, [version(position, 1, "delivered", seconds=12 * 3600 - 1)])
        return measure(run, suite)

    monkeypatch.setattr(MeasurementSession, "measure_suite", landing_between)
    assert failed(run_checks(data, CheckSettings(), END, suites=("messages", "delivery"))) == {}


class LandsMeanwhile:
    """Lands one more file before each read of a check. Its files are those of the last quarter of the last day."""

    def __init__(self, data: Path, scratch: Path) -> None:
        newest = [files for log in ("raw", "messages", "deadletters") for files in last_files(data, log)]
        # In the order in which they landed: copies of files keep their times.
        newest.sort(key=lambda path: path.stat().st_mtime_ns)
        self._waiting = [(path.rename(scratch / path.name), path) for path in newest]
        self.landed = 0

    def __call__(self, read: Callable[[], Any]) -> Any:
        if self.landed < len(self._waiting):
            waiting, path = self._waiting[self.landed]
            waiting.rename(path)
            self.landed += 1
        return retry_after_merge(read)

    def clock(self) -> datetime:
        return END if self.landed else BEFORE_THE_LAST_FILES


BEFORE_THE_LAST_FILES = END - timedelta(hours=6)


def last_files(data: Path, dataset: str) -> Iterator[Path]:
    """Yield the newest file of each partition."""
    yield from {path.name.split("+")[1]: path for path in files(data, dataset)}.values()


@pytest.mark.parametrize("first_read", [1, 7])
def test_files_that_land_between_the_reads_of_a_check_are_no_fault(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first_read: int
) -> None:
    landing = LandsMeanwhile(data, tmp_path)
    reads: list[Callable[[], Any]] = []

    def read_then_land(read: Callable[[], Any]) -> Any:
        reads.append(read)
        return landing(read) if len(reads) >= first_read else retry_after_merge(read)

    for module in ("warehouse.reader", "expectations.measurement"):
        monkeypatch.setattr(f"{module}.retry_after_merge", read_then_land)
    report = run_checks(data, CheckSettings(), BEFORE_THE_LAST_FILES, clock=landing.clock)
    assert failed(report) == {}
    assert landing.landed >= 8


def test_maintenance_causes_and_hides_no_fault(data: Path) -> None:
    later = max(END, datetime.now(UTC)) + timedelta(days=2)
    assert rebuild_base(data, STATUSES, timedelta(days=1)).differing == 0
    with open_warehouse(data) as connection:
        sql = "SELECT mode(address) FROM raw_webhooks WHERE kind = '{}' AND received_at > ?"
        numbers = [
            connection.execute(sql.format(k), [END - timedelta(days=1)]).fetchall() for k in ("status", "incoming")
        ]
    assert erase_from_files(data, NumberSearch(tuple(number for ((number,),) in numbers))).rows["raw"] > 1
    assert rebuild_base(data, STATUSES, timedelta(days=1)).differing == 0  # counts again, by the remaining numbers
    assert compact_files(data, later).files_after > 20
    days = {"raw_days": 4, "versions_days": 3, "messages_days": 9, "deadletters_days": 4}
    dropped = drop_expired_days(data, RetentionSettings(**days), END, timedelta(days=2))  # type: ignore[arg-type]
    assert dropped.keys() == {"base", "raw", "messages", "deadletters"}
    assert failed(run_checks(data, CheckSettings(), END)) == {}
    for dataset in ("raw", "messages"):
        next(data.glob(f"{dataset}/date={END.date() - timedelta(days=2)}/*+1+*")).unlink()
    seen = failed(run_checks(data, CheckSettings(), END, suites=("raw", "messages")))
    assert seen.keys() >= {"raw_offsets_contiguous", "raw_files_contiguous", "messages_files_contiguous"}


def test_every_suite_has_checks() -> None:
    assert tuple(dict.fromkeys(check.suite for check in build_checks(CheckSettings()))) == SUITE_NAMES
