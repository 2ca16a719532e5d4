"""Writes `docs/notebooks/` from simulated weeks in which a phone fails: `python tests/support/rendered.py`."""

import os
import sys
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from days import LAST, Days
from landing import land_records
from warehouse_records import MadeRecord

from core import topics
from core.alerts import encode_alert
from expectations.runner import run_checks
from expectations.settings import CheckSettings
from notebooks.report import write_notebooks
from smspulse.alerting.backtest import read_message_ends, run_backtest
from smspulse.simulator.options import GatewayBehaviour
from streams.failure_baseline import DetectorPolicy
from warehouse.quality import append_check_results
from warehouse.reader import query

FOLDER = ROOT / "docs" / "notebooks"
_WELL = GatewayBehaviour(
    failing=0.03, resends=0, resends_new_id=0, failure_mix=((8, 0.5), (9, 0.25), (10, 0.25)), unhealthy=()
)
_ILL = replace(_WELL, unhealthy=((8003, 0.5),))


def land_alerts(data: Path) -> None:
    """Land the alerts that follow from the messages of a data folder."""
    changes = run_backtest(read_message_ends(data, None), DetectorPolicy(), 0.1).changes
    records = [
        MadeRecord(topics.ALERTS, 0, offset, change.changed_at, change.id.encode(), encode_alert(change), [])
        for offset, change in enumerate(changes)
    ]
    land_records(data, 0, records)


def make(folder: Path) -> set[str]:
    """Write the notebooks of two simulated weeks. On two days of the last week, phone 8003 fails.

    Returns the personal data that they must not show: phone numbers and texts.
    """
    with TemporaryDirectory() as temporary:
        data = Path(temporary)
        days = Days(data, seed=10, messages=800)
        for back in range(13, -1, -1):
            end = days.simulate_day(LAST - timedelta(days=back), behaviour=_ILL if back in {4, 5} else _WELL)
        land_alerts(data)
        found = run_checks(data, CheckSettings(), end, suites=("raw", "messages", "deadletters")).rows
        append_check_results(data, end, [asdict(row) for row in found])
        with patch.dict(os.environ, SMSPULSE_DATA=str(data)):
            write_notebooks(folder)
        numbers = query(data, "SELECT DISTINCT recipient AS n FROM messages UNION SELECT sender FROM incoming_messages")
        texts = query(data, "SELECT DISTINCT text AS n FROM incoming_messages")
        return {str(each).removeprefix("+") for each in [*numbers["n"], *texts["n"]] if len(str(each)) > 7}


if __name__ == "__main__":
    make(FOLDER)
