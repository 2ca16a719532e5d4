"""Spool: webhooks on disk while Kafka is away, in an SQLite table that all ingest processes of a data folder share.

A row has all webhooks that waited together, so they share one fsync. `seq` numbers webhooks; a row has that of its last
one.

Guarantee: `append` returns only after the fsync. SQLite's checksums detect a torn end of the write-ahead log after a
crash; its webhooks were never answered. Rows are in order of arrival.
"""

import contextlib
import fcntl
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from operator import methodcaller
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import quote

import orjson

from core.atomic_file import fsync_folder
from core.records import HEADER_INGEST_ID, WebhookRecord
from ingest.errors import SpoolError, SpoolFullError
from ingest.settings import IngestSettings

# A spool that is emptied holds webhooks for seconds. Both limits leave hours until the default limit is reached.
_OVERDUE_AGE_S: Final = 300
_OVERDUE_SHARE: Final = 0.5
# With less free space than this, another webhook may not fit.
_MIN_FREE_BYTES: Final = 1_048_576
# 4 MB with SQLite's default page. A smaller file is reused without VACUUM, which copies it.
_SHRINK_FROM_PAGES: Final = 1_000
# Behind a larger row, no further row is read: memory would grow with the bodies.
_LARGE_ROW_BYTES: Final = 4_194_304
_SET_UP: Final = """
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = FULL;
    -- Some builds of SQLite overwrite deleted data, which fails on a full disk.
    PRAGMA secure_delete = FAST;
    CREATE TABLE IF NOT EXISTS spool (
        seq INTEGER PRIMARY KEY,
        webhooks INTEGER NOT NULL,
        received_at INTEGER NOT NULL,
        data BLOB NOT NULL
    )
"""
# Number of webhooks, time of the first, pages of the file, bytes in use. One statement, because each statement releases
# the GIL and waits for the other thread.
_STATE: Final = """
    SELECT
        coalesce((SELECT max(seq) FROM spool) - first.seq + first.webhooks, 0),
        first.received_at,
        page_count,
        (page_count - freelist_count) * page_size
    FROM pragma_page_count, pragma_freelist_count, pragma_page_size
    LEFT JOIN (SELECT seq, webhooks, received_at FROM spool ORDER BY seq LIMIT 1) AS first
"""


class SpoolState(NamedTuple):
    """State of a spool: webhooks, bytes on disk, age of the oldest in seconds, and the reason if it is full."""

    webhooks: int
    size: int
    oldest_s: float
    full_reason: str | None

    def is_overdue(self, max_bytes: int) -> bool:
        """Return whether webhooks wait for too long, or fill too much of the limit. Alerts and Prometheus use it."""
        return self.webhooks > 0 and (self.oldest_s > _OVERDUE_AGE_S or self.size > _OVERDUE_SHARE * max_bytes)


class WebhookSpool:
    """The spool of a data folder.

    Methods that write, and `read_webhooks`, block on the disk and belong to one thread. The others are fast, and one
    other thread may call them.

    Args:
        data: The data folder. The spool is in its folder `spool/`.
        settings: Bounds of the spool.

    Raises:
        SpoolError: The spool cannot be opened.
    """

    def __init__(self, data: Path, settings: IngestSettings) -> None:
        self._folder = data / "spool"
        self._settings = settings
        self._is_held = False
        with _raise_spool_errors(self._folder):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._write_lock = os.open(self._folder / "write.lock", os.O_RDWR | os.O_CREAT, 0o600)
            self._forward_lock = os.open(self._folder / "forward.lock", os.O_RDWR | os.O_CREAT, 0o600)
            with self._lock_writes():
                self._db = self._open_database()
                self._reader = self._open_database()
                self.is_empty()
            for folder in (self._folder, data):
                fsync_folder(folder)

    def _open_database(self) -> sqlite3.Connection:
        path = self._folder / "spool.sqlite"
        path.touch(mode=0o600)
        db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        db.executescript(_SET_UP)
        return db

    @contextlib.contextmanager
    def _lock_writes(self) -> Iterator[None]:
        """Let one process at a time write.

        With SQLite's own lock, the others would poll. Up to SQLite 3.51.2, two checkpoints and a write can damage the
        file (the "WAL-reset bug").
        """
        fcntl.flock(self._write_lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            if not self._is_held:
                fcntl.flock(self._write_lock, fcntl.LOCK_UN)

    def block_writers(self) -> None:
        """Block writes of other processes until `unblock_writers`."""
        fcntl.flock(self._write_lock, fcntl.LOCK_EX)
        self._is_held = True

    def unblock_writers(self) -> None:
        """Allow writes of other processes again."""
        self._is_held = False
        fcntl.flock(self._write_lock, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close it. No other method may be called afterwards."""
        # The last connection writes a checkpoint.
        with self._lock_writes():
            self._reader.close()
            self._db.close()
        os.close(self._write_lock)
        os.close(self._forward_lock)

    def append(self, webhooks: Sequence[WebhookRecord], *, unless_empty: bool = False) -> bool:
        """Store webhooks durably behind all others; return whether they were stored.

        Args:
            webhooks: At least one.
            unless_empty: Do not store them if the spool is empty.

        Raises:
            SpoolFullError: There is no space; nothing was stored, or that is not known.
        """
        data = _encode_webhooks(webhooks)
        try:
            with self._lock_writes():
                if unless_empty and _is_spool_empty(self._db):
                    return False
                if (full := self._compute_state(self._db, len(data)).full_reason) is not None:
                    raise SpoolFullError(full)
                self._db.execute(
                    "INSERT INTO spool SELECT coalesce(max(seq), 0) + ?, ?, ?, ? FROM spool",
                    (len(webhooks), len(webhooks), webhooks[0].received_at, data),
                )
        except (OSError, sqlite3.Error) as error:
            msg = f"the spool cannot be written: {getattr(error, 'strerror', None) or error}"
            raise SpoolFullError(msg) from error
        return True

    def read_webhooks(self, after: int, webhooks: int) -> tuple[int, list[WebhookRecord]]:
        """Return the seq of the last row read, and the webhooks after a seq: whole rows until the number is reached.

        Raises:
            SpoolError: The spool cannot be read.
        """
        found: list[WebhookRecord] = []
        with _raise_spool_errors(self._folder):
            rows = self._db.execute("SELECT seq, data FROM spool WHERE seq > ? ORDER BY seq", (after,))
            for seq, data in rows:
                after = seq
                found += _decode_webhooks(data)
                if len(found) >= webhooks or len(data) > _LARGE_ROW_BYTES:
                    break
            rows.close()
        return after, found

    def delete_forwarded(self, up_to: int) -> None:
        """Delete the webhooks up to a seq, and return the disk space of an empty spool.

        Raises:
            SpoolError: The spool cannot be written. The webhooks are still in it.
        """
        with _raise_spool_errors(self._folder), self._lock_writes():
            self._db.execute("DELETE FROM spool WHERE seq <= ?", (up_to,))
            if self._db.execute(_STATE).fetchone()[2] > _SHRINK_FROM_PAGES and _is_spool_empty(self._db):
                # The next call tries it again.
                with contextlib.suppress(sqlite3.Error):
                    self._db.execute("VACUUM")
                    self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def rewrite_webhooks(self, change: Callable[[WebhookRecord], WebhookRecord]) -> int:
        """Replace webhooks so that no byte of the old ones stays; return the number of changed webhooks.

        Raises:
            SpoolError: The spool cannot be written, or others read it all the time. A second call completes it.
        """
        changed = 0
        with _raise_spool_errors(self._folder), self._lock_writes():
            self._db.execute("PRAGMA secure_delete = ON")
            for seq, data in self._db.execute("SELECT seq, data FROM spool ORDER BY seq").fetchall():
                old = _decode_webhooks(data)
                new = [*map(change, old)]
                if new != old:
                    self._db.execute("UPDATE spool SET data = ? WHERE seq = ?", (_encode_webhooks(new), seq))
                    changed += sum(a != b for a, b in zip(old, new, strict=True))
            self._db.execute("PRAGMA busy_timeout = 5000")
            self._db.execute("VACUUM")
            if self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
                raise SpoolError(self._folder, "other processes read it, and its log cannot be emptied; try again")
        return changed

    @contextlib.contextmanager
    def lock_forwarding(self) -> Iterator[bool]:
        """Yield whether this process may forward, and lock out the others for the context."""
        try:
            fcntl.flock(self._forward_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        try:
            yield True
        finally:
            fcntl.flock(self._forward_lock, fcntl.LOCK_UN)

    def is_empty(self) -> bool:
        """Return whether it has no webhooks, of this process or of another."""
        return _is_spool_empty(self._reader)

    def read_state(self) -> SpoolState:
        """Return its state."""
        return self._compute_state(self._reader, _MIN_FREE_BYTES)

    def _compute_state(self, db: sqlite3.Connection, room: int) -> SpoolState:
        webhooks, first_at, _, size = db.execute(_STATE).fetchone()
        oldest_s = 0.0 if first_at is None else max(time.time() - first_at / 1000, 0.0)
        return SpoolState(webhooks, size, oldest_s, self._find_full_reason(size + room, oldest_s, room))

    def _find_full_reason(self, size: int, oldest_s: float, room: int) -> str | None:
        settings = self._settings
        if size > settings.spool_max_bytes:
            return "the spool is full"
        if oldest_s > settings.spool_max_age_s:
            return "the spool has waited for Kafka for too long"
        disk = os.statvfs(self._folder)
        if disk.f_bavail * disk.f_frsize - room < settings.spool_reserve_bytes:
            return "the disk of the spool is full"
        return None


@contextlib.contextmanager
def _raise_spool_errors(folder: Path) -> Iterator[None]:
    """Raise errors of the disk, of SQLite and of the stored JSON as a SpoolError."""
    try:
        yield
    except (OSError, orjson.JSONDecodeError, sqlite3.Error) as error:
        raise SpoolError(folder, str(error)) from error


def read_spooled_ids(data: Path) -> list[str]:
    """Return the ingest_ids in the spool of a data folder, also while other processes write and forward.

    Raises:
        SpoolError: The spool cannot be read.
    """
    path = data / "spool" / "spool.sqlite"
    with _raise_spool_errors(path.parent):
        if not path.exists():
            return []
        with _open_read_only(path) as db:
            rows = db.execute("SELECT data FROM spool").fetchall()
        webhooks = [webhook for (data,) in rows for webhook in _decode_webhooks(data)]
    return [dict(webhook.headers)[HEADER_INGEST_ID].decode() for webhook in webhooks]


@contextlib.contextmanager
def _open_read_only(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a spool for reading, also on a read-only mount.

    Raises:
        sqlite3.Error: The spool cannot be read.
    """
    with contextlib.ExitStack() as stack:
        db = stack.enter_context(_connect_spool(path, "mode=ro"))
        try:
            _is_spool_empty(db)
        except sqlite3.OperationalError:
            # On a read-only mount SQLite cannot create the index of the write-ahead log, which the last writer removed.
            log_file = path.with_name(f"{path.name}-wal")
            if not log_file.exists():
                db = stack.enter_context(_connect_spool(path, "immutable=1"))
            else:
                # A writer was killed, and its log has webhooks.
                copy = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                for file in (path, log_file):
                    shutil.copy(file, copy)
                db = stack.enter_context(_connect_spool(copy / path.name, "mode=rw"))
        yield db


def _connect_spool(path: Path, option: str) -> "contextlib.closing[sqlite3.Connection]":
    return contextlib.closing(sqlite3.connect(f"file:{quote(str(path))}?{option}", uri=True))


def _is_spool_empty(db: sqlite3.Connection) -> bool:
    return db.execute("SELECT 1 FROM spool LIMIT 1").fetchone() is None


def _encode_webhooks(webhooks: Sequence[WebhookRecord]) -> bytes:
    """Return webhooks as one JSON text."""
    # Latin-1 has one character per byte, so JSON can represent any body exactly.
    return orjson.dumps([tuple(webhook) for webhook in webhooks], default=methodcaller("decode", "latin-1"))


def _decode_webhooks(data: bytes) -> list[WebhookRecord]:
    """Return the webhooks of a JSON text."""
    return [
        WebhookRecord(
            key.encode("latin-1") if key is not None else None,
            body.encode("latin-1"),
            [(name, value.encode("latin-1")) for name, value in headers],
            received_at,
        )
        for key, body, headers, received_at in orjson.loads(data)
    ]
