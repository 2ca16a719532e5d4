"""At its end, a process of tests reports leaked objects, and no others."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import ctypes
import os

import duckdb
import pytest
from hypothesis import given, strategies


@given(strategies.booleans())
def test_a_property(value):
    assert value in (False, True)


@pytest.fixture
def connection():
    with duckdb.connect() as opened:
        yield opened


def test_that_names_a_class_of_duckdb(connection: duckdb.DuckDBPyConnection):
    if "LEAK" in os.environ:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))
"""


@pytest.mark.parametrize("leak", [False, True])
def test_duckdb_reports_a_leaked_connection_and_nothing_else(tmp_path: Path, leak: bool) -> None:
    shutil.copy(Path(__file__).parents[2] / "conftest.py", tmp_path)
    (tmp_path / "test_classes.py").write_text(TESTS)
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:schemathesis", tmp_path],
        cwd=tmp_path,
        env=os.environ | ({"LEAK": "1"} if leak else {}),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert "2 passed" in ended.stdout, ended.stdout + ended.stderr
    assert ("nanobind: leaked" in ended.stderr) == leak, ended.stderr
