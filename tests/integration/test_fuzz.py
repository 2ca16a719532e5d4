"""The fuzz runs in their short form, and that they can fail. `make fuzz` is the long form."""

import subprocess
import sys
from pathlib import Path

import pytest

CHAOS = Path(__file__).parents[1] / "chaos"


def fuzz(*arguments: str, script: str = "fuzz.py") -> tuple[int, str]:
    done = subprocess.run([sys.executable, CHAOS / script, *arguments], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_ten_thousand_odd_requests_are_answered_as_is_due() -> None:
    code, said = fuzz("--requests", "10000")
    assert (code, said.splitlines()[-1]) == (0, "0 wrong"), said
    assert "10,000 requests in" in said


@pytest.mark.parametrize(("mutation", "caught"), [("leak", "the memory grew by"), ("fault", "status 500")])
def test_a_receiver_with_a_fault_is_caught(mutation: str, caught: str) -> None:
    code, said = fuzz("--requests", "4000", "--mutation", mutation)
    assert (code, caught in said) == (1, True), said


def test_two_thousand_odd_bodies_cost_no_good_report_wherever_they_are_read() -> None:
    code, said = fuzz("--in-process", "--bodies", "2000", script="fuzz_records.py")
    assert (code, said.splitlines()[-1]) == (0, "0 wrong"), said


@pytest.mark.parametrize(
    ("mutation", "caught"),
    [
        ("fold", "the pipeline ended: RecursionError"),
        ("sink", "the pipeline ended: RecursionError"),
        ("parser", "webhooks that made the sink fail, and not 0"),
    ],
)
def test_a_reader_with_a_fault_is_caught(mutation: str, caught: str) -> None:
    code, said = fuzz("--in-process", "--bodies", "600", "--mutation", mutation, script="fuzz_records.py")
    assert (code, caught in said) == (1, True), said
