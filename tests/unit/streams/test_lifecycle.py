"""Laws of the lifecycle, and every known misbehaviour of delivery reports by name."""

import copy
import itertools
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.events import StatusReport
from gateway.statuses import STATUSES, build_status_table, parse_status_meanings
from streams.lifecycle import LifecycleRules, MessageState, MessageVersion

T0 = 1_760_000_000_000
LIFECYCLE = LifecycleRules(STATUSES)
FLAGS = {
    *("duplicated", "reordered", "unknown_status", "late_after_forgetting"),
    *(f"{latency}_{fault}" for latency in ("queue", "device", "network") for fault in ("missing", "backwards")),
}

Received = tuple[StatusReport, int]
Reports = list[Received]


def report(status_id: int, seconds: float, **fields: Any) -> Received:
    values = {"device_id": 8001, "channel_id": 1, "sent_at": T0, "recipient": "+491575298221"} | fields
    return StatusReport(17, status_id, status_message=None, flaws=(), **values), T0 + round(seconds * 1000)


def facts(*reports: Received) -> MessageState:
    known = MessageState("gw", 17)
    for one, received_at in reports:
        known.add_report(one, received_at)
    return known


def version(*reports: Received) -> MessageVersion:
    return LIFECYCLE.derive_version(facts(*reports))


WAY = (report(1, 0), report(3, 0.5), report(2, 2), report(6, 5), report(7, 9))

reports = st.builds(
    lambda status_id, at, device, channel, sent: (
        StatusReport(17, status_id, device, channel, sent, "+491575298221", None, ()),
        T0 + at,
    ),
    st.sampled_from([1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 55, 100, 101]),
    st.integers(0, 40),
    st.sampled_from([None, 8001, 8002]),
    st.sampled_from([None, 0, 1]),
    st.sampled_from([None, T0, T0 + 60_000]),
)
histories = st.lists(reports, min_size=1, max_size=9)


def test_a_delivered_message_has_its_latencies() -> None:
    seen = version(*WAY)
    assert (seen.outcome, seen.is_ended, seen.last_status_id) == ("delivered", True, 7)
    assert (seen.queue_s, seen.device_s, seen.network_s, seen.total_s) == (2, 3, 4, 9)
    assert (seen.attempts, seen.contradicted, seen.flags) == (1, False, [])
    assert seen.delivered_at == seen.ended_at == T0 + 9000


@pytest.mark.parametrize(
    ("status_id", "outcome", "failure_class"),
    [
        (8, "undelivered", "undelivered"),
        (9, "not_sent", "generic"),
        (12, "not_sent", "radio_off"),
        (101, "not_permitted", "not_permitted"),
    ],
)
def test_a_failure_has_its_class(status_id: int, outcome: str, failure_class: str) -> None:
    seen = version(*WAY[:3], report(status_id, 7))
    assert (seen.outcome, seen.failure_class, seen.delivered_at) == (outcome, failure_class, None)


@pytest.mark.parametrize(("count", "outcome"), [(1, "pending"), (2, "queued"), (3, "accepted"), (4, "sent")])
def test_the_outcome_of_an_open_message_is_that_of_its_furthest_step(count: int, outcome: str) -> None:
    for order in itertools.permutations(WAY[:count]):
        seen = version(*order)
        assert (seen.outcome, seen.is_ended, seen.total_s) == (outcome, False, None)


@given(histories, st.randoms())
def test_order_does_not_matter(history: Reports, random: Any) -> None:
    shuffled = history[:]
    random.shuffle(shuffled)
    assert version(*shuffled) == version(*history)


@given(histories, st.data())
def test_duplicates_do_not_matter(history: Reports, data: Any) -> None:
    again = data.draw(st.lists(st.sampled_from(history), max_size=6))
    assert version(*history, *again) == version(*history)


@given(histories, histories, histories)
def test_reports_of_two_workers_have_the_same_result_in_any_order(a: Reports, b: Reports, c: Reports) -> None:
    assert version(*a, *b, *c) == version(*c, *a, *b, *a) == version(*b, *c, *b, *a, *c)


@given(histories, st.lists(st.integers(0, 9), max_size=3))
def test_batches_do_not_matter_and_a_version_never_shrinks(history: Reports, cuts: list[int]) -> None:
    bounds = sorted({0, len(history), *(cut for cut in cuts if cut < len(history))})
    known, largest = MessageState("gw", 17), 0
    for start, end in itertools.pairwise(bounds):
        for one, received_at in history[start:end]:
            known.add_report(one, received_at)
        stored = LIFECYCLE.derive_version(known)
        assert stored.version >= largest
        largest = stored.version
        known = MessageState.from_version(stored)
    assert LIFECYCLE.derive_version(known) == version(*history)


@given(histories)
def test_latencies_are_never_negative_and_flags_are_known(history: Reports) -> None:
    seen = version(*history)
    latencies = [seen.queue_s, seen.device_s, seen.network_s, seen.total_s]
    assert all(latency is None or latency >= 0 for latency in latencies)
    assert set(seen.flags) <= FLAGS
    assert seen.is_ended == (seen.total_s is not None) == (seen.ended_at is not None)


@given(histories)
def test_adding_returns_whether_the_report_is_new(history: Reports) -> None:
    known = MessageState("gw", 17)
    for one, received_at in history:
        before = copy.deepcopy(LIFECYCLE.derive_version(known)) if known.last_seen_at else None
        assert known.add_report(one, received_at) == (LIFECYCLE.derive_version(known) != before)


def test_the_same_report_again_seconds_later_is_flagged_and_changes_nothing_else() -> None:
    once, twice = version(*WAY), version(*WAY, report(7, 14))
    assert twice.flags == ["duplicated"]
    changed = {name: getattr(once, name) for name in ("flags", "last_seen_at", "version", "observations")}
    assert msgspec.structs.replace(twice, **changed) == once


def test_a_report_overtaken_by_another_is_flagged() -> None:
    seen = version(report(1, 0), report(2, 2), report(7, 4), report(6, 5))
    assert (seen.outcome, seen.network_s) == ("delivered", None)
    assert seen.flags == ["reordered", "network_backwards"]


def test_skipped_stages_are_flagged_and_leave_the_total() -> None:
    seen = version(report(1, 0), report(7, 9))
    assert (seen.queue_s, seen.device_s, seen.network_s, seen.total_s) == (None, None, None, 9)
    assert seen.flags == ["queue_missing", "device_missing", "network_missing"]


def test_a_phone_that_cannot_send_has_no_missing_steps() -> None:
    assert version(report(1, 0), report(3, 1), report(2, 2), report(10, 4)).flags == []


def test_a_report_three_days_late_counts_its_time() -> None:
    assert version(*WAY[:4], report(7, 72 * 3600)).network_s == 72 * 3600 - 5


def test_a_missing_end_leaves_the_message_open() -> None:
    assert version(*WAY[:4]).outcome == "sent"


def test_delivered_then_failed_is_a_contradiction_and_the_later_one_decides() -> None:
    seen = version(*WAY, report(8, 20))
    assert (seen.outcome, seen.contradicted, seen.attempts) == ("undelivered", True, 1)


def test_failed_then_delivered_without_a_new_attempt_is_a_contradiction() -> None:
    seen = version(*WAY[:4], report(8, 7), report(7, 9))
    assert (seen.outcome, seen.contradicted, seen.attempts) == ("delivered", True, 1)


def test_an_end_reported_again_later_does_not_win_back() -> None:
    assert version(*WAY, report(8, 20), report(7, 30)).outcome == "undelivered"


def test_a_resend_under_the_same_id_is_a_second_attempt() -> None:
    again = {"sent_at": T0 + 60_000, "device_id": 8002}
    seen = version(*WAY[:3], report(9, 4), *(report(s, t, **again) for s, t in ((1, 60), (2, 61), (6, 63), (7, 66))))
    assert (seen.attempts, seen.contradicted, seen.outcome, seen.device_id) == (2, False, "delivered", 8002)
    assert (seen.queue_s, seen.device_s, seen.network_s, seen.total_s) == (1, 2, 3, 66)


def test_a_third_attempt_is_counted() -> None:
    def attempt(start: float) -> Reports:
        return [report(s, start + t, sent_at=T0 + round(start)) for s, t in ((1, 0), (2, 1), (9, 2))]

    assert version(*attempt(0), *attempt(100), *attempt(200)).attempts == 3


def test_old_reports_delivered_again_after_a_failure_are_no_attempt() -> None:
    seen = version(*WAY[:3], report(9, 4), report(1, 60), report(2, 61))
    assert (seen.attempts, seen.flags) == (1, ["duplicated"])


def test_a_step_that_arrives_late_after_a_failure_is_no_attempt() -> None:
    seen = version(*WAY[:3], report(9, 4), report(6, 5))
    assert (seen.attempts, seen.flags) == (1, ["reordered"])


def test_a_failed_message_stays_failed_while_it_is_tried_again() -> None:
    seen = version(*WAY[:3], report(9, 4), report(1, 60, sent_at=T0 + 60_000))
    assert (seen.outcome, seen.attempts) == ("not_sent", 2)


def test_a_multipart_message_reported_part_by_part_is_one_message() -> None:
    seen = version(*WAY, report(6, 5.1), report(7, 9.1), report(7, 9.4))
    assert (seen.outcome, seen.network_s, seen.attempts) == ("delivered", 4, 1)


def test_an_unknown_status_is_stored_and_changes_no_outcome() -> None:
    seen = version(*WAY[:2], report(55, 1))
    assert (seen.outcome, seen.flags, seen.last_status_id) == ("queued", ["unknown_status"], 3)
    assert any(observation[0] == 55 for observation in seen.observations)


def test_only_unknown_statuses_make_an_unknown_outcome() -> None:
    assert version(report(55, 1)).outcome == "unknown"


def test_a_setting_makes_an_unknown_status_final() -> None:
    table = build_status_table(parse_status_meanings("55=not_sent"))
    seen = LifecycleRules(table).derive_version(facts(*WAY[:2], report(55, 1)))
    assert (seen.outcome, seen.failure_class, seen.flags) == ("not_sent", "other", [])


def test_status_5_belongs_to_no_rate() -> None:
    assert version(report(5, 0)).outcome == "incoming"
    assert version(report(5, 0), *WAY).outcome == "delivered"


def test_a_report_without_a_device_does_not_erase_it() -> None:
    seen = version(*WAY[:2], report(2, 2, device_id=None, channel_id=None))
    assert (seen.device_id, seen.channel_id) == (8001, 1)


def test_at_one_millisecond_the_documented_order_holds() -> None:
    for order in itertools.permutations([report(status_id, 0) for status_id in (1, 3, 2, 6, 7)]):
        assert (version(*order).flags, version(*order).total_s) == ([], 0)
