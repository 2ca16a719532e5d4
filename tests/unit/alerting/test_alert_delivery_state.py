"""The alerts that are sent to a receiver: restarts, inhibition and silences."""

import time
from pathlib import Path
from typing import Any

import pytest
from alertmanager import unsilenced
from decoded_alerts import decoded_alert
from warehouse_records import NOON, at

from core.alerts import Alert
from smspulse.alerting.alert_state import AlertState
from smspulse.alerting.alert_topic import AlertRecord
from smspulse.alerting.delivery_state import ClockReading, WebhookState
from smspulse.alerting.dispatcher import resume_delivery
from smspulse.alerting.errors import SilenceError
from smspulse.alerting.silences import SilenceStore


def of_source(phase: str = "firing", **fields: Any) -> Alert:
    return decoded_alert(phase, id="failure_ratio:acme:*:*", scope="source", device_id=None, channel_id=None, **fields)


LATER = ClockReading(elapsed_s=0, now_s=NOON / 1000 + 3_600)


def sent_alerts(*alerts: Alert, past: tuple[Alert, ...] = (), sent: bool = True) -> list[tuple[str, str]]:
    """Return the alerts that are sent after earlier ones, which were sent unless this is the first start."""
    state, before = AlertState(), AlertState()
    for each in past:
        state.update_alert(each)
        before.update_alert(each)
    seen = WebhookState(state, unsilenced)
    if sent:
        seen.resume(before, [], LATER)
    found = []
    for each in ((), *alerts):
        if each:
            state.update_alert(each)
        for one in seen.next_alerts(LATER):
            found.append((one.id.partition(":")[2], one.phase))
            seen.mark_sent(one)
    return found


def test_sent_alerts_are_not_sent_again_after_a_restart() -> None:
    assert sent_alerts(past=(decoded_alert(),)) == []
    assert sent_alerts(decoded_alert("resolved", seconds=9), past=(decoded_alert(),)) == [("acme:1:2", "resolved")]


def test_the_first_start_sends_firing_alerts_and_no_resolved_ones() -> None:
    past = (decoded_alert(), decoded_alert("resolved", id="failure_ratio:acme:3:1"))
    assert sent_alerts(past=past, sent=False) == [("acme:1:2", "firing")]


def test_the_end_of_an_alert_is_sent_after_its_start_was_compacted() -> None:
    assert sent_alerts(decoded_alert("resolved", seconds=9)) == [("acme:1:2", "resolved")]


def test_a_pending_alert_that_never_fired_is_not_sent() -> None:
    assert sent_alerts(decoded_alert("pending"), decoded_alert("resolved", fired_at=None)) == []


def test_a_source_inhibits_its_devices_until_it_is_resolved() -> None:
    assert sent_alerts(of_source(), decoded_alert(), of_source("resolved", seconds=9)) == [
        ("acme:*:*", "firing"),
        ("acme:1:2", "firing"),
        ("acme:*:*", "resolved"),
    ]
    assert sent_alerts(of_source(), decoded_alert(source="other")) == [("acme:*:*", "firing"), ("acme:1:2", "firing")]


def test_a_device_inhibits_its_channels_and_no_others() -> None:
    state = AlertState()
    state.update_alert(decoded_alert(id="failure_ratio:acme:1:*", scope="device", channel_id=None))
    assert state.is_inhibited(decoded_alert(), at(0))
    assert not state.is_inhibited(decoded_alert(device_id=3), at(0))
    assert not state.is_inhibited(decoded_alert(kind="not_permitted"), at(0))


def test_a_silenced_alert_is_sent_after_its_silence_and_a_sent_one_is_resolved() -> None:
    silenced, state = {decoded_alert().id}, AlertState()
    seen = WebhookState(state, lambda _: frozenset(silenced))
    state.update_alert(decoded_alert())
    assert seen.next_alerts(LATER) == []
    silenced.clear()
    assert [each.phase for each in seen.next_alerts(LATER)] == ["firing"]
    seen.mark_sent(decoded_alert())
    silenced.add(decoded_alert().id)
    assert seen.next_alerts(LATER) == []
    state.update_alert(decoded_alert("resolved", seconds=60))
    assert [each.phase for each in seen.next_alerts(LATER)] == ["resolved"]


def test_an_alert_silenced_at_a_restart_is_sent_after_its_silence() -> None:
    silenced, state = {decoded_alert().id}, AlertState()
    state.update_alert(decoded_alert())
    seen = WebhookState(state, lambda _: frozenset(silenced))
    seen.resume(state, [], LATER)
    silenced.clear()
    assert [each.phase for each in seen.next_alerts(LATER)] == ["firing"]


def test_changes_after_the_committed_offsets_are_sent_after_a_restart() -> None:
    unknown = decoded_alert("resolved", id="failure_ratio:acme:3:1", device_id=3, seconds=70)
    records = [
        AlertRecord(0, 0, decoded_alert()),
        AlertRecord(0, 1, decoded_alert("resolved", seconds=60)),
        AlertRecord(1, 7, unknown),
    ]
    state = AlertState()
    for each in records:
        state.update_alert(each.alert)
    for committed, expected in (
        ({0: 1}, ["acme:1:2", "acme:3:1"]),
        ({0: 2, 1: 7}, ["acme:3:1"]),
        ({0: 2, 1: 8}, []),
        ({}, []),
    ):
        seen = WebhookState(state, unsilenced)
        resume_delivery(seen, AlertState(), records, committed)
        found = seen.next_alerts(LATER)
        assert {each.phase for each in found} <= {"resolved"}
        assert [each.id.partition(":")[2] for each in found] == expected, committed


def test_a_silence_ends_at_its_time_and_can_be_lifted(tmp_path: Path) -> None:
    silences, before = SilenceStore(tmp_path), time.time()
    silences.set_silence("a:b:1:2", 60)
    silences.set_silence("a:b:3:*", 600)
    after = time.time()
    active = SilenceStore(tmp_path).active_silences(before + 59)
    assert list(active) == ["a:b:1:2", "a:b:3:*"]
    assert before + 60 <= active["a:b:1:2"] <= after + 60
    assert silences.silenced_ids(after + 60) == {"a:b:3:*"}
    silences.set_silence("a:b:3:*", 0)
    assert silences.silenced_ids(before) == {"a:b:1:2"}


def test_unreadable_silences_silence_no_alert_and_the_log_has_the_remedy(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "silences.json").write_text("{")
    assert SilenceStore(tmp_path).silenced_ids(1_000) == frozenset()
    assert "remove it, and set the silences again; until then all alerts are sent" in caplog.text
    with pytest.raises(SilenceError, match="remove it"):
        SilenceStore(tmp_path).set_silence("a:b:1:2", 60)
