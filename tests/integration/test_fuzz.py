"""Short fuzz runs, and mutations that they must detect. `make fuzz` is the long run."""

import subprocess
import sys
from pathlib import Path

import pytest

CHAOS = Path(__file__).parents[1] / "chaos"


def fuzz(*arguments: str, script: str = "fuzz.py") -> tuple[int, str]:
    done = subprocess.run([sys.executable, CHAOS / script, *arguments], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_ten_thousand_malformed_requests_get_the_expected_answers() -> None:
    code, output = fuzz("--requests", "10000")
    assert (code, output.splitlines()[-1]) == (0, "0 wrong"), output
    assert "10,000 requests in" in output


@pytest.mark.parametrize(("mutation", "detected"), [("leak", "the memory grew by"), ("fault", "status 500")])
def test_a_fault_of_ingest_is_detected(mutation: str, detected: str) -> None:
    code, output = fuzz("--requests", "4000", "--mutation", mutation)
    assert (code, detected in output) == (1, True), output


def test_a_thousand_malformed_bodies_lose_no_valid_report_in_any_reader() -> None:
    code, output = fuzz("--in-process", "--bodies", "1000", script="fuzz_records.py")
    assert (code, output.splitlines()[-1]) == (0, "0 wrong"), output


@pytest.mark.parametrize(
    ("mutation", "detected"),
    [
        ("fold", "the pipeline ended: RecursionError"),
        ("sink", "the pipeline ended: RecursionError"),
        ("parser", "webhooks that made the sink fail, not 0"),
    ],
)
def test_a_fault_of_a_reader_is_detected(mutation: str, detected: str) -> None:
    code, output = fuzz("--in-process", "--bodies", "600", "--mutation", mutation, script="fuzz_records.py")
    assert (code, detected in output) == (1, True), output
