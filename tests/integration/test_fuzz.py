"""The fuzz run in its short form, and that it can fail. `make fuzz` is the long form."""

import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).parents[1] / "chaos" / "fuzz.py"


def fuzz(*arguments: str) -> tuple[int, str]:
    done = subprocess.run([sys.executable, FUZZ, *arguments], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_ten_thousand_odd_requests_are_answered_as_is_due() -> None:
    code, said = fuzz("--requests", "10000")
    assert (code, said.splitlines()[-1]) == (0, "0 wrong"), said
    assert "10,000 requests in" in said


@pytest.mark.parametrize(("mutation", "caught"), [("leak", "the memory grew by"), ("fault", "status 500")])
def test_a_receiver_with_a_fault_is_caught(mutation: str, caught: str) -> None:
    code, said = fuzz("--requests", "4000", "--mutation", mutation)
    assert (code, caught in said) == (1, True), said
