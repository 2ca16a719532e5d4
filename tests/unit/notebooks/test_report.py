"""`docs/notebooks/` is current: the same notebooks, words, columns and pictures."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rendered import FOLDER, make

from notebooks.report import NOTEBOOK_NAMES

_AGAIN = "python tests/support/rendered.py"


def kind(text: str) -> str:
    """Return a page without its data: numbers, and the rows of its tables."""
    lines = text.splitlines()
    kept = [
        line
        for number, line in enumerate(lines)
        if not line.startswith("| ") or "| ---" in "".join(lines[number + 1 : number + 2])
    ]
    return re.sub(r"\d[\d.,:]*", "0", "\n".join(kept))


def titles(text: str) -> set[str]:
    """Return the texts of a picture without numbers."""
    root = ElementTree.fromstring(text)  # noqa: S314 - our own file
    texts = {element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}text")}
    return {words for words in texts if not re.search(r"\d", words)}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str]]:
    folder = tmp_path_factory.mktemp("notebooks")
    return folder, make(folder)


def test_docs_have_every_notebook_and_no_other() -> None:
    assert set(NOTEBOOK_NAMES) == {path.stem for path in Path("notebooks").glob("*.py")} - {
        "__init__",
        "common",
        "report",
    }
    assert {path.stem for path in FOLDER.glob("*.md")} == set(NOTEBOOK_NAMES)


@pytest.mark.parametrize("name", NOTEBOOK_NAMES)
def test_the_page_is_current(name: str, made: tuple[Path, set[str]]) -> None:
    new, _ = made
    assert kind((FOLDER / f"{name}.md").read_text()) == kind((new / f"{name}.md").read_text()), _AGAIN
    pictures = [path.name for path in sorted(new.glob(f"{name}*.svg"))]
    assert pictures == [path.name for path in sorted(FOLDER.glob(f"{name}*.svg"))]
    assert len(pictures) == (name != "first_steps")
    for picture in pictures:
        assert titles((FOLDER / picture).read_text()) == titles((new / picture).read_text()), _AGAIN


def test_no_personal_data_is_shown(made: tuple[Path, set[str]]) -> None:
    new, secrets = made
    assert len(secrets) > 1_000
    for path in (*FOLDER.iterdir(), *new.iterdir()):
        text = path.read_text()
        assert not [secret for secret in secrets if secret in text], path.name
        assert len(text) < 60_000
