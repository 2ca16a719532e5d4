"""A folder that is created once and restored for each test."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class RestoredFolder:
    """A folder of which a copy is kept.

    Views name their folder, so all tests use the same path, one after the other.

    Args:
        folder: The folder in its original state.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._copy = folder, folder.with_name(f"{folder.name} original")
        folder.rename(self._copy)

    @contextmanager
    def restored(self, kept: Path) -> Iterator[Path]:
        """Restore and yield the folder; move it to another path afterwards."""
        shutil.copytree(self._copy, self._folder)
        yield self._folder
        if self._folder.exists():  # the test has not moved it
            self._folder.rename(kept)
