"""Numbers and folders that a command cannot use are refused in one line, before anything is done."""

from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from smspulse.cli.main import cli
from smspulse.cli.options import FiniteFloat


def numeric_options(
    command: click.Command, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Option]]:
    if isinstance(command, click.Group):
        for name, each in command.commands.items():
            yield from numeric_options(each, (*path, name))
    for each in command.params:
        if isinstance(each, click.Option) and isinstance(each.type, click.types._NumberParamTypeBase):
            yield path, each


OPTIONS = [pytest.param(*found, id=" ".join((*found[0], found[1].opts[0]))) for found in numeric_options(cli)]
UNBOUNDED = {"--seed"}


@pytest.mark.parametrize(("path", "option"), OPTIONS)
def test_every_numeric_option_is_bounded(path: tuple[str, ...], option: click.Option) -> None:
    if option.opts[0] in UNBOUNDED:
        return
    assert isinstance(option.type, click.IntRange | FiniteFloat), "no bounds, or NaN gets through"
    assert option.type.min is not None
    if option.opts[0].endswith("port"):
        assert (option.type.min, option.type.max) == (0, 65_535)


@pytest.mark.parametrize(
    "arguments",
    [
        ("up", "--port", "99999"),
        ("up", "--port", "-1"),
        ("up", "--workers", "1000000"),
        ("up", "--for", "nan"),
        ("up", "--for", "inf"),
        ("ingest", "--port", "65536"),
        ("ingest", "--processes", "0"),
        ("land", "--flush-interval", "0"),
        ("land", "--flush-interval", "inf"),
        ("status", "--port", "99999"),
        ("doctor", "--port", "99999"),
        ("page", "--port", "99999"),
        ("page", "--ingest-port", "99999"),
        ("sql", "--watch", "nan", "SELECT 1"),
        ("alerts", "backtest", "--budget", "nan"),
        ("alerts", "backtest", "--threshold", "2"),
        ("simulate", "--url", "http://127.0.0.1:1/webhooks/a/b", "--rate", "0"),
        ("simulate", "--url", "http://127.0.0.1:1/webhooks/a/b", "--time-scale", "-1"),
    ],
)
def test_a_number_out_of_bounds_is_named_with_its_bounds(arguments: tuple[str, ...], tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, arguments, env={"SMSPULSE_DATA": str(tmp_path / "data")})
    assert done.exit_code == 2
    assert "Error: Invalid value for '--" in done.output
    assert arguments[-1] in done.output or arguments[-2] in done.output
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("name", ["a?b", "a\\b", "a\udcffb"])
@pytest.mark.parametrize("command", ["up", "broker", "ingest", "stream", "land", "rebuild"])
def test_a_path_where_duckdb_opens_no_file_is_refused_at_the_start(tmp_path: Path, name: str, command: str) -> None:
    done = CliRunner().invoke(cli, [command], env={"SMSPULSE_DATA": str(tmp_path / name / "data")})
    assert "where DuckDB opens no file" in str(done.exception)
    assert list(tmp_path.iterdir()) == []
