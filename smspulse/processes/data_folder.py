"""Permissions of the data folder: for the user who owns it, and for a group if one is set.

The mode of the folder decides. Each process derives its umask from it. So all its files, and those of DuckDB, SQLite,
RocksDB and Kafka's JVM, are as private as the folder. Files with secrets always have 0600.
"""

import grp
import logging
import os
import pwd
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from core.errors import SettingError
from smspulse.processes.children import READY_FD_VARIABLE
from smspulse.processes.errors import DataFolderError
from smspulse.processes.settings import DataFolderSettings

_log = logging.getLogger(__name__)

# Bits of a mode: r-x for the group, and for others.
_GROUP_READS: Final = 0o050
_OTHERS_READ: Final = 0o005
# Names that a group never reads: secrets, and files that only processes of the pipeline need.
_OWNER_ONLY_NAMES: Final = {"kafka", "spool", "accepted", "state", "sources.json"}
# The umask of the user, from before the process set its own.
_user_umask: int | None = None


def set_private_umask(data: Path) -> None:
    """Set a umask that makes new files as private as the data folder, which need not exist. Children inherit it.

    The group gets the permissions of the folder's group, others get none. If another user owns the folder, as when root
    runs a command in it, all may read: one of them is the owner, and the folder itself keeps out the rest.

    Raises:
        DataFolderError: This user may not read the folder.
    """
    shared = _GROUP_READS if DataFolderSettings().read_group else 0
    try:
        found = data.stat()
    except FileNotFoundError:
        pass
    except OSError as error:
        msg = f"the data folder {data} cannot be read: {error.strerror}; name another with --data"
        raise DataFolderError(msg) from error
    else:
        if not os.access(data, os.R_OK | os.X_OK):
            msg = (
                f"the data folder {data} is for {user_name(found.st_uid)} alone: run this as that user, or let a group "
                "read it with SMSPULSE_READ_GROUP"
            )
            raise DataFolderError(msg)
        shared |= stat.S_IRWXG & _make_mode_private(stat.S_IMODE(found.st_mode))
        if found.st_uid != os.geteuid():
            shared |= _GROUP_READS | _OTHERS_READ
    global _user_umask  # noqa: PLW0603 - so is the umask
    previous = os.umask(0o777 & ~(stat.S_IRWXU | shared))
    _user_umask = previous if _user_umask is None else _user_umask


def restrict_to_owner(data: Path) -> None:
    """Remove the permissions of others from the data folder, and let the group of the settings read it.

    An earlier version created the folder with the umask of its user, mostly readable for all. A change is logged.

    Raises:
        SettingError: The group does not exist, or this user may not give a folder to it.
    """
    found = data.stat()
    mode = stat.S_IMODE(found.st_mode)
    if name := DataFolderSettings().read_group:
        _share_folder_with_group(data, name, found)
        return
    if not mode & stat.S_IRWXO:
        return
    with suppress(PermissionError):
        data.chmod(_make_mode_private(mode))
    text = (
        "the data folder %s was open to every user of this machine (mode %04o): it is now for %s alone; "
        "SMSPULSE_READ_GROUP names a group that may read it"
    )
    if data.stat().st_mode & stat.S_IRWXO:
        # Of the processes of `smspulse up`, only the supervisor logs it.
        if READY_FD_VARIABLE in os.environ:
            return
        text = (
            "every user of this machine may enter the data folder %s (mode %04o): have %s run chmod 700 on it, or move "
            "it to a file system with permissions"
        )
    _log.warning(text, data, mode, user_name(found.st_uid))


def describe_readers(data: Path) -> tuple[bool, str]:
    """Return whether the data folder is closed to other users, and a text about its readers."""
    found = data.stat()
    if found.st_mode & stat.S_IRWXO:
        return False, f"every user of this machine may enter it (mode {stat.S_IMODE(found.st_mode):04o})"
    owner = user_name(found.st_uid)
    if found.st_mode & stat.S_IRWXG:
        try:
            group = grp.getgrgid(found.st_gid).gr_name
        except KeyError:
            group = str(found.st_gid)
        return True, f"{owner} and the group {group} may read it"
    return True, f"{owner} alone may read it"


@contextmanager
def use_original_umask(path: Path | None = None, data: Path | None = None) -> Iterator[None]:
    """Use the umask that this process was started with, for a context, unless a path is in the data folder."""
    is_inside = path and data and path.resolve().is_relative_to(data.resolve())
    if is_inside or _user_umask is None:
        yield
        return
    previous = os.umask(_user_umask)
    try:
        yield
    finally:
        os.umask(previous)


def user_name(uid: int) -> str:
    """Return the name of a user, or the number if there is no name."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _make_mode_private(mode: int) -> int:
    """Return a folder's mode without others, and without the group if only a common umask gave it permissions."""
    is_open, is_for_group = mode & stat.S_IRWXO, mode & stat.S_ISGID
    return mode & ~stat.S_IRWXO & ~(stat.S_IRWXG if is_open and not is_for_group else 0)


def _share_folder_with_group(data: Path, name: str, found: os.stat_result) -> None:
    """Let a group read the data folder without its secrets. Done once: new files inherit the group."""
    try:
        gid = grp.getgrnam(name).gr_gid
    except KeyError as error:
        msg = f"SMSPULSE_READ_GROUP={name}: there is no such group; create it, or correct the name"
        raise SettingError(msg) from error
    mode = stat.S_ISGID | stat.S_IRWXU | _GROUP_READS | (found.st_mode & stat.S_IWGRP)
    if (found.st_gid, stat.S_IMODE(found.st_mode)) == (gid, mode):
        return
    try:
        _share_content_with_group(data, gid, mode)
        # Last, so that an interrupted walk is repeated.
        os.chown(data, -1, gid)
        data.chmod(mode)
    except PermissionError as error:
        msg = (
            f"SMSPULSE_READ_GROUP={name}: {error.filename} cannot be given to that group; have root add "
            f"{user_name(os.geteuid())} to it, and have {user_name(found.st_uid)} run this"
        )
        raise SettingError(msg) from error
    _log.info("the group %s may read the data folder %s", name, data)


def _share_content_with_group(data: Path, gid: int, mode: int) -> None:
    for folder, folders, files in os.walk(data):
        folders[:] = [each for each in folders if each not in _OWNER_ONLY_NAMES]
        for each in files:
            path = Path(folder, each)
            if each not in _OWNER_ONLY_NAMES and path.suffix != ".token":
                # A compaction may have removed the file meanwhile.
                with suppress(FileNotFoundError):
                    os.chown(path, -1, gid)
                    path.chmod(stat.S_IRUSR | stat.S_IWUSR | stat.S_IRGRP)
        if Path(folder) != data:
            os.chown(folder, -1, gid)
            Path(folder).chmod(mode)
