"""Each command works on the given data folder, also if it is a copy or was moved, and on no other folder."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest
from click.testing import CliRunner, Result
from landing import land_records
from restored import RestoredFolder
from warehouse_records import alert, raw, status, version

from ingest.sources import add_source
from smspulse.cli.main import cli, main
from warehouse import catalog
from warehouse.errors import NoWarehouseError, StaleViewsError
from warehouse.reader import open_warehouse, query


@pytest.fixture(scope="module")
def _given(tmp_path_factory: pytest.TempPathFactory) -> RestoredFolder:
    parent = tmp_path_factory.mktemp("given") / "folders"
    folder = parent / "original"
    catalog.publish_views(folder)
    land_records(folder, 0, [raw(0, status(1, 7))])
    land_records(folder, 0, [version(0, 1, "delivered", last_status_id=7)])
    land_records(folder, 0, [alert(0, "firing")])
    return RestoredFolder(parent)


@pytest.fixture
def original(_given: RestoredFolder, tmp_path: Path) -> Iterator[Path]:
    with _given.restored(tmp_path / "folders") as parent:
        yield parent / "original"


def smspulse(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments, env={"COLUMNS": "200", "SMSPULSE_KAFKA_BOOTSTRAP": None})


def copied(original: Path) -> Path:
    """Copy the folder, and continue in the original."""
    copy = Path(shutil.copytree(original, original.with_name("source=copy")))
    land_records(original, 1, [raw(1, status(2, 6))])
    land_records(original, 1, [version(1, 2, "sent")])
    land_records(original, 1, [alert(1, "firing", device_id=99)])
    return copy


def moved(original: Path) -> Path:
    return original.rename(original.with_name("moved"))


@pytest.mark.parametrize("move", [copied, moved])
def test_a_copied_or_moved_folder_has_its_own_data(original: Path, move: Callable[[Path], Path]) -> None:
    data = move(original)
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    where = ("--data", str(data))
    assert query(data, "SELECT sms_id FROM messages")["sms_id"].tolist() == [1]
    answer = smspulse("sql", *where, "SELECT count(*) AS n FROM raw_webhooks", "--format", "csv")
    assert answer.stdout.split() == ["n", "1"]
    assert smspulse("message", *where, "acme:1").exit_code == 0
    assert smspulse("message", *where, "acme:2").exit_code == 1
    assert "1 rows" not in smspulse("alerts", "list", *where).output
    assert "99" not in smspulse("alerts", "list", *where).output
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*")} == before  # also in a read-only folder


def test_the_original_is_read_next_to_its_copy(original: Path) -> None:
    copy = copied(original)
    count = "SELECT count(*) FROM messages"
    with open_warehouse(copy) as of_copy, open_warehouse(original) as of_original:
        assert (of_copy.execute(count).fetchone(), of_original.execute(count).fetchone()) == ((1,), (2,))


def test_a_command_that_writes_to_a_moved_folder_publishes_its_views_for_any_duckdb(original: Path) -> None:
    data = moved(original)
    assert smspulse("compact", "--data", str(data)).exit_code == 0
    with duckdb.connect(data / catalog.CATALOG_FILE, read_only=True) as connection:
        assert connection.execute("SELECT sms_id FROM messages").fetchall() == [(1,)]


def test_a_moved_folder_of_another_version_is_refused_with_the_command_that_publishes_its_views(original: Path) -> None:
    data = moved(original)
    # As of a version with other views, and without this dataset.
    shutil.rmtree(data / "webhooks")
    with duckdb.connect(data / catalog.CATALOG_FILE) as connection:
        connection.execute(f"CREATE OR REPLACE VIEW meta AS SELECT 'others' AS views, '{original}' AS folder")
    with pytest.raises(StaleViewsError, match="run `smspulse compact` on it once"):
        query(data, "FROM messages")
    assert smspulse("compact", "--data", str(data)).exit_code == 0
    assert len(query(data, "FROM messages")) == 1


@pytest.mark.parametrize(
    "command",
    [
        *(["compact"], ["rebuild"], ["retain"], ["check"], ["alerts", "list"], ["alerts", "backtest"]),
        *(["erase", "--number", "+4915700000001"], ["sql", "FROM messages"], ["message", "acme:1"]),
        *(["alerts", "explain", "x"], ["alerts", "silence", "x", "--for", "2h"], ["check", "--docs"]),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("has_others", [True, False])
def test_a_mistyped_folder_is_refused_and_nothing_is_created(
    tmp_path: Path, command: list[str], *, has_others: bool
) -> None:
    typed = tmp_path / "typo"
    if has_others:
        (typed / "raw").mkdir(parents=True)
        (typed / "raw" / "mine.parquet").write_text("somebody's")
    before = sorted(tmp_path.rglob("*"))
    done = smspulse(*command, "--data", str(typed))
    assert isinstance(done.exception, NoWarehouseError), done.output
    assert f"no warehouse in {typed}" in str(done.exception)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_number_can_be_erased_before_anything_has_landed(tmp_path: Path) -> None:
    add_source(tmp_path, "acme")
    (tmp_path / "spool").mkdir()
    assert smspulse("erase", "--number", "+4915700000001", "--data", str(tmp_path)).exit_code == 0


def test_a_damaged_file_is_reported_in_one_line(
    original: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[Any]
) -> None:
    (landed,) = original.glob("messages/date=2*/*")
    landed.write_bytes(b"damaged" * 100)
    monkeypatch.setattr("sys.argv", ["smspulse", "message", "acme:1", "--data", str(original)])
    with pytest.raises(SystemExit, match="2"):
        main()
    errors = capsys.readouterr().err
    assert errors.startswith("smspulse: the warehouse cannot be read: ")
    assert errors.count("\n") == 1
