"""The local state of one partition: the newest version of each message, in RocksDB.

It is a copy of the partition of `sms.messages` up to an offset that it holds itself, so it may be stale or lost
without harm: `streams.partition` reads the rest from Kafka before it uses it.
"""

import contextlib
import shutil
from collections.abc import Iterable
from pathlib import Path

import rocksdict

from streams.errors import StateError

# Message keys begin with a source's name, never with a NUL.
_OFFSET = b"\x00offset"
_TOPIC = b"\x00topic"


class Store:
    """Versions by message key.

    Args:
        path: Folder of the database; created if need be, and emptied if it copies another topic than `topic_id`.
        topic_id: Identity of the topic that it copies.

    Raises:
        StateError: The folder cannot be used, or another process uses it.
    """

    def __init__(self, path: Path, topic_id: str) -> None:
        self._path = path
        self._db = self._open()
        if self._db.get(_TOPIC) != topic_id.encode():
            # Offsets of a deleted and recreated topic say nothing about the new one.
            self._db.close()
            shutil.rmtree(path)
            self._db = self._open()
            self._db[_TOPIC] = topic_id.encode()

    def _open(self) -> rocksdict.Rdict:
        options = rocksdict.Options(raw_mode=True)
        options.create_if_missing(True)
        options.set_keep_log_file_num(1)
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            return rocksdict.Rdict(str(self._path), options)
        except Exception as error:  # rocksdict raises bare Exception
            msg = (
                f"cannot open the state in {self._path}: {error}. If another worker uses it, give this one a folder of "
                "its own; if it is damaged, delete it: it is read anew from Kafka"
            )
            raise StateError(msg) from error

    @property
    def offset(self) -> int:
        """The offset up to which the store holds the topic, exclusive; 0 if it is empty."""
        return int(self._db.get(_OFFSET) or 0)

    def get(self, key: bytes) -> bytes | None:
        """Return the newest version of a message, or None."""
        value: bytes | None = self._db.get(key)
        return value

    def write(self, versions: Iterable[tuple[bytes, bytes | None]], offset: int) -> None:
        """Write versions (None deletes) and the offset that they reach to, all or nothing.

        Raises:
            StateError: The disk is full or broken.
        """
        batch = rocksdict.WriteBatch(raw_mode=True)
        for key, value in versions:
            if value is None:
                batch.delete(key)
            else:
                batch.put(key, value)
        batch.put(_OFFSET, b"%d" % offset)
        try:
            self._db.write(batch)
        except Exception as error:  # rocksdict raises bare Exception
            msg = f"cannot write the state in {self._path}: {error}. Free disk space; nothing is lost"
            raise StateError(msg) from error

    def close(self) -> None:
        """Close the database."""
        with contextlib.suppress(Exception):  # closing twice is no fault
            self._db.close()
