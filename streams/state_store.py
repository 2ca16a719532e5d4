"""Local state of one partition of a stage, in RocksDB: the newest value of each key, and timers.

It is a copy of the partition of the changelog up to an offset, which it stores too. So it may be stale or lost without
harm: `streams.recovery` reads the rest from Kafka before it is used.

Timers are stored next to the states by minute and key, and are found without a read of any state. An entry is a hint:
the state may have changed since, and its timer may be later.
"""

import contextlib
import logging
import shutil
import time
from collections.abc import Collection
from pathlib import Path

import rocksdict

from core.topic_ids import to_url_safe_id
from streams.errors import StateError
from streams.processor import ProcessorOutput

_log = logging.getLogger(__name__)

# Keys of states begin with a source's name, never with one of these.
_OFFSET = b"\x00offset"
_TOPIC = b"\x00topic"
_SOURCE = b"\x00source"
_LAST_AT = b"\x00last"
_DUE = b"\x01"
_MINUTE_MS = 60_000
# A timer entry is the mark, the minute in 4 bytes, and the key of the state. Big-endian, so entries sort by time.
_AFTER_MINUTE = len(_DUE) + 4
_LAST_MINUTE = 2**32 - 1
# How the errors of RocksDB about damaged or missing files begin.
_DAMAGED = ("Corruption:", "IO error: No such file or directory:")
# All partitions of a process share one limit, so that its memory does not grow with their number or that of the states.
# Of it, new states take up to two thirds until they are written to files. The rest caches blocks, indexes and filters
# of files. By default, each partition has 64 MiB of new states, a cache of 32 MiB, and all indexes beside it.
_MEMORY = 24 << 20
_BLOCK_CACHE = rocksdict.Cache(_MEMORY)
_NEW_STATES = rocksdict.WriteBufferManager.new_write_buffer_manager_with_cache(_MEMORY * 2 // 3, False, _BLOCK_CACHE)
# Bytes of new states of a partition. They become a file before the shared limit is reached.
_WRITE_BUFFER = 4 << 20
# Seconds after which new states become a file though they are few. Otherwise, the memory of a small fleet's worker
# would grow for an hour, until the limit is reached. A kill costs at most these states: they are read from Kafka again.
_WRITE_EVERY_S = 300


class StateStore:
    """States by key.

    Args:
        path: Folder of the database. Created if necessary, and emptied if it copies another topic than `topic_id`.
        topic_id: Identity of the topic that it copies.

    Raises:
        StateError: The folder cannot be used, or another process uses it.
    """

    def __init__(self, path: Path, topic_id: str) -> None:
        self._path = path
        self._topic_id = topic_id.encode()
        # No entry is before it.
        self._due_from = _DUE
        self._flushed_at = time.monotonic()
        self._unlogged = rocksdict.WriteOptions()
        # Writes that a crash loses are read from Kafka again.
        self._unlogged.disable_wal = True
        self._db = self._open_database()
        if to_url_safe_id((self._db.get(_TOPIC) or b"").decode()) != topic_id:
            # Offsets of a deleted topic have no meaning in the one created again.
            self.clear()

    def clear(self) -> None:
        """Drop everything."""
        self._db.close()
        shutil.rmtree(self._path)
        self._db = self._open_database()
        self._db[_TOPIC] = self._topic_id

    def _open_database(self) -> rocksdict.Rdict:
        options = rocksdict.Options(raw_mode=True)
        options.create_if_missing(True)
        options.set_keep_log_file_num(1)
        options.set_write_buffer_size(_WRITE_BUFFER)
        options.set_write_buffer_manager(_NEW_STATES)
        tables = rocksdict.BlockBasedOptions()
        tables.set_block_cache(_BLOCK_CACHE)
        tables.set_cache_index_and_filter_blocks(True)
        # The first report of a message looks for a state that is not there. Ten bits a key find that out in 99 of 100.
        tables.set_bloom_filter(10, False)
        options.set_block_based_table_factory(tables)
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            try:
                return rocksdict.Rdict(str(self._path), options)
            except Exception as error:
                if not str(error).startswith(_DAMAGED):
                    raise
                # Also the result of a process that ended while it created the database. RocksDB holds the lock, so no
                # other process uses it.
                _log.warning("the state in %s is damaged, and is read again from Kafka: %s", self._path, error)
                shutil.rmtree(self._path)
                return rocksdict.Rdict(str(self._path), options)
        except Exception as error:
            # rocksdict raises bare Exception.
            msg = (
                f"cannot open the state in {self._path}: {error}. If another worker uses it, give this one a folder of "
                "its own; if it is damaged, delete it: it is read again from Kafka"
            )
            raise StateError(msg) from error

    @property
    def offset(self) -> int:
        """The offset up to which the store holds the topic, exclusive; 0 if it is empty."""
        return int(self._db.get(_OFFSET) or 0)

    @property
    def last_at(self) -> int | None:
        """The timestamp of the last copied record, in milliseconds; None if it is not known."""
        value = self._db.get(_LAST_AT)
        return None if value is None else int(value)

    @property
    def source_offset(self) -> int:
        """The offset of the stage's source up to which the states are known to be processed; 0 if it is empty."""
        return int(self._db.get(_SOURCE) or 0)

    def get(self, key: bytes) -> bytes | None:
        """Return the state of a key: None if there is none, empty if it was dropped.

        Raises:
            StateError: The disk is broken.
        """
        try:
            value: bytes | None = self._db.get(key)
        except Exception as error:
            # rocksdict raises bare Exception.
            msg = f"cannot read the state in {self._path}: {error}. Check the disk; Kafka has the same data"
            raise StateError(msg) from error
        return value

    def due_timers(self, now: int, limit: int) -> dict[bytes, bytes]:
        """Return up to `limit` timers that are due at a time in milliseconds: the state's key by the entry's."""
        found: dict[bytes, bytes] = {}
        end = _build_timer_prefix(now)
        entries = self._db.iter(rocksdict.ReadOptions())
        entries.seek(self._due_from)
        while len(found) < limit and entries.valid() and (entry := entries.key()) < end:
            found[entry] = entry[_AFTER_MINUTE:]
            entries.next()
        return found

    def write_states(
        self,
        outputs: ProcessorOutput,
        offset: int | None = None,
        done: Collection[bytes] = (),
        *,
        source: int | None = None,
        last_at: int | None = None,
    ) -> None:
        """Write everything atomically.

        Args:
            outputs: New states, timers to set again, and marks to remove.
            offset: The offset behind these states on the changelog; None if none of them is on it.
            done: Entries of timers that fired.
            source: The offset behind the records of the source that made these states, if there are such records.
            last_at: The timestamp of the record before `offset`, in milliseconds, if there is an offset.

        Raises:
            StateError: The disk is full or broken.
        """
        # RocksDB iterates over deleted entries until it has compacted them, so the next look-up starts behind them.
        self._due_from = max(done, default=self._due_from)
        batch = rocksdict.WriteBatch(raw_mode=True)
        put, delete = batch.put, batch.delete
        timers = list(outputs.rescheduled)
        for key, value, due in outputs.states:
            put(key, value or b"")
            if due is not None:
                timers.append((key, due))
        for entry in done:
            delete(entry)
        for key, due in timers:
            entry = _build_timer_prefix(due)
            put(entry + key, b"")
            self._due_from = min(self._due_from, entry)
        for key in outputs.expired:
            delete(key)
        for name, number in ((_OFFSET, offset), (_LAST_AT, last_at), (_SOURCE, source)):
            if number is not None:
                put(name, b"%d" % number)
        try:
            self._db.write(batch, self._unlogged)
            if time.monotonic() > self._flushed_at + _WRITE_EVERY_S:
                self._flushed_at = time.monotonic()
                self._db.flush(wait=False)
        except Exception as error:
            # rocksdict raises bare Exception.
            msg = f"cannot write the state in {self._path}: {error}. Free disk space; nothing is lost"
            raise StateError(msg) from error

    def close(self) -> None:
        """Close the database."""
        # A second call has no effect.
        with contextlib.suppress(Exception):
            self._db.close()


def _build_timer_prefix(due: int) -> bytes:
    """Return the prefix of the entries of a time in milliseconds, rounded up to a minute: no timer fires early."""
    return _DUE + min(max(due // _MINUTE_MS + 1, 0), _LAST_MINUTE).to_bytes(4)
