"""A folder that is made once, and is as it was made for each test."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class RestoredFolder:
    """A folder of which a copy is kept.

    Views name their folder, so it is the same for all tests, one after the other.

    Args:
        folder: The folder as each test is to get it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._copy = folder, folder.with_name(f"{folder.name} as it was made")
        folder.rename(self._copy)

    @contextmanager
    def restored(self, kept: Path) -> Iterator[Path]:
        """Yield the folder as it was made; move what became of it to another place afterwards."""
        shutil.copytree(self._copy, self._folder)
        yield self._folder
        if self._folder.exists():  # and was not moved
            self._folder.rename(kept)
