"""A data folder in an object store: `s3://bucket/prefix`, on S3 or what speaks as it does.

Objects are named as the files of a folder are (`warehouse.sink.parquet_files`), and are seen whole or not at all.
`If-None-Match` creates them, so that of rivals that begin a range at one place one wins. Nothing in a bucket can be
exchanged in one step, so nothing is merged, rebuilt, dropped or erased there. Login and endpoint are what the AWS_
variables say.
"""

import io
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import date, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import duckdb
import pyarrow as pa
from fsspec.spec import AbstractFileSystem
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, S3Store

from core.topics import MESSAGES
from warehouse import catalog as views
from warehouse import prefixes, status_codes
from warehouse.errors import BucketError, NoWarehouseError, OvertakenError
from warehouse.partition_log import PartitionLog
from warehouse.schemas import BY_TOPIC
from warehouse.sink import parquet_files as landing

_DAY: Final = timedelta(days=1)
_KEPT: Final = 256 << 20  # bytes of objects that a reader keeps
_READERS: Final = 16  # objects asked for at once: of a landed file nearly all the time is the answer's way


_NO_LOGIN: Final = ("MissingAccessKey", "MissingSecret", "169.254.")
"""Of errors. The last is the address where a machine's own login would be asked for."""
_Error = type[BucketError] | type["BucketAwayError"]


class BucketAwayError(OSError):
    """The object store does not answer, or not as it should; asked again, it may."""


class Bucket:
    """A prefix of a bucket that is landed in and read from. Errors of the store are raised as `BucketAwayError`."""

    def __init__(self, url: str) -> None:
        """Take `s3://bucket/prefix`.

        Raises:
            BucketError: It is no such address.
        """
        # As a path, an address has lost one of its two slashes.
        found = re.fullmatch(r"s3:/{1,2}([\w.-]+)((?:/[\w.=-]+)*)/?", url)
        if not found:
            msg = f"{url} is no address of a data folder: s3://bucket/prefix, of letters, digits and . _ - ="
            raise BucketError(msg)
        self.url = f"s3://{found[1]}{found[2]}"
        self._store = _store(self.url)
        self._days: dict[PartitionLog, str] = {}

    def __str__(self) -> str:
        return self.url

    def prepare(self) -> int:
        """Put there what views need to stand before any landing, and the views. Return 0: a bucket has no orphans.

        Raises:
            BucketError: There is no such bucket, we may not, or it cannot create exclusively.
        """
        with TemporaryDirectory() as scratch, _asked(self.url, BucketError):
            folder = Path(scratch)
            landing.prepare(folder)
            prefixes.prepare(folder)
            status_codes.prepare(folder)
            # The views are bound to the seeds alone, which takes no time however much was landed.
            sql = views.statements(self.url, incarnations=self._in_order_of_appearance())
            views.write(folder / views.FILE, sql, self.url, _Objects(self.url, scratch))
            made = [path for path in folder.rglob("*") if path.is_file() and landing.TEMPORARY not in path.parts]
            for path in made:
                key, content = path.relative_to(folder).as_posix(), path.read_bytes()
                if self._found(key) != content:
                    self._store.put(key, content)
            try:
                self._store.put(views.FILE, b"", mode="create")
            except AlreadyExistsError:
                return 0
        msg = f"{self.url} overwrites what was to be created (it ignores If-None-Match): rivals would land twice"
        raise BucketError(msg)

    def probe(self) -> None:
        """Write the mark of the last writer."""
        with _asked(self.url):
            self._store.put(f"{landing.TEMPORARY}/probe", b"")

    def incarnations(self, topic: str, partition: int) -> set[str]:
        """Return the incarnations of which a partition has objects."""
        head = f"{topic}+{partition}"
        with _asked(self.url):
            names = [name for folder in self._folders(topic) for name in self._names(folder, head, head)]
        logs = [landing.log_of(name) for name in map(landing.LANDED.fullmatch, names) if name]
        return {log.incarnation for log in logs if log.partition == partition}

    def _in_order_of_appearance(self) -> list[str]:
        """Return the incarnations of sms.messages of which there are objects."""
        listed = [each for chunk in self._store.list(BY_TOPIC[MESSAGES].name) for each in chunk]
        places = [(Path(each["path"]), each["last_modified"].timestamp()) for each in listed]
        return landing.order_incarnations((path.parent.name, time, path.name) for path, time in places)

    def position(self, log: PartitionLog) -> int:
        """Return the offset from which a log is yet to be landed; 0 without any file of it.

        Raises:
            DamagedFileError: The newest file cannot be read.
        """
        with _asked(self.url):
            newest = self._newest(log)
        if newest is None:
            return 0
        self._days[log] = newest.split("/")[1]
        return landing.following(self.source(Path(newest)), Path(newest))

    def files(self, log: PartitionLog) -> list[Path]:
        """Return the objects of a log, in the order of their ranges."""
        head = f"{log.topic}+{log.label}+"
        with _asked(self.url):
            found = [(name, folder) for folder in self._folders(log.topic) for name in self._names(folder, head, head)]
        return [Path(folder, name) for name, folder in sorted(found)]

    def source(self, path: Path) -> io.BytesIO:
        """Return an object of `files` whole."""
        with _asked(self.url):
            return io.BytesIO(self._store.get(path.as_posix()).bytes())

    def land_rows(self, start: int, table: pa.Table) -> None:
        """Land rows of one partition as one object, as `landing.land_rows` does.

        Raises:
            OvertakenError: The range that begins at `start` has been landed already.
        """
        log, place = landing.placed(start, table)
        sink = io.BytesIO()
        landing.encode(table, sink)
        with _asked(self.url):
            # A rival that saw another first record has it in another folder, but not in one of long ago.
            since = self._days.get(log)
            day_before = f"date={date.fromisoformat(since[5:]) - _DAY}" if since else ""
            if rival := self._newest(log, day_before, place.stem):
                raise OvertakenError(Path(rival))
            try:
                self._store.put(place.as_posix(), sink.getvalue(), mode="create")
            except AlreadyExistsError as error:
                raise OvertakenError(place) from error
        self._days[log] = place.parent.name

    def open(self) -> duckdb.DuckDBPyConnection:
        """Open the views; they read what was landed by then, and see what comes.

        Raises:
            BucketError: There is no such bucket, it does not answer, or we may not.
            NoWarehouseError: Nothing was published there.
        """
        with _asked(self.url, BucketError, BucketError):
            content = self._found(views.FILE)
        if content is None:
            raise NoWarehouseError(self.url)
        with TemporaryDirectory() as scratch:  # which is not needed once the file is open
            path = Path(scratch) / views.FILE
            path.write_bytes(content)
            connection = duckdb.connect(path, read_only=True)
        connection.register_filesystem(_Objects(self.url))
        return connection

    def _found(self, key: str) -> bytes | None:
        try:
            return bytes(self._store.get(key).bytes())
        except FileNotFoundError as error:
            if "NoSuchBucket" in str(error):
                raise
            return None

    def _newest(self, log: PartitionLog, since: str = "", after: str = "") -> str | None:
        """Return the object of a log's newest range, of those in folders from `since` on and behind a name."""
        head, newest, place = f"{log.topic}+{log.label}+", "", ""
        for folder in sorted(self._folders(log.topic), reverse=True):
            if folder.rpartition("/")[2] < since:
                break
            for name in self._names(folder, newest or after or head, head):
                newest, place = name, f"{folder}/{name}"
        return place or None

    def _folders(self, topic: str) -> list[str]:
        return list(self._store.list_with_delimiter(BY_TOPIC[topic].name)["common_prefixes"])

    def _names(self, folder: str, after: str, head: str) -> Iterator[str]:
        """Yield the names in a folder that come behind a name and begin with `head`, in their order."""
        for chunk in self._store.list(folder, offset=f"{folder}/{after}"):
            for each in chunk:
                name = each["path"].rpartition("/")[2]
                if not name.startswith(head):
                    return
                yield name


class _Objects(AbstractFileSystem):
    """Objects as files for DuckDB. Each is fetched whole, and kept, for none ever changes.

    One for each bucket and process, which fsspec sees to.
    """

    protocol = "s3"

    def __init__(self, url: str, folder: str = "") -> None:
        """Read a bucket, or a folder in the place of it."""
        super().__init__()
        self._url, self._root = url, f"{url}/"
        self._store: Any = LocalStore(folder) if folder else _store(url)
        self._listed: dict[str, Any] = {}
        self._kept: dict[str, bytes] = {}
        self._size = 0

    def glob(self, path: str, **_: Any) -> list[str]:
        """Return the objects whose names fit, `*` being all but a slash."""
        head = path.removeprefix(self._root).partition("/date=*")[0]
        fitting = re.compile(re.escape(path).replace(r"\*", "[^/]*"))
        with _asked(self._url):
            listed = [each for chunk in self._store.list(head) for each in chunk]
        names = ((f"{self._root}{each['path']}", each) for each in listed)
        found = {name: each for name, each in names if fitting.fullmatch(name)}
        self._listed |= found
        missing = found.keys() - self._kept.keys()
        if sum(found[path]["size"] for path in missing) <= _KEPT - self._size:
            # One after the other, as DuckDB asks for them, each would take an answer's way.
            with ThreadPoolExecutor(_READERS) as pool:
                list(pool.map(self.content, missing))
        return sorted(found)

    def content(self, path: str) -> bytes:
        """Return what an object holds."""
        content = self._kept.get(path)
        if content is None:
            with _asked(self._url):
                content = bytes(self._store.get(path.removeprefix(self._root)).bytes())
            if self._size + len(content) <= _KEPT:
                self._kept[path] = content
                self._size += len(content)
        return content

    def open(self, path: str, mode: str = "rb", **_: Any) -> io.BytesIO:
        """Return the object as a file."""
        return io.BytesIO(self.content(path))

    def size(self, path: str) -> int:
        """Return the bytes of an object that was listed."""
        size: int = self._listed[path]["size"]
        return size

    def modified(self, path: str) -> datetime:
        """Return when an object that was listed was created."""
        created: datetime = self._listed[path]["last_modified"]
        return created


def _store(url: str) -> Any:
    name, _, prefix = url.removeprefix("s3://").partition("/")
    is_plain = os.environ.get("AWS_ENDPOINT_URL", "").startswith("http:")
    with _asked(url, BucketError, BucketError):
        return S3Store(
            name,
            prefix=prefix or None,
            client_options={"allow_http": is_plain, "connect_timeout": "5s", "timeout": "60s"},
            retry_config={
                "max_retries": 3,
                "retry_timeout": timedelta(seconds=10),
            },  # who calls waits longer by himself
        )


@contextmanager
def _asked(url: str, refused: _Error = BucketAwayError, away: _Error = BucketAwayError) -> Iterator[None]:
    """Say in a line what the store's error is, as one of these."""
    try:
        yield
    except (BaseError, FileNotFoundError) as error:
        text, kind = str(error), type(error).__name__
        if "NoSuchBucket" in text:
            told = f"there is no bucket {url.split('/')[2]}: make it, or name another with --data"
        # 169.254 is where a machine's own login would be asked for.
        elif kind == "UnauthenticatedError" or any(
            sign in text for sign in ("169.254.", "MissingAccessKey", "MissingSecret")
        ):
            told = f"{url} wants a login: set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION"
        elif kind == "PermissionDeniedError":
            told = f"{url} does not let us in: give this login the rights to list, get and put, or mend it"
        else:
            line = re.sub(r"^Generic S3 error: |<\?xml.*", "", text.partition("\n")[0]).strip()
            msg = f"{url} does not answer ({line}): see that AWS_ENDPOINT_URL is right and the network up"
            raise away(msg) from error
        raise refused(told) from error
