"""Findings of the alert rules in the warehouse and in the pipeline."""

import random
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from landed_messages import DAY, HOUR, MINUTE, LandedMessages, by_day
from landing import land_records
from warehouse_records import at, deadletter, raw, status

from core.alerts import Alert, decode_alert, encode_alert
from core.kafka_settings import KafkaSettings
from core.records import WebhookRecord
from ingest.settings import IngestSettings
from ingest.spool import SpoolState, WebhookSpool
from smspulse.alerting.alert_state import AlertState
from smspulse.alerting.evaluator import AlertStateMachine, RuleEvaluator
from smspulse.alerting.rules import (
    SQL_RULE_KINDS,
    WarehouseRules,
    lag_finding,
    spool_findings,
)
from smspulse.processes.children import find_free_port
from warehouse.quality import append_check_results


def failing_alerts(warehouse: WarehouseRules, seconds: float) -> dict[str, Alert]:
    failing = [each.alert for each in warehouse.read_findings(at(seconds)) if each.is_bad]
    assert [decode_alert(encode_alert(alert)) for alert in failing] == failing
    return {alert.id: alert for alert in failing}


def test_a_device_is_silent_at_unusual_times_and_not_in_its_nights_and_weekends(published: Path) -> None:
    messages = LandedMessages()
    for seconds in by_day([day for day in range(28) if (8 - day) % 7 not in {5, 6}], 10 * MINUTE):
        messages.add(seconds)
        messages.add(seconds, device_id=2)
        if seconds < 0:
            messages.add(seconds, device_id=3)  # device 3 stops at noon
    warehouse = messages.land(published)
    assert failing_alerts(warehouse, -2 * DAY) == failing_alerts(warehouse, -6 * HOUR) == {}, "a Sunday, and a night"
    assert failing_alerts(warehouse, 19 * MINUTE) == {}
    found = failing_alerts(warehouse, 21 * MINUTE)
    assert list(found) == ["silent:acme:3:*"]
    assert found["silent:acme:3:*"].since == at(-10 * MINUTE)
    assert "since 2026-11-24 11:50 UTC, which is 3.1 times the longest pause" in found["silent:acme:3:*"].what
    assert 0 < found["silent:acme:3:*"].share < 0.5
    assert list(failing_alerts(warehouse, 16 * HOUR)) == ["silent:acme:3:*"], "the others rest"
    everything = failing_alerts(warehouse, DAY)  # Wednesday noon, and no device has reported
    assert set(everything) == {f"silent:{name}" for name in ("acme:1:*", "acme:2:*", "acme:3:*", "acme:*:*", "*:*:*")}
    assert everything["silent:*:*:*"].scope == "pipeline"


def test_a_device_of_three_days_is_not_judged(published: Path) -> None:
    messages = LandedMessages()
    for seconds in by_day([1, 4, 5], 10 * MINUTE):
        messages.add(seconds)
    assert failing_alerts(messages.land(published), 0) == {}


def test_ordinary_traffic_with_daily_patterns_and_late_outcomes_causes_no_alert(published: Path) -> None:
    chance, messages = random.Random(8), LandedMessages()  # noqa: S311 - repeatable on purpose
    for device in range(1, 7):
        seconds, night, rests = -30 * DAY, 0.05 * (device % 2), device % 3 == 0
        while seconds < 0:
            seconds += chance.expovariate(device / HOUR)
            moment = datetime(2026, 11, 24, 12, tzinfo=UTC) + timedelta(seconds=seconds)
            quiet = rests and moment.isoweekday() > 5
            if quiet or chance.random() > (1 if 7 <= moment.hour < 20 else night):
                continue
            kind = chance.random()
            network_s = chance.uniform(600, 20_000) if kind > 0.98 else chance.lognormvariate(1.2, 0.8)
            if kind < 0.03:
                messages.add(seconds, "sent", device_id=device)
            elif kind < 0.13:
                messages.add(seconds, "undelivered", device_id=device)
            else:
                end = {"network_s": network_s, "total_s": network_s + 4, "delivered_at": at(seconds + network_s)}
                messages.add(seconds, device_id=device, **end)
    warehouse, state = messages.land(published), AlertState()
    judge = AlertStateMachine(state)
    for hour in range(-96, 0, 5):
        for change in judge.judge_findings(warehouse.read_findings(at(hour * HOUR)), SQL_RULE_KINDS, at(hour * HOUR)):
            state.update_alert(change)
    assert [(each.id, each.what) for each in state.firing_alerts()] == []
    assert not any(each.fired_at for each in state.alerts.values())


def test_messages_that_stay_open_longer_than_usual_are_stuck(published: Path) -> None:
    messages = LandedMessages()
    for number in range(600):
        messages.add(-2 * DAY - number * 10 * MINUTE, "sent" if number % 10 == 0 else "delivered")
    for number in range(12):
        messages.add(-HOUR - number * MINUTE, "queued" if number < 9 else "delivered")
        messages.add(-HOUR - number * MINUTE, "sent" if number < 1 else "delivered", device_id=2)
    found = failing_alerts(messages.land(published), 0)
    assert list(found) == ["stuck_messages:acme:1:*"]
    one = found["stuck_messages:acme:1:*"]
    assert (one.count, one.failures, one.since, len(one.samples)) == (12, 9, at(-HOUR - 8 * MINUTE), 5)
    assert "9 of 12 messages" in one.what
    assert "queued" in one.what


def test_open_messages_of_the_day_keep_an_alert_firing_without_new_messages(
    published: Path, caplog: pytest.LogCaptureFixture
) -> None:
    messages = LandedMessages()
    for number in range(12):
        messages.add(-HOUR - number * MINUTE, "queued")
    found = messages.land(published).read_findings(at(2 * HOUR))
    (finding,) = (each for each in found if each.alert.id == "stuck_messages:acme:1:*")
    assert not finding.is_bad
    assert finding.alert.since == at(-HOUR - 11 * MINUTE)
    assert finding.alert.what
    assert caplog.messages == []


def test_a_latency_that_doubles_is_a_shift_of_the_device_or_of_the_source(published: Path) -> None:
    messages = LandedMessages()
    for device in (1, 2):
        for number in range(2_000):
            messages.add(-DAY - number * 10 * MINUTE, device_id=device, network_s=3.0 + number % 10)
        for number in range(30):
            messages.add(-50 * MINUTE + number, device_id=device, network_s=40.0 if device == 1 else 5.0)
    found = failing_alerts(messages.land(published), 0)
    assert set(found) == {"latency_shift:acme:1:*", "latency_shift:acme:*:*"}
    assert (found["latency_shift:acme:1:*"].count, found["latency_shift:acme:1:*"].failures) == (30, 30)
    assert "is 40 s in the last hour; usual is 12 s" in found["latency_shift:acme:1:*"].what


def test_a_device_is_down_when_each_of_its_channels_fails(published: Path) -> None:
    messages = LandedMessages()
    for device in (1, 2, 3):
        for number in range(24):
            well = device == 2 and number == 4
            channel = 0 if device == 3 else number % 2
            outcome = "delivered" if well else "not_sent"
            messages.add(-number, outcome, device_id=device, channel_id=channel, last_status_id=10)
    found = failing_alerts(messages.land(published), 1)
    assert list(found) == ["device_down:acme:1:*"]
    one = found["device_down:acme:1:*"]
    assert (one.count, one.failures, one.errors, len(one.samples)) == (24, 24, {"10": 24}, 5)
    assert one.what == "all 2 channels are down: the last 24 messages failed"


def test_undocumented_statuses_and_dead_letters_are_counted_by_status_and_reason(
    published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    land_records(published, 0, [raw(n, status(n, 42 if n % 10 == 0 else 7), seconds=-n) for n in range(100)])
    land_records(published, 0, [deadletter(n, b"?", "not_json", f"sms.raw:0:{900 + n}") for n in range(3)])
    found = failing_alerts(WarehouseRules(published), 1)["webhook_quality:acme:*:*"]
    assert (found.count, found.failures, found.errors) == (100, 13, {"42": 10, "not_json": 3})
    monkeypatch.setenv("SMSPULSE_STREAM_STATUS_MEANINGS", "42=not_sent")
    assert failing_alerts(WarehouseRules(published), 1) == {}


def test_each_failing_critical_expectation_is_an_alert(published: Path) -> None:
    row = {
        "expectation": "raw_bodies_there", "dataset": "raw", "severity": "critical", "success": False,
        "observed": "3", "expected": "0", "meaning": "Webhooks have no body.", "action": "Find out.", "rows": [],
    }  # fmt: skip
    now = datetime(2026, 11, 24, 12, tzinfo=UTC)
    append_check_results(published, now, [row, row | {"expectation": "other", "severity": "warning"}])
    warehouse = WarehouseRules(published)
    found = failing_alerts(warehouse, 60)
    assert list(found) == ["quality_check:*:*:*:raw_bodies_there"]
    assert found["quality_check:*:*:*:raw_bodies_there"].since == at(0)
    append_check_results(published, now + timedelta(minutes=10), [row | {"success": True}])
    assert failing_alerts(warehouse, 660) == {}


def test_lander_and_stream_are_late_by_time_or_by_number_of_records() -> None:
    assert not lag_finding("lander", 3, at(0), at(299)).is_bad
    assert lag_finding("lander", 3, at(0), at(301)).is_bad
    assert lag_finding("stream", 1, None, at(0)).is_bad
    assert lag_finding("stream", 100_001, at(0), at(0)).alert.id == "pipeline:*:*:*:stream"
    assert lag_finding("stream", 100_001, at(0), at(0)).is_bad


def test_a_spool_that_fills_up_or_is_not_emptied_is_an_alert() -> None:
    def found(webhooks: int, size: int, oldest_s: float) -> list[bool]:
        return [each.is_bad for each in spool_findings(SpoolState(webhooks, size, oldest_s, None), 100, at(0))]

    assert found(0, 90, 0) == []
    assert found(5, 10, 10) == [False]
    assert found(5, 60, 10) == found(5, 10, 301) == [True]


def test_a_spool_that_fills_up_without_kafka_is_an_alert_and_no_alert_is_resolved(
    published: Path,
) -> None:
    kafka, ten_minutes_ago = KafkaSettings(bootstrap=f"127.0.0.1:{find_free_port()}"), int(time.time() * 1000) - 600_000
    assert RuleEvaluator(published, kafka)(at(0)) == ([], set())
    with closing(WebhookSpool(published, IngestSettings())) as spool:
        spool.append([WebhookRecord(b"acme:1", b"{}", [("ingest_id", b"1")], ten_minutes_ago)])
        found, judged = RuleEvaluator(published, kafka)(at(0))
    assert [(each.alert.id, each.is_bad) for each in found] == [("pipeline:*:*:*:spool", True)]
    assert judged == set()
