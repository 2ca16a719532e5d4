"""What the documentation says can be typed, exists; generated pages are current."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import duckdb
import pytest
import reference_pages

from gateway.statuses import STATUSES
from smspulse.cli.main import cli
from warehouse import catalog
from warehouse.reader import open_warehouse

ROOT = Path(__file__).parents[3]
PAGES = [ROOT / "README.md", *(p for p in sorted((ROOT / "docs").rglob("*.md")) if "decisions" not in p.parts)]
WRITTEN = [page for page in PAGES if page.parent != reference_pages.REFERENCE_FOLDER]


def typed(page: Path) -> Iterator[list[str]]:
    """Return each command of ours in a block of code, as a shell splits it."""
    for line in page.read_text().splitlines():
        if found := re.match(r" {4,}(?:[A-Z_]+=\S+ )*(smspulse .*)", line):
            words = shlex.split(found[1], comments=True)[1:]
            yield words[: words.index("|")] if "|" in words else words


COMMANDS = [pytest.param(words, id=f"{page.stem}: {' '.join(words)[:60]}") for page in WRITTEN for words in typed(page)]


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[duckdb.DuckDBPyConnection]:
    data = tmp_path_factory.mktemp("data")
    catalog.publish_views(data)
    with open_warehouse(data) as connection:
        yield connection


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_exists_and_every_query_runs(words: list[str], warehouse: duckdb.DuckDBPyConnection) -> None:
    command: click.Command = cli
    context = click.Context(cli)
    name = "smspulse"
    while isinstance(command, click.Group) and words:
        name, words = words[0], words[1:]
        found = command.get_command(context, name)
        assert found is not None, name
        command = found
    parsed = command.make_context(name, list(words), parent=context)  # parses, and runs nothing
    if name == "sql":
        warehouse.execute(parsed.params["statement"])


def test_there_are_some_to_test() -> None:
    assert len(COMMANDS) > 20


@pytest.mark.parametrize(
    ("name", "text"), [pytest.param(*each, id=each[0]) for each in reference_pages.generate_pages().items()]
)
def test_the_reference_is_current(name: str, text: str) -> None:
    assert (reference_pages.REFERENCE_FOLDER / name).read_text() == text, "python docs/reference_pages.py"


def test_the_runbook_says_of_each_failure_what_the_view_says() -> None:
    text = (ROOT / "docs" / "runbooks" / "failure_ratio.md").read_text()
    for status in STATUSES.values():
        if status.is_failure:
            assert f"| {status.id}, {status.name} | {status.likely_cause} | {status.what_to_do} |" in text


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.stem)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / target).exists(), target
