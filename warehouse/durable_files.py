"""Durable writing: temporary files, atomic replacement of a file, locks, fsync of folders."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final
from uuid import uuid4

from warehouse.file_names import TEMPORARY_FOLDER

# As many as a small landed file has.
_PROBE_BYTES: Final = 1 << 16


@contextmanager
def replace_file(data: Path, path: Path) -> Iterator[BinaryIO]:
    """Open a file to write, and put it in the place of another at the end: in one step, durable, or not at all.

    Args:
        data: The data folder.
        path: The file in it to create or replace.

    Raises:
        OSError: The folder is not writable.
    """
    with open_temporary_file(data, path.name) as (file, temporary):
        yield file
        flush_to_disk(file)
        create_durable_folder(path.parent)
        temporary.replace(path)
    fsync_folder(path.parent)


@contextmanager
def open_temporary_file(data: Path, name: str) -> Iterator[tuple[BinaryIO, Path]]:
    """Open a file outside the folders that readers list. It is deleted at the end, unless it was moved."""
    folder = data / TEMPORARY_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    file, path = _create_locked_file(folder, name)
    try:
        with file:
            yield file, path
    finally:
        path.unlink(missing_ok=True)


def _create_locked_file(folder: Path, name: str) -> tuple[BinaryIO, Path]:
    """Create a file and lock it. The lock ends with the process. Then `delete_orphaned_files` may delete the file.

    A sweep that finds a file between its creation and its lock takes it for an orphan. Then another one is created.
    """
    while True:
        path = folder / f"{name}.{uuid4().hex}"
        file = path.open("xb")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Without a link, a sweep deleted the file before it was locked.
            if os.fstat(file.fileno()).st_nlink:
                return file, path
        except BlockingIOError:
            pass
        except OSError:
            file.close()
            path.unlink(missing_ok=True)
            raise
        file.close()


def delete_orphaned_files(data: Path) -> int:
    """Delete the temporary files of writers that are dead, and return how many there were.

    Raises:
        OSError: A file cannot be deleted.
    """
    deleted = 0
    # The name of a temporary file is that of its target and a mark. Folders have no dots in their names.
    for path in (data / TEMPORARY_FOLDER).glob("*.*.*"):
        with suppress(FileNotFoundError, BlockingIOError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            deleted += 1
    return deleted


def probe_folder(data: Path) -> None:
    """Write a file durably, and delete it.

    Raises:
        OSError: The disk is full or not writable.
    """
    with open_temporary_file(data, "probe.parquet") as (file, _):
        file.write(bytes(_PROBE_BYTES))
        flush_to_disk(file)


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Wait until no other process holds the lock of a folder, and hold it. It ends with the process."""
    with open_folder_descriptor(folder) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


def flush_to_disk(file: BinaryIO) -> None:
    """Make the content of an open file durable."""
    file.flush()
    os.fsync(file.fileno())


def create_durable_folder(folder: Path) -> Path:
    """Create a folder, and its parents, and return it. Durable on return."""
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        fsync_folder(folder.parent)
        fsync_folder(folder.parent.parent)
    return folder


def fsync_folder(folder: Path) -> None:
    """Make the names that were created, changed or deleted in a folder durable."""
    with open_folder_descriptor(folder) as descriptor:
        try:
            os.fsync(descriptor)
        except OSError as error:
            # Some network file systems keep folders durable by themselves, and refuse this.
            if error.errno != errno.EINVAL:
                raise


@contextmanager
def open_folder_descriptor(folder: Path) -> Iterator[int]:
    """Open a folder, to lock it or to make its entries durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
