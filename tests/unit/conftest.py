"""Fixtures of unit tests."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from warehouse import views


class _Published(NamedTuple):
    """A data folder whose views were published, and a copy of it as it was then."""

    folder: Path
    copy: Path


@pytest.fixture(scope="session")
def _published(tmp_path_factory: pytest.TempPathFactory) -> _Published:
    parent = tmp_path_factory.mktemp("published")
    found = _Published(parent / "data", parent / "copy")
    found.folder.mkdir()
    views.publish(found.folder)
    found.folder.rename(found.copy)
    return found


@pytest.fixture
def published(_published: _Published, tmp_path: Path) -> Iterator[Path]:
    """A data folder in which nothing has landed yet, with its views. Afterwards it is in the test's own folder.

    To publish views takes a quarter of a second of processor time. They name their folder, so it is the same for all
    tests of a process, one after the other.
    """
    shutil.copytree(_published.copy, _published.folder)
    yield _published.folder
    _published.folder.rename(tmp_path / "data")
