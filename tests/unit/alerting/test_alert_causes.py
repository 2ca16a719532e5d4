"""One phone that explains most of its source's rise is notified instead of the source, in either order."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from alertmanager import unsilenced
from hypothesis import given
from hypothesis import strategies as st
from landing import land_records
from rich.console import Console
from warehouse_records import NOON, alert, at

from core.alerts import Alert, decode_alert
from smspulse.alerting.alert_state import AlertState, alert_evidence, alert_summary, describe_cause
from smspulse.alerting.causes import AlertCause, find_cause
from smspulse.alerting.delivery_state import AlertmanagerState, ClockReading, WebhookState
from smspulse.alerting.receivers import alert_labels
from smspulse.alerting.rendering import print_alerts

MINUTE = 60
WAIT_S, MOMENT_S = 600, 30
Part = tuple[int | None, int | None, int, float]
SICK_PHONE: list[Part] = [(8001, 1, 9, 0.2), (8002, 1, 1, 0.2)]
WHOLE_FLEET: list[Part] = [
    (8001, 1, 3, 0.2),
    (8002, 1, 2, 0.2),
    (8003, 1, 2, 0.2),
    (8004, 1, 2, 0.2),
    (8005, 1, 1, 0.2),
]


def source(
    parts: Sequence[Part] = SICK_PHONE, phase: str = "firing", seconds: float = 0, count: int = 40, **fields: Any
) -> Alert:
    """Return the alert of the source `acme`, which fires at noon, with its latest failures by channel."""
    by_channel = [
        {"device_id": device, "channel_id": channel, "failures": failures, "share": share}
        for device, channel, failures, share in parts
    ]
    given = {
        "id": "failure_ratio:acme:*:*", "scope": "source", "device_id": None, "channel_id": None, "share": 1.0,
        "count": count, "failures": sum(each[2] for each in parts), "by_channel": by_channel,
    }  # fmt: skip
    return decode_alert(alert(0, phase, seconds=seconds, **given | fields).value or b"")


def phone(device: int = 8001, phase: str = "firing", seconds: float = 0, fired: float = 0, **fields: Any) -> Alert:
    """Return the alert of a phone with one SIM card, which fires some seconds after noon."""
    given = {
        "id": f"failure_ratio:acme:{device}:1", "device_id": device, "channel_id": 1, "share": 0.2,
        "fired_at": at(fired),
    }  # fmt: skip
    return decode_alert(alert(0, phase, seconds=seconds, **given | fields).value or b"")


def moment(seconds: float) -> ClockReading:
    return ClockReading(elapsed_s=seconds, now_s=NOON / 1000 + seconds)


Coming = Sequence[tuple[float, Alert]]


def notified(coming: Coming, until: float, *, silenced: frozenset[str] = frozenset()) -> list[tuple[float, str, str]]:
    """Return the alerts that the webhook receives, with their times, of alerts some seconds after noon."""
    book, left, sent = AlertState(), list(coming), []
    delivery = WebhookState(book, lambda _: silenced)
    for seconds in range(0, int(until) + 1, 10):
        while left and left[0][0] <= seconds:
            book.update_alert(left.pop(0)[1])
        for each in delivery.next_alerts(moment(seconds)):
            sent.append((seconds, each.scope, each.phase))
            delivery.mark_sent(each)
    return sent


def sent_to_alertmanager(coming: Coming, until: float) -> list[tuple[float, list[str], list[str]]]:
    """Return the requests to an Alertmanager without repetitions: time, firing alerts, resolved alerts."""
    book, left, sent = AlertState(), list(coming), []
    state = AlertmanagerState(60, book, unsilenced)
    before: list[str] = []
    for seconds in range(0, int(until) + 1, 10):
        while left and left[0][0] <= seconds:
            book.update_alert(left.pop(0)[1])
        batch = state.next_alerts(moment(seconds))
        if not batch:
            continue
        firing, resolved = ([each.scope for each in batch if each.phase == phase] for phase in ("firing", "resolved"))
        if firing != before or resolved:
            sent.append((seconds, firing, resolved))
        before = firing
        state.mark_sent(batch, moment(seconds))
    return sent


def test_a_phone_with_most_of_the_failures_is_the_cause_of_its_source_s_rise() -> None:
    found = find_cause(source())
    assert found is not None
    assert (found.device_id, found.channel_id, found.traffic_share) == (8001, 1, 0.2)
    # Nine of ten failures; 40 messages have 1.2 failures as usual, and 0.24 of them are the phone's.
    assert round(found.share, 3) == round((9 - 0.24) / (10 - 1.2), 3)


def test_a_sim_card_is_named_and_a_phone_where_several_of_its_sim_cards_fail() -> None:
    one_of_two = find_cause(source([(8001, 1, 9, 0.1), (8001, 2, 1, 0.1)]))
    both = find_cause(source([(8001, 1, 5, 0.1), (8001, 2, 5, 0.1)]))
    assert one_of_two is not None
    assert both is not None
    assert (one_of_two.device_id, one_of_two.channel_id) == (8001, 1)
    assert (both.device_id, both.channel_id) == (8001, None)


def test_a_failure_of_the_whole_fleet_has_no_cause_among_its_phones() -> None:
    assert find_cause(source(WHOLE_FLEET)) is None


def test_a_phone_with_most_of_the_messages_is_not_the_cause_of_a_failure_of_all() -> None:
    assert find_cause(source([(8001, 1, 16, 0.8), (8002, 1, 4, 0.2)], count=20)) is None


def test_messages_without_a_named_phone_or_sim_card_are_no_cause() -> None:
    assert find_cause(source([(None, None, 9, 0.2), (8002, 1, 1, 0.2)])) is None
    assert find_cause(source([])) is None


def test_a_sim_card_is_the_cause_of_its_phone_s_rise_by_its_share_of_the_phone_s_messages() -> None:
    of_phone = {"id": "failure_ratio:acme:8001:*", "scope": "device", "device_id": 8001, "share": 0.2}
    assert find_cause(source([(8001, 1, 10, 0.1)], count=20, **of_phone)) == AlertCause(8001, 1, 1.0, 0.5)
    assert find_cause(source([(8001, 1, 10, 0.19), (8001, 2, 1, 0.01)], count=20, **of_phone)) is None


def test_only_the_phone_is_notified_if_it_fires_first() -> None:
    coming = [(0, phone()), (60, source(fired_at=at(60)))]
    assert notified(coming, 3_600) == [(0, "channel", "firing")]
    assert sent_to_alertmanager(coming, 3_600) == [(0, ["channel"], [])]


def test_only_the_phone_is_notified_if_its_source_fires_first() -> None:
    coming = [(0, source()), (240, phone(fired=240))]
    assert notified(coming, 3_600) == [(240, "channel", "firing")]
    assert sent_to_alertmanager(coming, 3_600) == [(240, ["channel"], [])]


def test_only_the_phone_is_notified_if_the_first_failures_are_inconclusive() -> None:
    coming = [(0, source(WHOLE_FLEET)), (20, phone(fired=20)), (20, source())]
    assert notified(coming, 3_600) == [(20, "channel", "firing")]
    assert sent_to_alertmanager(coming, 3_600) == [(20, ["channel"], [])]


def test_a_source_with_a_late_cause_is_replaced_by_the_phone_in_an_alertmanager() -> None:
    coming = [(0, source(WHOLE_FLEET)), (300, phone(fired=300)), (300, source())]
    assert notified(coming, 3_600) == [(MOMENT_S, "source", "firing"), (300, "channel", "firing")]
    assert sent_to_alertmanager(coming, 3_600) == [(MOMENT_S, ["source"], []), (300, ["channel"], ["source"])]


def test_a_source_is_notified_and_names_the_phone_without_an_alert_of_the_phone() -> None:
    coming = [(0, source())]
    assert notified(coming, 3_600) == [(WAIT_S, "source", "firing")]
    assert sent_to_alertmanager(coming, 3_600) == [(WAIT_S, ["source"], [])]
    assert alert_summary(source()).endswith("; device 8001, channel 1 explains 100% of the rise")
    assert alert_evidence(source())["cause"] == describe_cause(source())


def test_a_source_that_still_fires_is_notified_after_the_end_of_the_phone() -> None:
    ended = 1_800
    coming = [(0, source()), (60, phone(fired=60)), (ended, phone(phase="resolved", seconds=ended, fired=60))]
    expected = [(60, "channel", "firing"), (ended, "channel", "resolved"), (ended + WAIT_S, "source", "firing")]
    assert notified(coming, 7_200) == expected
    assert sent_to_alertmanager(coming, 7_200) == [
        (60, ["channel"], []), (ended, [], ["channel"]), (ended + WAIT_S, ["source"], []),
    ]  # fmt: skip


def test_the_end_of_a_source_that_was_not_sent_is_not_sent() -> None:
    coming = [
        (0, source()), (60, phone(fired=60)), (1_800, phone(phase="resolved", seconds=1_800, fired=60)),
        (1_900, source(phase="resolved", seconds=1_900)),
    ]  # fmt: skip
    assert notified(coming, 7_200) == [(60, "channel", "firing"), (1_800, "channel", "resolved")]
    assert sent_to_alertmanager(coming, 7_200) == [(60, ["channel"], []), (1_800, [], ["channel"])]


def test_a_failure_of_the_whole_fleet_is_one_notification_of_the_source() -> None:
    coming = [(0, source(WHOLE_FLEET)), *((MINUTE, phone(device, fired=MINUTE)) for device in range(8001, 8006))]
    assert notified(coming, 3_600) == [(MOMENT_S, "source", "firing")]


def test_a_failure_that_spreads_from_one_phone_to_most_others_is_notified_of_the_source() -> None:
    coming = [(0, source()), *((60 * n, phone(8000 + n, fired=60 * n)) for n in range(1, 6))]
    sent = notified(coming, 3_600)
    assert [scope for _, scope, _ in sent] == ["channel", "channel", "channel", "source"]
    assert sent[-1][0] == 60 * 4


def test_another_phone_of_the_source_is_notified_although_the_source_has_a_cause() -> None:
    coming = [(0, source()), (60, phone(fired=60)), (120, phone(8002, fired=120))]
    assert notified(coming, 3_600) == [(60, "channel", "firing"), (120, "channel", "firing")]


def test_a_silence_of_the_phone_silences_what_it_explains() -> None:
    coming = [(0, source()), (60, phone(fired=60))]
    assert notified(coming, 3_600, silenced=frozenset({phone().id})) == []


def test_a_restart_changes_no_decision() -> None:
    coming = [source(), phone(fired=60)]
    book, past = AlertState(), AlertState()
    for each in coming:
        book.update_alert(each)
        past.update_alert(each)
    delivery = WebhookState(book, unsilenced)
    delivery.resume(past, [], moment(3_600))
    assert delivery.next_alerts(moment(3_600)) == []
    book.update_alert(phone(phase="resolved", seconds=3_700, fired=60))
    assert [each.phase for each in delivery.next_alerts(moment(3_700))] == ["resolved"]


def test_labels_do_not_depend_on_the_cause_because_they_identify_the_alert() -> None:
    assert alert_labels(source()) == alert_labels(source(WHOLE_FLEET))


ALERTS = st.lists(
    st.one_of(
        st.builds(source, st.sampled_from([SICK_PHONE, WHOLE_FLEET])),
        st.builds(phone, st.integers(8001, 8003), fired=st.integers(0, 900)),
        st.builds(
            phone,
            st.integers(8001, 8003),
            fired=st.integers(0, 900),
            kind=st.just("device_down"),
            scope=st.just("device"),
            id=st.just("device_down"),
        ),
    ),
    min_size=1,
    max_size=6,
    unique_by=lambda each: each.id,
)


@given(ALERTS, st.integers(0, 10_000))
def test_after_the_wait_at_least_one_of_the_firing_alerts_is_notified(alerts: list[Alert], later: int) -> None:
    book = AlertState()
    for each in alerts:
        book.update_alert(each)
    now = at(WAIT_S + later)
    assert not all(book.is_inhibited(each, now) for each in alerts)


def test_the_list_has_a_source_that_is_not_notified_and_names_the_phone(published: Path) -> None:
    fields = [msgspec.to_builtins(each) for each in (source(), phone(fired=60))]
    rows = [alert(number, each.pop("phase"), **each) for number, each in enumerate(fields)]
    land_records(published, 0, rows)
    console = Console(width=250)
    with console.capture() as captured:
        print_alerts(published, console, everything=False)
    of_source, of_phone = sorted(
        (line for line in captured.get().splitlines() if "failure_ratio" in line), key=lambda line: ":*:*" not in line
    )
    assert "inhibited" in of_source
    assert "device 8001, channel 1 explains 100% of the rise" in of_source
    assert "firing" in of_phone
