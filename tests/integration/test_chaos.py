"""A short chaos run, and mutations that it must detect. `make chaos` is the long run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from running import LAND_OFTEN

CHAOS = Path(__file__).parents[1] / "chaos" / "chaos.py"
LANDERS = CHAOS.with_name("landers.py")
RATE = "10"
"""Messages a second. Every partition has traffic, and Kafka uses a third of the processor time of `make chaos`."""


def chaos(tmp_path: Path, *arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, CHAOS, "--rate", RATE, *arguments, "--keep", tmp_path / "run"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env=os.environ | LAND_OFTEN,
    )
    return done.returncode, done.stdout


def test_faults_under_traffic_lose_nothing(real_kafka: None, tmp_path: Path) -> None:
    faults = ["stream:stop-begin", "stream:kill-commit", "stream:delete", "lander:kill", "ingest:kill"]
    code, output = chaos(tmp_path, "--workers", "2", "--faults", ",".join(faults))
    assert (code, output.rstrip().splitlines()[-1]) == (0, "0 lost, 0 counted twice, 0 wrong"), output
    for fault in faults:
        assert re.search(rf"^{fault.replace(':', ' +')} +1 ", output, re.MULTILINE), output


@pytest.mark.parametrize("mutation", ["no-fence", "offsets-outside"])
def test_a_worker_that_breaks_a_guarantee_is_detected(real_kafka: None, tmp_path: Path, mutation: str) -> None:
    code, output = chaos(tmp_path, "--mutation", mutation)
    found = re.search(r"^([\d,]+) lost, ([\d,]+) counted twice, ([\d,]+) wrong$", output, re.MULTILINE)
    assert found is not None, output
    lost, twice, wrong = found.groups()
    # A worker without a fence writes its old results over newer ones. Their records decide which count that changes.
    detected = {lost, twice, wrong} if mutation == "no-fence" else {lost}
    assert (code, detected == {"0"}) == (1, False), output


@pytest.mark.parametrize("arguments", [["--kills", "3"], ["--kills", "2", "--mutation", "no-fence"]])
def test_concurrent_landers_that_are_killed_land_each_record_once_and_need_the_fence_for_it(
    real_kafka: None, arguments: list[str]
) -> None:
    done = subprocess.run(
        [sys.executable, LANDERS, "--concurrent", "--rate", "500", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    lost, twice = re.findall(r"([\d,]+) (?:lost|twice)", done.stdout)
    mutated = "no-fence" in arguments
    assert (done.returncode, lost, twice != "0") == (int(mutated), "0", mutated), done.stdout
