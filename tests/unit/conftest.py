"""Fixtures of unit tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from restored import RestoredFolder

from warehouse import catalog


@pytest.fixture(scope="session")
def _published(tmp_path_factory: pytest.TempPathFactory) -> RestoredFolder:
    folder = tmp_path_factory.mktemp("published") / "data"
    folder.mkdir()
    catalog.publish_views(folder)
    return RestoredFolder(folder)


@pytest.fixture
def published(_published: RestoredFolder, tmp_path: Path) -> Iterator[Path]:
    """A data folder in which nothing has landed yet, with its views, to publish which takes a quarter of a second."""
    with _published.restored(tmp_path / "data") as data:
        yield data
