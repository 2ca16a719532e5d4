"""What `smspulse sql` answers, in each format."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from warehouse_records import raw, status

import warehouse
from smspulse.cli import cli
from warehouse import landing, views

SQL = "SELECT sms_id, received_at, flaws FROM status_events ORDER BY sms_id"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    views.publish(tmp_path / "data")
    landing.land(tmp_path / "data", 0, [raw(0, status(7, 6)), raw(1, status(8, 7), seconds=0.25)])
    return tmp_path / "data"


def sql(data: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["sql", "--data", str(data), *arguments])


def test_columns_that_do_not_fit_are_shown_below_each_other(data: Path) -> None:
    wide = sql(data, "SELECT sms_id, received_at, * FROM status_events ORDER BY sms_id").output
    assert re.search(r"│ sms_id +│ 7 ", wide)
    assert re.search(r"│ sms_id +│ 8 ", wide)
    assert "…" not in wide


def test_each_format_has_the_rows(data: Path, tmp_path: Path) -> None:
    csv = sql(data, SQL, "--format", "csv").output.splitlines()
    assert csv == [
        "sms_id,received_at,flaws",
        "7,2026-11-24 12:00:00.000+00:00,[]",
        "8,2026-11-24 12:00:00.250+00:00,[]",
    ]
    assert json.loads(sql(data, SQL, "--format", "json").output)[1] == {
        "sms_id": 8,
        "received_at": "2026-11-24T12:00:00.250Z",
        "flaws": [],
    }
    table = sql(data, SQL).output
    assert "│ 7 " in table
    assert "│ 8 " in table
    for arguments in (("--output", str(tmp_path / "out.parquet")), ()):
        done = sql(data, SQL, "--format", "parquet", *arguments)
        found = (
            pq.read_table(tmp_path / "out.parquet") if arguments else pq.read_table(pa.BufferReader(done.stdout_bytes))
        )
        assert found.schema.field("received_at").type == pa.timestamp("us", tz="UTC")
        assert found["sms_id"].to_pylist() == [7, 8]


def test_a_file_is_replaced_in_one_step(data: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.csv"
    target.write_text("old")
    with target.open() as reader:
        assert sql(data, SQL, "--format", "csv", "--output", str(target)).exit_code == 0
        assert reader.read() == "old"
    assert target.read_text().startswith("sms_id,")
    assert {path.name for path in tmp_path.iterdir()} == {"data", "out.csv"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["FROM nowhere"], "Table with name nowhere does not exist"),
        (["FROM nowhere", "--format", "parquet"], "Table with name nowhere does not exist"),
        (["SELECT 1", "--output", "x.csv"], "give --output a --format"),
        (["SELECT 1", "--format", "csv", "--output", "/nonexistent/x.csv"], "cannot write to /nonexistent/x.csv"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(data: Path, arguments: list[str], words: str) -> None:
    done = sql(data, *arguments)
    assert done.exit_code != 0
    assert words in done.output


def test_parquet_is_not_written_to_a_terminal(data: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "smspulse", "sql", "--data", str(data), SQL, "--format", "parquet"]
    done = subprocess.run(command, stdout=theirs, stderr=subprocess.PIPE, text=True, check=False)
    os.close(theirs)
    os.close(ours)
    assert done.returncode == 2
    assert "name a file with --output" in done.stderr


def test_a_watched_statement_is_answered_again_when_its_rows_change(data: Path) -> None:
    command = [sys.executable, "-m", "smspulse", "sql", "--data", str(data), SQL, "--format", "json", "--watch", "0.05"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None

        def seen() -> list[Any]:
            assert process.stdout is not None
            return [row["sms_id"] for row in json.loads(process.stdout.readline())]

        assert seen() == [7, 8]
        landing.land(data, 2, [raw(2, status(9, 6))])
        assert seen() == [7, 8, 9]
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == ""
        assert process.wait(10) == 0


def test_python_gets_pandas_or_arrow(data: Path) -> None:
    frame = warehouse.query(str(data), SQL)
    assert isinstance(frame, pd.DataFrame)
    table = warehouse.query(data, "SELECT sms_id FROM status_events WHERE sms_id > ?", [7], arrow=True)
    assert table.to_pydict() == {"sms_id": [8]}
