"""Atomic replacement of a folder's files, next to running readers and sinks.

The new state of a folder is made of hard links in a second folder, and both folders are exchanged. Names are never used
again for other content. So a query that has listed the old state finds its files unchanged, or fails: it answers from
one state or not at all. This also holds for a query that lists a folder more than once, if each state has a file that
the next one lacks. `add_rotating_seed` provides such a file where it matters.

A process that is killed leaves the old state or the new one, and temporary files that the next process deletes.
"""

import ctypes
import errno
import os
import re
import shutil
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Final
from uuid import uuid4

from core.atomic_file import fsync_folder, lock_folder, try_lock_folder
from warehouse.errors import CannotExchangeError
from warehouse.file_names import SEED_DATE, SEED_FILE, TEMPORARY_FOLDER

# From linux/fs.h.
_RENAME_EXCHANGE: Final = 2
_AT_FDCWD: Final = -100
_ROTATING_SEED: Final = "turn-"
# Seconds. A query takes less from its list of folders to its lists of their files, also on a busy machine.
_SETTLE_S: Final = 0.5


def unique_suffix() -> str:
    """Return a mark that no file has in its name yet."""
    return uuid4().hex[:12]


def name_successor(path: Path) -> Path:
    """Return a path for a file that replaces another one. Its name is the same up to its mark."""
    stem = re.sub(r"-\w+$", "", path.stem)
    return path.with_name(f"{stem}-{unique_suffix()}.parquet")


@contextmanager
def lock_maintenance(data: Path) -> Iterator[Path]:
    """Wait until no other process changes landed files, and yield a folder for temporary files.

    Raises:
        OSError: The data folder is not writable.
    """
    folder = _create_lock_folder(data)
    with lock_folder(folder), _create_scratch_folder(folder) as scratch:
        yield scratch


@contextmanager
def try_lock_maintenance(data: Path) -> Iterator[Path | None]:
    """As `lock_maintenance`, without waiting: yield None if another process changes landed files.

    Raises:
        OSError: The data folder is not writable.
    """
    folder = _create_lock_folder(data)
    with try_lock_folder(folder) as is_locked:
        if not is_locked:
            yield None
            return
        with _create_scratch_folder(folder) as scratch:
            yield scratch


def _create_lock_folder(data: Path) -> Path:
    folder = data / TEMPORARY_FOLDER / "upkeep"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def _create_scratch_folder(folder: Path) -> Iterator[Path]:
    """Delete what killed processes left in a locked folder, and yield a new folder in it."""
    for orphan in folder.iterdir():
        shutil.rmtree(orphan)
    scratch = folder / unique_suffix()
    scratch.mkdir()
    try:
        yield scratch
    finally:
        # If it fails, the next process deletes the folder.
        shutil.rmtree(scratch, ignore_errors=True)


def replace_files(folder: Path, scratch: Path, removed: Collection[Path], added: Mapping[Path, Path]) -> None:
    """Remove files of a folder and add others, in one step, durable on return. All other files stay.

    If files are added to a folder that was created just now, this waits until the folder is half a second old (see
    `create_parent_folders`).

    Args:
        folder: A folder that only sinks change meanwhile.
        scratch: A folder on the same file system.
        removed: Files of the folder, at any depth.
        added: Temporary files on the same file system, by their paths in the folder.

    Raises:
        CannotExchangeError: The file system cannot exchange folders. Nothing was changed.
        OSError: Another operation failed. Nothing was changed.
    """
    if not removed and not added:
        return
    for path in added.values():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    staged = scratch / unique_suffix()
    create_parent_folders(added)
    empty_folder_times = [
        parent.stat().st_mtime for parent in {place.parent for place in added} if not any(parent.iterdir())
    ]
    age = time.time() - max(empty_folder_times, default=0)
    # At most this long, also if the clock was set back.
    time.sleep(min(max(_SETTLE_S - age, 0), _SETTLE_S))
    # With the lock, no sink links a file meanwhile.
    with lock_folder(folder.parent):
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
            # An empty folder keeps its age.
            shutil.copystat(path, made)
            fsync_folder(made)
        _exchange_folders(staged, folder)
        fsync_folder(folder.parent)
        fsync_folder(scratch)
    shutil.rmtree(staged)


def create_parent_folders(paths: Iterable[Path]) -> None:
    """Create the folders of files that are added later. Early enough, so that `replace_files` need not wait.

    A query lists the folders first and then the files of each. So it would miss files that are added to a new folder
    meanwhile, and no missing file would make it fail.
    """
    for folder in {place.parent for place in paths}:
        folder.mkdir(parents=True, exist_ok=True)


def add_rotating_seed(folder: Path) -> None:
    """Add a file to a dataset's folder that has another name in each state.

    Views that list the folder more than once must not see two states of it. With this file, one of the two lists names
    a missing file, and the query fails.

    Raises:
        OSError: The folder is not writable.
    """
    seeds = folder / f"date={SEED_DATE}"
    if not any(seeds.glob(f"{_ROTATING_SEED}*")):
        os.link(seeds / SEED_FILE, seeds / f"{_ROTATING_SEED}{unique_suffix()}.parquet")


def prepare_rotating_seed(folder: Path, day: date) -> dict[Path, Path]:
    """Return what `replace_files` has to add so that a day's folder has such a file too, if it has none.

    A query of some days opens the files of these days alone.

    Args:
        folder: Folder of the dataset.
        day: The day.
    """
    target = folder / f"date={day}"
    if any(target.glob(f"{_ROTATING_SEED}*")):
        return {}
    return {target / f"{_ROTATING_SEED}.parquet": folder / f"date={SEED_DATE}" / SEED_FILE}


def _exchange_folders(first: Path, second: Path) -> None:
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        raise CannotExchangeError(second, "no renameat2 in the C library")
    if rename(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE):
        number = ctypes.get_errno()
        if number in {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}:
            raise CannotExchangeError(second, os.strerror(number))
        raise OSError(number, os.strerror(number), str(second))
