"""What was answered 2xx is landed or in the spool, and what is not is named."""

import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from days import weeks

from expectations.settings import CheckSettings
from ingest.accepted import ID_BYTES, Accepted, accepted_ids
from ingest.settings import IngestSettings
from ingest.spool import Spool, Webhook
from smspulse.reconcile import measure
from warehouse.compaction import day_of
from warehouse.read import open_warehouse
from warehouse.views import COVERED, Covered

END = datetime(2026, 11, 25, tzinfo=UTC)
LOST = "019ab3b2-0d00-7000-8000-000000000001"
LOST_AT = int(LOST.replace("-", "")[:12], 16)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reconciled")
    weeks(folder, seed=2, messages=24)
    noting = Accepted(folder)
    with open_warehouse(folder) as connection:
        sql = "SELECT source, epoch_ms(received_at), ingest_id FROM raw_webhooks ORDER BY received_at"
        for source, received_at, ingest_id in connection.execute(sql).fetchall():
            noting.note(source, received_at, ingest_id.encode())
    noting.close()
    return folder


def found(data: Path, at: datetime = END) -> tuple[float, float, list[str]]:
    measured = measure(data, CheckSettings(), at)
    rows = measured.rows["reconciliation_accepted_landed"]
    sums = measured.measures[[check.name for check in measured.checks]].sum()
    return float(sums.iloc[0]), float(sums.iloc[1]), list(rows)


def test_what_was_answered_is_landed_and_old_hours_are_dropped(data: Path) -> None:
    assert len(measure(data, CheckSettings(), END).measures) > 10
    assert found(data) == (0, 0, [])
    hours = sorted(path.name for path in (data / "accepted").iterdir())
    assert hours[0] >= "2026-11-16"
    assert hours[-1] == "2026-11-24T23"


def test_what_is_not_landed_is_named_unless_it_waits_in_the_spool(data: Path) -> None:
    at = datetime.fromtimestamp(LOST_AT / 1000 + 3600, UTC)
    noting = Accepted(data)
    noting.note("acme", LOST_AT, LOST.encode())
    noting.close()
    missing, _, named = found(data, at)
    assert (missing, named) == (1, [LOST.replace("-", "")])
    spool = Spool(data, IngestSettings())
    spool.append([Webhook(None, b"{}", [("ingest_id", LOST.encode())], LOST_AT)])
    spool.close()
    assert found(data, at)[0] == 0


def test_what_was_dropped_for_its_age_is_not_missing(data: Path) -> None:
    day = data / "raw" / "date=2026-11-22"
    since = datetime(2026, 11, 22, tzinfo=UTC)
    gone = day.rename(data / day.name)
    (data / "base" / COVERED).write_text(Covered(day_of(day), {}, day_of(day) + timedelta(2)).json())
    try:
        assert measure(data, CheckSettings(), END, since).measures["reconciliation_accepted_landed"].sum() == 0
        (data / "base" / COVERED).unlink()
        assert measure(data, CheckSettings(), END, since).measures["reconciliation_accepted_landed"].sum() > 0
    finally:
        gone.rename(day)


def test_what_was_landed_without_an_answer_is_counted(data: Path) -> None:
    path = sorted((data / "accepted").glob("2026-11-24T*/acme"))[-1]
    path.write_bytes(path.read_bytes()[:-ID_BYTES])
    assert found(data)[1] > 0


def test_no_id_is_lost_by_a_kill(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from ingest.accepted import Accepted\n"
        "noting = Accepted(Path(sys.argv[1]))\n"
        f"for _ in range(500): noting.note('acme', {LOST_AT}, b'{LOST}')\n"
        "print('noted', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"noted\n"
        os.kill(process.pid, signal.SIGKILL)
    ((source, _, ids),) = accepted_ids(tmp_path, datetime.fromtimestamp(LOST_AT / 1000, UTC))
    assert (source, len(ids)) == ("acme", 500 * ID_BYTES)
