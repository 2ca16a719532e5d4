"""A short run of ingest without Kafka. `make outage` is the long run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

OUTAGE = Path(__file__).parents[1] / "chaos" / "outage.py"


@pytest.mark.parametrize(
    "arguments", [["--seconds", "5", "--kills", "2", "--processes", "2"], ["--seconds", "3", "--pause"]]
)
def test_every_webhook_answered_during_an_outage_of_kafka_arrives_in_order(
    real_kafka: None, arguments: list[str]
) -> None:
    done = subprocess.run(
        [sys.executable, OUTAGE, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "0 lost, 0 out of order"), done.stdout
    spooled = re.search(r"([\d,]+) in the spool at most", done.stdout)
    assert spooled is not None, done.stdout
    assert int(spooled[1].replace(",", "")) > 40  # at least one of each key
