"""Writing of files: temporary files, locks, atomic replacement, fsync."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final
from uuid import uuid4

from warehouse.file_names import TEMPORARY_FOLDER

_PROBE_BYTES: Final = 1 << 16


def replace_durably(data: Path, temporary: Path, path: Path) -> None:
    """Put a file that was written elsewhere in the place of another, in one step, durable on return.

    Raises:
        OSError: The folder is not writable.
    """
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    if not path.parent.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
        fsync_folder(path.parent.parent)
        fsync_folder(data)
    temporary.replace(path)
    fsync_folder(path.parent)


def probe_folder(data: Path) -> None:
    """Write a file as large as a small landed one, durably, and delete it.

    Raises:
        OSError: The disk is full or not writable.
    """
    with open_temporary_file(data, "probe.parquet") as (file, _):
        file.write(bytes(_PROBE_BYTES))
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Wait until no other process is inside this for the same folder. A process that dies is outside."""
    with open_folder_descriptor(folder) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


def delete_orphaned_files(data: Path) -> int:
    """Delete the temporary files of writers that are dead, and return how many there were.

    Raises:
        OSError: A file cannot be deleted.
    """
    deleted = 0
    for path in (data / TEMPORARY_FOLDER).glob("*.parquet.*"):
        with suppress(FileNotFoundError, BlockingIOError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            deleted += 1
    return deleted


@contextmanager
def open_temporary_file(data: Path, name: str) -> Iterator[tuple[BinaryIO, Path]]:
    """Open a file outside the folders that readers look into; it is gone afterwards, unless it was moved."""
    folder = data / TEMPORARY_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    file, path = _create_locked_file(folder, name)
    try:
        with file:
            yield file, path
    finally:
        path.unlink(missing_ok=True)


def _create_locked_file(folder: Path, name: str) -> tuple[BinaryIO, Path]:
    """Create a file and lock it. The lock ends with the process: then `delete_orphaned_files` may delete the file.

    A sweep that meets a file between its creation and its lock takes it for such a one. Then there is another.
    """
    while True:
        path = folder / f"{name}.{uuid4().hex}"
        file = path.open("xb")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file.fileno()).st_nlink:
                return file, path
        except BlockingIOError:
            pass
        except OSError:
            file.close()
            path.unlink(missing_ok=True)
            raise
        file.close()


def create_durable_folder(folder: Path) -> Path:
    """Create a folder, and its parents, and return it. Durable on return."""
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        fsync_folder(folder.parent)
        fsync_folder(folder.parent.parent)
    return folder


@contextmanager
def open_folder_descriptor(folder: Path) -> Iterator[int]:
    """Open a folder, to lock it or to make its entries durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def fsync_folder(folder: Path) -> None:
    """Make what was created, renamed or deleted in a folder durable."""
    with open_folder_descriptor(folder) as descriptor:
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno != errno.EINVAL:  # some network file systems keep folders durable by themselves
                raise
