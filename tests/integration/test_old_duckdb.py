"""Older versions of DuckDB open the catalog while the lander runs."""

import os
import subprocess
import venv
from pathlib import Path

import pytest
from landing import land_records

from core import topics
from warehouse import catalog
from warehouse.views import VIEWS

QUERY = """
import sys, duckdb
with duckdb.connect(sys.argv[1], read_only=True) as connection:
    names = connection.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()
    for (name,) in names:
        connection.execute(f"SELECT * FROM {name}").fetchall()
    connection.execute("FROM messages_as_of('2026-11-24')").fetchall()
    connection.execute("SET TimeZone = 'Asia/Kathmandu'")
    newest = "SELECT rows, epoch_ms(newest_recorded_at) FROM freshness WHERE dataset = 'raw'"
    print(duckdb.__version__, len(names), *connection.execute(newest).fetchone())
"""


class Webhook:
    topic, partition, timestamp, key, headers = topics.RAW, 0, 1_795_521_600_000, b"acme:1", [("source", b"acme")]
    value = b'{"sms_id": 1, "status_id": 7}'

    def __init__(self, offset: int) -> None:
        self.offset = offset


@pytest.mark.parametrize("version", ["1.2.2", "1.4.4"])
def test_an_older_duckdb_reads_the_views(tmp_path: Path, version: str) -> None:
    data = tmp_path / "data"
    published = catalog.publish_views(data)
    land_records(data, 0, [Webhook(0), Webhook(1)])
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    # Every version of DuckDB converts TIMESTAMPTZ with pytz.
    install = [python, "-m", "pip", "install", "--quiet", f"duckdb=={version}", "pytz"]
    installed = subprocess.run(install, capture_output=True, text=True, check=False)
    if installed.returncode != 0:
        line = f"duckdb {version} cannot be installed: {installed.stderr.strip().splitlines()[-1:]}"
        if os.environ.get("SMSPULSE_REQUIRE_KAFKA") == "1":
            pytest.fail(line, pytrace=False)
        pytest.skip(line)
    answer = subprocess.run([python, "-c", QUERY, published], capture_output=True, text=True, check=True)
    expected = (version, len(VIEWS) + 1, 2, Webhook.timestamp)  # including the view `meta`
    assert answer.stdout.split() == [str(each) for each in expected]
