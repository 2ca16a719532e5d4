"""Durable and atomic writing: whole files, temporary files, locks and fsync of folders.

Readers of a file that `write_file_atomically` replaces see the old content or the new one, also after a power loss.
"""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4


def write_file_atomically(path: Path, content: str | bytes, mode: int = 0o666, scratch: Path | None = None) -> None:
    """Create or replace a file in one step. Durable on return.

    Args:
        path: Path of the file. Missing folders are created.
        content: Its content. Text is written in UTF-8.
        mode: Its permissions, minus the umask.
        scratch: Folder of the temporary file, on the same file system. By default, that of the file.

    Raises:
        OSError: The folder is not writable, or the disk is full. The old file is unchanged.
    """
    create_durable_folder(path.parent)
    with open_temporary_file(scratch or path.parent, path.name, mode) as (file, temporary):
        file.write(content.encode() if isinstance(content, str) else content)
        flush_to_disk(file)
        temporary.replace(path)
    fsync_folder(path.parent)


@contextmanager
def open_temporary_file(folder: Path, name: str, mode: int = 0o666) -> Iterator[tuple[BinaryIO, Path]]:
    """Open a file to write, and yield it with its path. It is deleted at the end, unless it was moved.

    Args:
        folder: Its folder, which is created if it is missing.
        name: Name of the file that it will become. It has this name, hidden, and a unique mark.
        mode: Its permissions, minus the umask.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file, path = _create_locked_file(folder, name, mode)
    try:
        with file:
            yield file, path
    finally:
        path.unlink(missing_ok=True)


def _create_locked_file(folder: Path, name: str, mode: int) -> tuple[BinaryIO, Path]:
    """Create a file and lock it. The lock ends with the process. Then `delete_orphaned_files` may delete the file.

    A sweep that finds a file between its creation and its lock takes it for an orphan. Then another one is created.
    """
    while True:
        path = folder / f".{name}.{uuid4().hex}"
        file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb")
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


def delete_orphaned_files(folder: Path) -> int:
    """Delete the temporary files of writers that are dead, and return how many there were.

    Args:
        folder: A folder that was given to `open_temporary_file`.

    Raises:
        OSError: A file cannot be deleted.
    """
    deleted = 0
    # The name of a temporary file has at least two dots. Folders have none in their names.
    for path in folder.glob("*.*.*"):
        with suppress(FileNotFoundError, BlockingIOError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            deleted += 1
    return deleted


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Wait until no other process holds the lock of a folder, and hold it. It ends with the process."""
    with open_folder_descriptor(folder) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


@contextmanager
def try_lock_folder(folder: Path) -> Iterator[bool]:
    """Yield whether the lock of `lock_folder` was free. If so, it is held."""
    with open_folder_descriptor(folder) as descriptor:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


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
