"""The chaos run in its short form, and that it can fail. `make chaos` is the long form."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

CHAOS = Path(__file__).parents[1] / "chaos" / "chaos.py"
LANDERS = CHAOS.with_name("landers.py")
RATE = "10"
"""Messages a second: every partition has traffic, and Kafka takes a third of the processor time of `make chaos`."""


def chaos(tmp_path: Path, *arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, CHAOS, "--rate", RATE, *arguments, "--keep", tmp_path / "run"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def test_faults_under_traffic_cost_nothing(real_kafka: None, tmp_path: Path) -> None:
    faults = ["stream:stop-begin", "stream:kill-commit", "stream:delete", "lander:kill", "ingest:kill"]
    code, said = chaos(tmp_path, "--workers", "2", "--faults", ",".join(faults))
    assert (code, said.rstrip().splitlines()[-1]) == (0, "0 lost, 0 counted twice, 0 wrong"), said
    for fault in faults:
        assert re.search(rf"^{fault.replace(':', ' +')} +1 ", said, re.MULTILINE), said


@pytest.mark.parametrize("mutation", ["no-fence", "offsets-outside"])
def test_a_worker_that_breaks_a_guarantee_is_caught(real_kafka: None, tmp_path: Path, mutation: str) -> None:
    code, said = chaos(tmp_path, "--mutation", mutation)
    counts = re.search(r"^([\d,]+) lost, ([\d,]+) counted twice, ([\d,]+) wrong$", said, re.MULTILINE)
    assert counts is not None, said
    caught = counts[2] if mutation == "no-fence" else counts[1]
    assert (code, caught == "0") == (1, False), said


@pytest.mark.parametrize("arguments", [["--kills", "6"], ["--kills", "2", "--mutation", "no-fence"]])
def test_rival_landers_that_are_killed_land_each_record_once_and_only_by_the_fence(
    real_kafka: None, arguments: list[str]
) -> None:
    done = subprocess.run(
        [sys.executable, LANDERS, "--rivals", "--rate", "500", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    lost, twice = re.findall(r"([\d,]+) (?:lost|twice)", done.stdout)
    mutated = "no-fence" in arguments
    assert (done.returncode, lost, twice != "0") == (int(mutated), "0", mutated), done.stdout
