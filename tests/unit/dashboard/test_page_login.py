import base64
import logging

import pytest

from smspulse.dashboard import login
from smspulse.dashboard.login import PasswordGuard


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"me:{password}".encode()).decode()


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_an_address_that_guesses_waits_and_others_do_not(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    checked = PasswordGuard("secret", clock)
    guesses = 0
    for _ in range(3_600):
        clock.now += 1
        if not checked.wait_s("192.0.2.1"):
            assert not checked.is_authorized(basic(f"guess {guesses}"), "192.0.2.1")
            guesses += 1
    assert guesses == pytest.approx(5 + 3_600 / 10, abs=2)
    assert checked.wait_s("192.0.2.1") > 0
    assert checked.wait_s("192.0.2.2") == 0
    assert checked.is_authorized(basic("secret"), "192.0.2.2")
    clock.now += 3_600
    assert checked.wait_s("192.0.2.1") == 0
    assert "a wrong password for the page came from 192.0.2.1" in caplog.text
    assert "guess" not in caplog.text


def test_a_person_may_mistype_and_no_password_is_no_guess() -> None:
    checked = PasswordGuard("secret", Clock())
    for _ in range(100):
        assert not checked.is_authorized("", "192.0.2.1")
    for _ in range(4):
        assert not checked.is_authorized(basic("secrte"), "192.0.2.1")
    assert checked.wait_s("192.0.2.1") == 0
    assert checked.is_authorized(basic("secret"), "192.0.2.1")


@pytest.mark.parametrize("header", ["Basic", "Basic !", "Basic ÄÖ", "Bearer secret", "Basic " + "A" * 99, "x" * 9_999])
def test_what_is_no_password_is_a_wrong_one(header: str) -> None:
    checked = PasswordGuard("secret", Clock())
    for _ in range(5):
        assert not checked.is_authorized(header, "192.0.2.1")
    assert checked.wait_s("192.0.2.1") > 0


def test_addresses_of_one_ipv6_network_are_one() -> None:
    checked = PasswordGuard("secret", Clock())
    for number in range(5):
        checked.is_authorized(basic("x"), f"2001:db8::{number}")
    assert checked.wait_s("2001:db8::ffff") > 0
    assert checked.wait_s("2001:db8:0:1::1") == 0


def test_guesses_from_many_addresses_take_bounded_memory(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    checked = PasswordGuard("secret", Clock())
    for number in range(20_000):
        checked.is_authorized(basic("x"), f"10.0.{number // 256}.{number % 256}")
    assert len(checked._recovered_at) == login._MAX_ADDRESSES
