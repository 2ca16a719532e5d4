"""The table of statuses is the documented one, and settings can add to it."""

import pytest

from core.errors import SettingError
from gateway.statuses import STATUSES, Outcome, build_status_table, parse_status_meanings


def test_the_documented_order_is_1_3_2_6_and_then_an_end() -> None:
    ranks = {status.id: status.rank for status in STATUSES.values() if not status.is_end}
    assert ranks == {1: 0, 3: 1, 2: 2, 6: 3, 5: None}
    assert {status.rank for status in STATUSES.values() if status.is_end} == {4}
    assert {status.id for status in STATUSES.values() if status.is_end} == {7, 8, 9, 10, 11, 12, 100, 101}


def test_each_end_has_its_outcome_and_failures_their_class() -> None:
    ends = {status.id: (status.outcome.value, status.failure_class) for status in STATUSES.values() if status.is_end}
    assert ends == {
        7: ("delivered", None),
        8: ("undelivered", "undelivered"),
        9: ("not_sent", "generic"),
        10: ("not_sent", "no_service"),
        11: ("not_sent", "null_pdu"),
        12: ("not_sent", "radio_off"),
        100: ("not_permitted", "not_permitted"),
        101: ("not_permitted", "not_permitted"),
    }


def test_a_setting_says_what_an_unknown_id_means() -> None:
    table = build_status_table(parse_status_meanings("13=not_sent, 14 = delivered"))
    assert (table[13].outcome, table[13].is_failure, table[14].is_failure) == (Outcome.NOT_SENT, True, False)
    assert table[7] is STATUSES[7]


@pytest.mark.parametrize("text", ["7=not_sent", "x=not_sent", "13=expired", "13", "13=", "-1=not_sent"])
def test_a_meaning_that_cannot_be_meant_is_refused(text: str) -> None:
    with pytest.raises(SettingError):
        parse_status_meanings(text)
