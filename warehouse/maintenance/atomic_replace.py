"""Folders of files that change in one step, beside readers and landers.

The new state of a folder is made of hard links beside it, and both folders are exchanged. Names are never used again
for other content, so who has listed the old state and opens its files either finds them as they were or gets an error:
a query answers from one state or not at all. That holds as well for a query that lists a folder more than once, as long
as a file of each state is not in the next one: `add_rotating_seed` sees to that where it matters.

A process that is killed leaves the old state or the new one, and files that the next one sweeps.
"""

import ctypes
import errno
import os
import shutil
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from uuid import uuid4

from warehouse.durable_files import fsync_folder, lock_folder
from warehouse.errors import CannotExchangeError
from warehouse.file_names import SEED_DATE, SEED_FILE, TEMPORARY_FOLDER

_RENAME_EXCHANGE: Final = 2  # linux/fs.h
_AT_FDCWD: Final = -100
_ROTATING_SEED: Final = "turn-"
_SETTLE_S: Final = 0.5
"""Longer than a query takes from its list of folders to its lists of their files, also on a busy machine."""


def unique_suffix() -> str:
    """Return a part of a file name that no file has yet."""
    return uuid4().hex[:12]


@contextmanager
def lock_maintenance(data: Path) -> Iterator[Path]:
    """Wait until no other process changes what was landed, and give a folder for temporary files.

    Raises:
        OSError: The data folder is not writable.
    """
    folder = data / TEMPORARY_FOLDER / "upkeep"
    folder.mkdir(parents=True, exist_ok=True)
    with lock_folder(folder):
        for orphan in folder.iterdir():
            shutil.rmtree(orphan)
        scratch = folder / unique_suffix()
        scratch.mkdir()
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)  # or the next one does it


def replace_files(folder: Path, scratch: Path, removed: Collection[Path], added: Mapping[Path, Path]) -> None:
    """Let files of a folder go and others come, in one step, durable on return. All else in it stays.

    Where files come into a folder that was made just now, it waits until that is half a second old: see
    `create_parent_folders`.

    Args:
        folder: Not changed by others meanwhile, but for landers.
        scratch: On the same file system.
        removed: Files of the folder, at any depth.
        added: By where they will be: files elsewhere on the file system.

    Raises:
        CannotExchangeError: The file system cannot do it. Nothing was changed.
        OSError: Nor can it do something else. Nothing was changed.
    """
    for path in added.values():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    staged = scratch / unique_suffix()
    create_parent_folders(added)
    empty_folder_times = [
        parent.stat().st_mtime for parent in {place.parent for place in added} if not any(parent.iterdir())
    ]
    age = time.time() - max(empty_folder_times, default=0)
    time.sleep(min(max(_SETTLE_S - age, 0), _SETTLE_S))  # not longer, if the clock was set back
    with lock_folder(folder.parent):  # no lander links a file meanwhile
        found = [*folder.rglob("*")]
        kept = {path: path for path in found if path.is_file() and path not in removed}
        folders = {path: staged / path.relative_to(folder) for path in (folder, *found) if path.is_dir()}
        for made in folders.values():
            made.mkdir()
        for place, path in {**kept, **added}.items():
            target = staged / place.relative_to(folder)
            if place.name.startswith(_ROTATING_SEED):
                target = target.with_name(f"{_ROTATING_SEED}{unique_suffix()}.parquet")
            os.link(path, target)
        for path, made in folders.items():
            shutil.copystat(path, made)  # an empty one stays as old as it is
            fsync_folder(made)
        _exchange_folders(staged, folder)
        fsync_folder(folder.parent)
        fsync_folder(scratch)
    shutil.rmtree(staged)


def create_parent_folders(paths: Iterable[Path]) -> None:
    """Make the folders of files to come, for good. Made well before the files, `replace_files` need not wait.

    A query lists the folders first and then the files of each, so it would miss files that come meanwhile in a folder
    that is new, and nothing would be gone that told so.
    """
    for folder in {place.parent for place in paths}:
        folder.mkdir(parents=True, exist_ok=True)


def add_rotating_seed(folder: Path) -> None:
    """Give a dataset's folder a file that has another name in each of its states.

    For views that list the folder more than once and must not see two states of it: one of the two lists names a file
    that is gone, and the query fails.

    Raises:
        OSError: The folder is not writable.
    """
    seeds = folder / f"date={SEED_DATE}"
    if not any(seeds.glob(f"{_ROTATING_SEED}*")):
        os.link(seeds / SEED_FILE, seeds / f"{_ROTATING_SEED}{unique_suffix()}.parquet")


def _exchange_folders(first: Path, second: Path) -> None:
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        raise CannotExchangeError(second, "no renameat2 in the C library")
    if rename(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE):
        number = ctypes.get_errno()
        if number in {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}:
            raise CannotExchangeError(second, os.strerror(number))
        raise OSError(number, os.strerror(number), str(second))
