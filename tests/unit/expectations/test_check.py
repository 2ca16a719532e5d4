"""The suite on landed data: green on what is right, and each fault seen by the check that is there for it."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest
from warehouse_records import at, moment, raw, status, version

from expectations.check import Report, run_checks
from expectations.errors import MissingExtraError, UnreadableDataError
from expectations.settings import CheckSettings
from expectations.suites import checks
from gateway.errors import SmspulseError
from warehouse import landing, views

LATER = moment(60)
STATUSES = (1, 3, 2, 6)
SETTINGS = CheckSettings(max_unreadable_share=0.3)
MESSAGES = 4


def land(data: Path, *records: Any) -> None:
    landing.land(data, records[0].offset, records)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two files of webhooks and one of what the stream makes of them, in a folder that globs could trip over."""
    folder = tmp_path / "it's [odd]*"
    views.publish(folder)
    reports = [status(sms_id, code) for sms_id in range(MESSAGES) for code in STATUSES]
    records = [raw(offset, report, seconds=offset) for offset, report in enumerate(reports)]
    half = len(records) // 2
    land(folder, *records[:half])
    land(folder, *records[half:], raw(len(records), b"{", seconds=len(records)))
    delivered = {"ended_at": at(3), "last_seen_at": at(len(reports)), "delivered_at": at(3)}
    latencies = {"queue_s": 1.0, "device_s": 0.0, "network_s": 1.5, "total_s": 3.0}
    land(folder, *(version(n, n, "delivered", **delivered, **latencies) for n in range(MESSAGES)))
    return folder


def check(data: Path, settings: CheckSettings = SETTINGS) -> Report:
    return run_checks(data, settings, LATER)


def failed(report: Report) -> dict[str, str]:
    return {row.expectation: row.observed for row in report.rows if not row.success}


def test_right_data_passes_every_check(data: Path) -> None:
    report = check(data)
    assert failed(report) == {}
    assert report.exit_code == 0
    assert [row.expectation for row in report.rows] == [check.name for check in checks(SETTINGS)]
    vacuous = {row.expectation for row in report.rows if row.observed == "nothing to check"}
    assert vacuous == {"messages_up_to_date"}  # no report waits
    assert report.note.startswith("checked 17 webhooks and 4 versions of messages")


def test_a_copy_of_a_webhook_from_the_spool_is_no_fault(data: Path) -> None:
    record = raw(0, status(0, 1))
    land(data, record._replace(offset=17, headers=[*record.headers, ("spooled", b"1")]))
    assert failed(check(data)) == {}


def test_every_row_says_what_it_means_and_what_to_do(data: Path) -> None:
    for row in check(data).rows:
        assert len(row.meaning) > 20, row
        assert row.action.endswith("."), row
        assert row.expected, row


def test_an_empty_warehouse_is_green_and_says_so(tmp_path: Path) -> None:
    views.publish(tmp_path)
    report = check(tmp_path)
    assert (report.rows, report.exit_code) == ((), 0)
    assert "is empty" in report.note


def files(data: Path, dataset: str) -> list[Path]:
    return sorted((data / dataset).glob("date=2*/*.parquet"))


def lose_a_file(data: Path) -> None:
    land(data, raw(17, {"sms_id": 5, "type": "text", "body": "Hi"}, seconds=17))
    files(data, "raw")[1].unlink()


def copy_a_file(data: Path) -> None:
    shutil.copy(files(data, "raw")[0], data / "raw/date=1970-01-01/copy.parquet")


def double_a_version(data: Path) -> None:
    shutil.copy(files(data, "messages")[0], data / "messages/date=1970-01-01/copy.parquet")


def write_a_webhook_twice(data: Path) -> None:
    again = raw(0, status(0, 1))._replace(offset=17)
    land(data, again)


def bypass_ingest(data: Path) -> None:
    land(data, raw(17, status(0, 1))._replace(headers=[("source", b"acme")]))


def set_the_clock_ahead(data: Path) -> None:
    land(data, raw(17, status(0, 1), seconds=7200))


def garble(data: Path) -> None:
    land(data, *(raw(offset, b"<html>", seconds=18) for offset in range(17, 37)))


def stop_the_stream(data: Path) -> None:
    land(data, raw(17, status(99, 1), seconds=17, partition=1))


def change(**fields: Any) -> Callable[[Path], None]:
    def fault(data: Path) -> None:
        outcome = fields.pop("outcome", "delivered")
        land(data, version(MESSAGES, MESSAGES, outcome, **fields))

    return fault


def key_a_message_anew(data: Path) -> None:
    land(data, version(MESSAGES, MESSAGES)._replace(key=b"acme:0"))


def break_the_view(data: Path) -> None:
    with duckdb.connect(data / views.FILE) as connection:
        connection.execute(
            "CREATE OR REPLACE VIEW delivery_by_device AS SELECT source, device_id, "
            "5 / 4 AS delivered_per_attempted, 1 / 0 AS delivered_per_ended, 0.0 AS open_share FROM messages"
        )


FAULTS: dict[str, tuple[Callable[[Path], None], dict[str, str]]] = {
    "a lost file": (lose_a_file, {"raw_offsets_contiguous": "sms.raw partition 0: 9"}),
    "a copied file": (
        copy_a_file,
        {"raw_offsets_unique": "sms.raw partition 0: 8", "raw_ingest_ids_unique": "raw: 8"},
    ),
    "a doubled version": (double_a_version, {"messages_offsets_unique": "sms.messages partition 0: 4"}),
    "a webhook written twice": (write_a_webhook_twice, {"raw_ingest_ids_unique": "raw: 1"}),
    "a writer beside ingest": (bypass_ingest, {"raw_receipts_complete": "acme: 1"}),
    "a clock ahead": (set_the_clock_ahead, {"raw_clock_not_ahead": "raw: -7,140 s"}),
    "too many unreadable": (garble, {"raw_readable": "acme: 56.8%"}),
    "a stuck stream": (stop_the_stream, {"messages_up_to_date": "sms.raw partition 1: 43 s"}),
    "a duplicated key": (key_a_message_anew, {"messages_keys_unique": "messages: 1"}),
    "an unknown outcome": (change(outcome="lost"), {"messages_outcomes_known": "acme: lost"}),
    "an open end": (change(is_ended=False), {"messages_ends_clear": "acme: 1", "rates_in_range": "acme: 125.0%"}),
    "an end without time": (change(ended_at=None), {"messages_ends_clear": "acme: 1"}),
    "a negative latency": (change(network_s=-0.25), {"messages_latencies_not_negative": "acme: -0.25 s"}),
    "an end before the start": (change(ended_at=at(-3600)), {"messages_times_in_order": "acme: 1"}),
    "a shifted time zone": (change(ended_at=at(3600)), {"messages_times_in_order": "acme: 1"}),
    "no observation": (change(observations=[]), {"messages_observed": "acme: 1"}),
    "a broken view": (break_the_view, {"rates_in_range": "acme: inf%"}),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_seen_by_its_check_and_by_no_other(data: Path, name: str) -> None:
    inject, expected = FAULTS[name]
    inject(data)
    report = check(data, CheckSettings(max_unreadable_share=0.3, max_waiting_s=30))
    assert failed(report) == expected
    severities = {row.severity for row in report.rows if not row.success}
    assert report.exit_code == int("critical" in severities)


def test_stale_data_is_a_remark_and_no_failure(data: Path) -> None:
    report = check(data, CheckSettings(max_unreadable_share=0.3, max_quiet_s=30))
    assert failed(report) == {"raw_fresh": "raw: 44 s"}
    assert report.exit_code == 0


def test_an_expiry_may_lie_after_the_last_report(data: Path) -> None:
    land(data, version(MESSAGES, MESSAGES, "expired", ended_at=at(86_400)))
    assert failed(check(data)) == {}


def test_a_dead_letter_does_not_wait_for_the_stream(data: Path) -> None:
    stop_the_stream(data)
    headers = [*raw(17, b"", seconds=17).headers, ("reason", b"wrong_key"), ("origin", b"sms.raw:1:17")]
    land(data, raw(0, status(99, 1))._replace(topic="sms.deadletters", headers=headers))
    assert failed(check(data, CheckSettings(max_unreadable_share=0.3, max_waiting_s=30))) == {}


def test_many_faults_are_named_a_few_and_counted(data: Path) -> None:
    land(data, *(version(n, n, "lost", source=f"source-{n}") for n in range(MESSAGES, MESSAGES + 8)))
    observed = failed(check(data))["messages_outcomes_known"]
    assert observed.count("lost") == 5
    assert observed.endswith("and 3 more")


def test_a_torn_file_is_an_error_that_names_it_not_a_verdict(data: Path) -> None:
    torn = files(data, "raw")[0]
    torn.write_bytes(torn.read_bytes()[:100])
    with pytest.raises(UnreadableDataError, match=torn.name.replace("+", r"\+")) as raised:
        check(data)
    assert "\n" not in str(raised.value)


def test_a_folder_without_a_warehouse_is_an_error_not_a_verdict(tmp_path: Path) -> None:
    with pytest.raises(SmspulseError, match=str(tmp_path)):
        check(tmp_path)


def test_without_great_expectations_the_extra_is_named(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "great_expectations"]:
        monkeypatch.delitem(sys.modules, name)
    bare = [path for path in sys.path if not (Path(path) / "great_expectations").is_dir()]
    monkeypatch.setattr(sys, "path", bare)
    with pytest.raises(MissingExtraError, match=r"smspulse\[expectations\]"):
        check(data)


def test_checking_changes_no_file(data: Path) -> None:
    def state() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in data.rglob("*")}

    before = state()
    check(data)
    assert state() == before
    assert landing.sweep(data) == 0
