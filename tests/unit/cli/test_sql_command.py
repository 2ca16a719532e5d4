"""Results of `smspulse sql` in each format."""

import codecs
import csv
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from landing import land_records
from warehouse_records import raw, status

import warehouse
from smspulse.cli.main import cli, main
from smspulse.cli.sql_export import ENCODERS
from warehouse import catalog

SQL = "SELECT sms_id, received_at, flaws FROM status_events ORDER BY sms_id"


def fill(data: Path) -> Path:
    catalog.publish_views(data)
    land_records(data, 0, [raw(0, status(7, 6)), raw(1, status(8, 7), seconds=0.25)])
    return data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A warehouse that no test changes."""
    return fill(tmp_path_factory.mktemp("warehouse") / "data")


def sql(data: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["sql", "--data", str(data), *arguments])


def test_columns_that_do_not_fit_are_shown_vertically(data: Path) -> None:
    wide = sql(data, "SELECT sms_id, received_at, * FROM status_events ORDER BY sms_id").output
    assert re.search(r"│ sms_id +│ 7 ", wide)
    assert re.search(r"│ sms_id +│ 8 ", wide)
    assert "…" not in wide


def test_each_format_has_the_rows(data: Path, tmp_path: Path) -> None:
    csv = sql(data, SQL, "--format", "csv").output.splitlines()
    assert csv == [
        "sms_id,received_at,flaws",
        "7,2026-11-24 12:00:00+00,[]",
        "8,2026-11-24 12:00:00.25+00,[]",
    ]
    assert json.loads(sql(data, SQL, "--format", "json").output)[1] == {
        "sms_id": 8,
        "received_at": "2026-11-24T12:00:00.250000Z",
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


ENUM = "ENUM('calm', 'wild')"
LONG = list(range(3000))
VALUES = [
    # A literal, its type, and its form in JSON.
    ("true", "BOOLEAN", True),
    ("'-128'", "TINYINT", -128),
    ("9223372036854775807", "BIGINT", 2**63 - 1),
    ("18446744073709551615", "UBIGINT", 2**64 - 1),
    ("170141183460469231731687303715884105727", "HUGEINT", 2**127 - 1),
    ("340282366920938463463374607431768211455", "UHUGEINT", 2**128 - 1),
    ("'123456789012345678901234567890123456789012345'", "BIGNUM", 123456789012345678901234567890123456789012345),
    (
        "'12345678901234567890.123456789012345678'",
        "DECIMAL(38, 18)",
        Decimal("12345678901234567890.123456789012345678"),
    ),
    ("1e-12", "DOUBLE", Decimal("1e-12")),
    ("0.1", "FLOAT", Decimal("0.10000000149011612")),
    ("'nan'", "DOUBLE", "nan"),
    ("'-inf'", "DOUBLE", "-inf"),
    ("'\\x00\\xFFab\"'", "BLOB", r"\x00\xFFab\x22"),
    ("''", "VARCHAR", ""),
    ("'NULL'", "VARCHAR", "NULL"),
    ("NULL", "VARCHAR", None),
    ("'a\n\"b\", \x1b[31m\x9b\u202e'", "VARCHAR", 'a\n"b", \x1b[31m\x9b\u202e'),
    ("'2026-11-24'", "DATE", "2026-11-24"),
    ("'infinity'", "DATE", "infinity"),
    ("'12:00:00.000001'", "TIME", "12:00:00.000001"),
    ("'12:00:00+02'", "TIMETZ", "12:00:00+02"),
    ("'2026-11-24 12:00:00.123456+01'", "TIMESTAMPTZ", "2026-11-24T11:00:00.123456Z"),
    ("'2026-11-24 12:00:00'", "TIMESTAMP", "2026-11-24T12:00:00.000000"),
    ("'2026-11-24 12:00:00'", "TIMESTAMP_S", "2026-11-24T12:00:00.000000"),
    ("'2026-11-24 12:00:00.123'", "TIMESTAMP_MS", "2026-11-24T12:00:00.123000"),
    ("'2026-11-24 12:00:00.123456789'", "TIMESTAMP_NS", "2026-11-24T12:00:00.123456789"),
    ("'1 month 2 days 3 hours 4 microseconds'", "INTERVAL", "1 month 2 days 03:00:00.000004"),
    ("'550e8400-e29b-41d4-a716-446655440000'", "UUID", "550e8400-e29b-41d4-a716-446655440000"),
    ("'calm'", ENUM, "calm"),
    ("'101'", "BIT", "101"),
    ("range(3000)", "BIGINT[]", LONG),
    ("['NULL', NULL, '', 'a, b', 'it''s']", "VARCHAR[]", ["NULL", None, "", "a, b", "it's"]),
    ("['0.5', 'nan']", "DOUBLE[2]", [Decimal("0.5"), "nan"]),
    ("['2026-11-24 12:00:00+00']", "TIMESTAMPTZ[]", ["2026-11-24T12:00:00.000000Z"]),
    ("{'a': 1, 'b': ['x']}", "STRUCT(a INTEGER, b VARCHAR[])", {"a": 1, "b": ["x"]}),
    ("{'a': NULL, 'b': 1e-12}", 'STRUCT("a" TIMESTAMPTZ, "b" DOUBLE)', {"a": None, "b": Decimal("1e-12")}),
    ("NULL", "STRUCT(b DOUBLE)", None),
    ("MAP {'k': 1e-12}", "MAP(VARCHAR, DOUBLE)", {"k": Decimal("1e-12")}),
    ("MAP {'a=b': 'x, y'}", "MAP(VARCHAR, VARCHAR)", {"a=b": "x, y"}),
    ("'{\"a\": [1e-12]}'", "JSON", {"a": [Decimal("1e-12")]}),
]


@pytest.mark.parametrize(
    ("text", "type_", "expected"), VALUES, ids=[f"{text:.20} {type_}" for text, type_, _ in VALUES]
)
def test_every_type_has_a_lossless_form(data: Path, tmp_path: Path, text: str, type_: str, expected: object) -> None:
    statement = f"SELECT {text}::{type_} AS value"

    def no_constant(word: str) -> None:
        raise AssertionError(word)  # NaN and Infinity are not JSON

    answer = sql(data, statement, "--format", "json").stdout
    assert json.loads(answer, parse_float=Decimal, parse_constant=no_constant) == [{"value": expected}]
    assert sql(data, statement, "--format", "csv", "--output", str(tmp_path / "out.csv")).exit_code == 0
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        # As a program does that knows the type: an empty unquoted cell is null.
        (written,) = connection.execute(
            f"SELECT value::{type_}::VARCHAR FROM read_csv(?, columns = {{'value': 'VARCHAR'}}, all_varchar = true, "  # noqa: S608
            "header = true, auto_detect = false, delim = ',', quote = '\"', escape = '\"', new_line = '\\n', "
            "allow_quoted_nulls = false, max_line_size = 4000000)",
            [str(tmp_path / "out.csv")],
        ).fetchone() or (None,)
        (meant,) = connection.execute(f"SELECT ({text}::{type_})::VARCHAR").fetchone() or (None,)
    assert written == meant


def test_a_union_names_the_kind_of_its_value(data: Path) -> None:
    statement = "SELECT union_value(number := 2) AS value"
    assert json.loads(sql(data, statement, "--format", "json").stdout) == [{"value": {"number": 2}}]
    assert sql(data, statement, "--format", "csv").stdout.splitlines() == ["value", '"{""number"":2}"']


def test_sums_of_integers_are_integers(data: Path) -> None:
    statement = "SELECT sum(sms_id * 1000000000000000000) AS n FROM status_events"
    assert sql(data, statement, "--format", "json").stdout == '[{"n":15000000000000000000}]\n'
    assert sql(data, statement, "--format", "csv").stdout == "n\n15000000000000000000\n"
    assert "15000000000000000000" in sql(data, statement).stdout


def test_empty_text_is_not_null_in_csv(data: Path) -> None:
    statement = "SELECT '' AS empty, NULL AS nothing, 'NULL' AS word"
    assert sql(data, statement, "--format", "csv").stdout == 'empty,nothing,word\n"",,NULL\n'


SEPARATORS = {",": csv.QUOTE_MINIMAL, ";": csv.QUOTE_NONE, "\t": csv.QUOTE_NONE, "|": csv.QUOTE_NONE}
"""Separators of spreadsheets. One that expects another separator ignores a quote within a cell."""


FORMULAS = ("=", "+", "-", "@", chr(65309))


def cells(written: str) -> Iterator[str]:
    for separator, quoting in SEPARATORS.items():
        for row in csv.reader(io.StringIO(written, newline=""), delimiter=separator, quoting=quoting):
            yield from row


def test_no_text_is_a_formula_in_a_file_for_spreadsheets(data: Path) -> None:
    listed = "chr(9), chr(10), chr(13), ' ', '\"', ';', '|', 'a', '=', '+', '-', '@', chr(65309), ''"
    one = f"(SELECT unnest([{listed}]) AS x)"
    statement = f"SELECT a.x || b.x || c.x || '1' AS \"=1;@a\" FROM {one} a, {one} b, {one} c"  # noqa: S608
    written = sql(data, statement, "--format", "spreadsheet").stdout_bytes.decode("utf-8-sig")
    found = list(cells(written))
    assert len(found) > 4 * 14**3
    assert [cell for cell in found if cell.lstrip(' \t"').startswith(FORMULAS)] == []
    harmful = cells(sql(data, statement, "--format", "csv").stdout_bytes.decode())
    assert any(cell.startswith("=1") for cell in harmful), "this is what it is about"


def test_a_file_for_spreadsheets_changes_only_texts_that_would_be_formulas(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    statement = (
        "SELECT '+49157, ok' AS a, -5 AS n, -0.5 AS d, NULL AS nothing, 'ä - b' AS t, [-1] AS l, '-x'::BLOB AS o"
    )
    assert sql(data, statement, "--format", "spreadsheet", "--output", str(path)).exit_code == 0
    assert path.read_bytes().startswith(codecs.BOM_UTF8), "or Excel takes it for another encoding"
    assert path.read_text("utf-8-sig") == "a,n,d,nothing,t,l,o\n\"'+49157, ok\",-5,-0.5,,ä - b,[-1],'-x\n"


def test_all_columns_of_the_same_name_are_in_the_output(data: Path) -> None:
    assert json.loads(sql(data, "SELECT 1 AS a, 2 AS a", "--format", "json").stdout) == [{"a": 1, "a_1": 2}]


@pytest.mark.parametrize(
    "statement",
    [
        *("SHOW TABLES", "DESCRIBE messages", "SUMMARIZE messages", "VALUES (1)", "EXPLAIN FROM messages"),
        *("EXPLAIN ANALYZE SELECT 1", "FROM messages; -- the end", "PIVOT status_events ON status_id USING count(*)"),
        *(
            "SELECT 'ä;' AS \"--\" -- ; the end",
            "CREATE TEMP TABLE t AS SELECT 1 AS a; FROM t",
            "SET TimeZone = 'Asia/Tokyo'; SELECT now()",
        ),
        "SET VARIABLE day = DATE '2026-11-24'; FROM raw_webhooks WHERE date = getvariable('day')",
    ],
)
@pytest.mark.parametrize("form", ENCODERS)
def test_every_statement_that_reads_has_rows_in_each_format(data: Path, statement: str, form: str) -> None:
    done = sql(data, statement, "--format", form)
    assert done.exit_code == 0, done.output
    assert len(done.stdout_bytes) > 2


@pytest.mark.parametrize(
    "statement",
    [
        *("COPY (SELECT 1) TO '{there}'", "SELECT 1; COPY (SELECT 1) TO '{there}'", "EXPORT DATABASE '{there}'"),
        *("EXPLAIN ANALYZE COPY (SELECT 1) TO '{there}'", "EXPLAIN /**/ ANALYZE COPY (SELECT 1) TO '{there}'"),
        *("ATTACH '{there}'", "PREPARE p AS COPY (SELECT 1) TO '{there}'; EXECUTE p", "SELECT 1) TO '{there}'; --"),
        "EXPLAIN (FORMAT json) COPY (SELECT 1) TO '{there}'",
        *(
            "FROM read_text('{secret}')",
            "FROM '{secret}'",
            "FROM glob('{secret}*')",
            "FROM read_csv('{data}/../secret')",
        ),
        "SET enable_external_access = true; FROM read_text('{secret}')",
        "SET allowed_directories = ['/']; FROM read_text('{secret}')",
        *(
            "INSTALL httpfs",
            "LOAD httpfs",
            "CREATE PERSISTENT SECRET s (TYPE http)",
            "SET profiling_output = '{there}'",
        ),
        *("CREATE TABLE t AS SELECT 1", "DROP VIEW messages", "CALL enable_logging(storage_path = '{there}')"),
    ],
)
def test_a_statement_reads_the_data_folder_and_nothing_else(data: Path, tmp_path: Path, statement: str) -> None:
    (tmp_path / "secret").write_text("secret words")

    def state() -> dict[Path, bytes]:
        return {path: path.read_bytes() for root in (tmp_path, data) for path in root.rglob("*") if path.is_file()}

    before = state()
    # Within the data folder, which DuckDB itself would allow.
    names = {"there": data / "raw" / "date=2026-11-24" / "made.parquet", "data": data, "secret": tmp_path / "secret"}
    done = sql(data, statement.format(**names), "--format", "json")
    assert done.exit_code != 0, done.output
    assert "secret words" not in done.output
    assert state() == before


def test_unrestricted_statements_may_read_other_files(data: Path, tmp_path: Path) -> None:
    (tmp_path / "prices.csv").write_text("device_id,price\n1,0.05\n")
    prices = f"'{tmp_path}/prices.csv'"
    joined = f"SELECT price FROM status_events JOIN {prices} USING (device_id) LIMIT 1"  # noqa: S608 - ours
    assert sql(data, joined).exit_code != 0
    assert json.loads(sql(data, joined, "--format", "json", "--unrestricted").stdout) == [{"price": 0.05}]
    assert sql(data, f"COPY status_events TO '{tmp_path}/out.csv'", "--unrestricted").exit_code == 0
    assert (tmp_path / "out.csv").exists()


def test_a_restricted_connection_does_not_affect_others(data: Path) -> None:
    with warehouse.open_warehouse(data, restricted=True), warehouse.open_warehouse(data) as other:
        other.execute("SET memory_limit = '1GB'")


@pytest.mark.parametrize("statement", ["", "  ", ";", "/* nothing */"])
def test_a_missing_statement_is_reported_in_one_line(
    data: Path, statement: str, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setattr("sys.argv", ["smspulse", "sql", "--data", str(data), statement])
    with pytest.raises(SystemExit, match="2"):
        main()
    errors = capfd.readouterr().err
    assert errors == 'smspulse: there is no SQL to run: give a statement, such as smspulse sql "FROM freshness"\n'


def test_a_file_is_replaced_atomically(data: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.csv"
    target.write_text("old")
    with target.open() as reader:
        assert sql(data, SQL, "--format", "csv", "--output", str(target)).exit_code == 0
        assert reader.read() == "old"
    assert target.read_text().startswith("sms_id,")
    assert {path.name for path in tmp_path.iterdir()} == {"out.csv"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["FROM nowhere"], "Table with name nowhere does not exist"),
        (["FROM nowhere", "--format", "parquet"], "Table with name nowhere does not exist"),
        (["SELECT 1", "--output", "x.csv"], "give --output a --format"),
        (["SELECT 1", "--format", "csv", "--output", "/nonexistent/x.csv"], "cannot write to /nonexistent/x.csv"),
    ],
)
def test_an_error_is_reported_in_one_line(data: Path, arguments: list[str], words: str) -> None:
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


def test_a_watched_statement_is_printed_again_when_its_rows_change(tmp_path: Path) -> None:
    data = fill(tmp_path / "data")
    command = [sys.executable, "-m", "smspulse", "sql", "--data", str(data), SQL, "--format", "json", "--watch", "0.05"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None

        def seen() -> list[Any]:
            assert process.stdout is not None
            return [row["sms_id"] for row in json.loads(process.stdout.readline())]

        assert seen() == [7, 8]
        land_records(data, 2, [raw(2, status(9, 6))])
        assert seen() == [7, 8, 9]
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == ""
        assert process.wait(10) == 0


def test_python_gets_pandas_or_arrow(data: Path) -> None:
    frame = warehouse.query(str(data), SQL)
    assert isinstance(frame, pd.DataFrame)
    table = warehouse.query(data, "SELECT sms_id FROM status_events WHERE sms_id > ?", [7], arrow=True)
    assert table.to_pydict() == {"sms_id": [8]}
