"""A data folder in an object store: `s3://bucket/prefix`, on S3 or a compatible service.

Objects have the names of a folder's files (`warehouse.sink.parquet_files`), and are seen complete or not at all.
`If-None-Match` creates them, so that one of the concurrent landers that begin a range at the same place wins. Nothing
in a bucket can be exchanged in one step, so nothing is merged, rebuilt, dropped or erased there. The AWS_ variables
have login and endpoint.
"""

import io
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
from warehouse import catalog, status_codes
from warehouse.datasets import DATASET_BY_TOPIC
from warehouse.errors import BucketAwayError, BucketError, NoWarehouseError, OvertakenError
from warehouse.file_names import TEMPORARY_FOLDER
from warehouse.landed_files import select_incarnations, sort_incarnations
from warehouse.partition_log import PartitionLog
from warehouse.settings import WarehouseSettings
from warehouse.sink import parquet_files
from warehouse.sink.range_metadata import read_next_offset
from warehouse.small_datasets import create_seed_files, refresh_prefixes
from warehouse.views import create_view_statements

_DAY: Final = timedelta(days=1)
# Bytes of objects that a reader keeps.
_CACHE_BYTES: Final = 256 << 20
# Objects read at once. Landed files are small: nearly all the time of a read is network latency.
_CONCURRENT_READS: Final = 16


# Parts of errors without a login. The last is the address of a cloud machine's metadata service, which would have one.
_NO_LOGIN: Final = ("MissingAccessKey", "MissingSecret", "169.254.")
_BucketErrorType = type[BucketError] | type[BucketAwayError]


class BucketStore:
    """A prefix of a bucket. The sink lands in it, and readers open it. Errors are raised as `BucketAwayError`."""

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
        self._store = _connect_object_store(self.url)
        self._newest_day_folders: dict[PartitionLog, str] = {}

    def __str__(self) -> str:
        return self.url

    def prepare_store(self) -> int:
        """Put seeds, small datasets and views into the bucket. Return 0: a bucket has no orphaned files.

        Raises:
            BucketError: The bucket is missing, denies access, or cannot create objects exclusively.
        """
        with TemporaryDirectory() as scratch, _translate_store_errors(self.url, BucketError):
            folder = Path(scratch)
            create_seed_files(folder)
            refresh_prefixes(folder)
            status_codes.record_configured_statuses(folder)
            # DuckDB binds the views to the seeds in the folder. In the bucket, it would read all landed objects.
            sql = create_view_statements(self.url, incarnation_order=self._list_incarnations_by_age())
            file_system = _BucketFileSystem(self.url, scratch)
            catalog.write_catalog_file(folder / catalog.CATALOG_FILE, sql, self.url, file_system=file_system)
            made = [path for path in folder.rglob("*") if path.is_file() and TEMPORARY_FOLDER not in path.parts]
            for path in made:
                key, content = path.relative_to(folder).as_posix(), path.read_bytes()
                if self._get_object_if_exists(key) != content:
                    self._store.put(key, content)
            try:
                self._store.put(catalog.CATALOG_FILE, b"", mode="create")
            except AlreadyExistsError:
                return 0
        msg = f"{self.url} overwrites existing objects (it ignores If-None-Match): landers would write duplicates"
        raise BucketError(msg)

    def probe_write(self) -> None:
        """Write an empty object."""
        with _translate_store_errors(self.url):
            self._store.put(f"{TEMPORARY_FOLDER}/probe", b"")

    def list_incarnations(self, topic: str, partition: int) -> set[str]:
        """Return the incarnations of a partition that have objects."""
        paths = self._list_topic_objects(topic, f"{topic}+{partition}")
        return select_incarnations((path.name for path in paths), partition)

    def _list_incarnations_by_age(self) -> list[str]:
        """Return the incarnations of sms.messages that have objects, by age."""
        listed = [each for chunk in self._store.list(DATASET_BY_TOPIC[MESSAGES]) for each in chunk]
        places = [(Path(each["path"]), each["last_modified"].timestamp()) for each in listed]
        return sort_incarnations((path.parent.name, time, path.name) for path, time in places)

    def read_landed_position(self, log: PartitionLog) -> int:
        """Return the offset from which on a log is not landed yet; 0 without any object.

        Raises:
            DamagedFileError: The newest file cannot be read.
        """
        with _translate_store_errors(self.url):
            newest = self._find_newest_object(log)
        if newest is None:
            return 0
        self._newest_day_folders[log] = newest.split("/")[1]
        return read_next_offset(self.open_parquet_source(Path(newest)), Path(newest))

    def list_log_files(self, log: PartitionLog) -> list[Path]:
        """Return the objects of a log, in the order of their ranges."""
        paths = self._list_topic_objects(log.topic, f"{log.topic}+{log.file_label}+")
        return sorted(paths, key=lambda path: path.name)

    def _list_topic_objects(self, topic: str, head: str) -> list[Path]:
        """Return the objects of a topic's dataset whose names begin with `head`."""
        with _translate_store_errors(self.url):
            return [
                Path(folder, name)
                for folder in self._list_day_folders(topic)
                for name in self._list_object_names(folder, head, head)
            ]

    def open_parquet_source(self, path: Path) -> io.BytesIO:
        """Return the content of an object of `list_log_files`."""
        with _translate_store_errors(self.url):
            return io.BytesIO(self._store.get(path.as_posix()).bytes())

    def land_rows(self, start: int, table: pa.Table) -> None:
        """Land rows of one partition as one object, as `parquet_files.land_rows` does.

        Raises:
            OvertakenError: The range that begins at `start` has been landed already.
        """
        log, place = parquet_files.resolve_range_path(start, table)
        sink = io.BytesIO()
        parquet_files.write_range_file(table, sink)
        with _translate_store_errors(self.url):
            # A lander that read another first record has the range in another folder, of about the same date.
            since = self._newest_day_folders.get(log)
            day_before = f"date={date.fromisoformat(since[5:]) - _DAY}" if since else ""
            if concurrent_object := self._find_newest_object(log, day_before, place.stem):
                raise OvertakenError(Path(concurrent_object))
            try:
                self._store.put(place.as_posix(), sink.getvalue(), mode="create")
            except AlreadyExistsError as error:
                raise OvertakenError(place) from error
        self._newest_day_folders[log] = place.parent.name

    def open_views(self) -> duckdb.DuckDBPyConnection:
        """Open the views. An open connection sees new data.

        Raises:
            BucketError: The bucket is missing, does not answer, or denies access.
            NoWarehouseError: Nothing was published there.
        """
        with _translate_store_errors(self.url, BucketError, BucketError):
            content = self._get_object_if_exists(catalog.CATALOG_FILE)
        if content is None:
            raise NoWarehouseError(self.url)
        # DuckDB does not need the file's name once it is open.
        with TemporaryDirectory() as scratch:
            path = Path(scratch) / catalog.CATALOG_FILE
            path.write_bytes(content)
            connection = duckdb.connect(path, read_only=True)
        connection.register_filesystem(_BucketFileSystem(self.url))
        return connection

    def _get_object_if_exists(self, key: str) -> bytes | None:
        try:
            return bytes(self._store.get(key).bytes())
        except FileNotFoundError as error:
            if "NoSuchBucket" in str(error):
                raise
            return None

    def _find_newest_object(self, log: PartitionLog, since: str = "", after: str = "") -> str | None:
        """Return the object with a log's newest range, in folders from `since` on and after a name."""
        head, newest, place = f"{log.topic}+{log.file_label}+", "", ""
        for folder in sorted(self._list_day_folders(log.topic), reverse=True):
            if folder.rpartition("/")[2] < since:
                break
            for name in self._list_object_names(folder, newest or after or head, head):
                newest, place = name, f"{folder}/{name}"
        return place or None

    def _list_day_folders(self, topic: str) -> list[str]:
        return list(self._store.list_with_delimiter(DATASET_BY_TOPIC[topic])["common_prefixes"])

    def _list_object_names(self, folder: str, after: str, head: str) -> Iterator[str]:
        """Yield the names in a folder that come after a name and begin with `head`, in order."""
        for chunk in self._store.list(folder, offset=f"{folder}/{after}"):
            for each in chunk:
                name = each["path"].rpartition("/")[2]
                if not name.startswith(head):
                    return
                yield name


class _BucketFileSystem(AbstractFileSystem):
    """Objects as files for DuckDB. Each is fetched once and cached, because objects never change.

    fsspec keeps one instance for each bucket and process.
    """

    protocol = "s3"

    def __init__(self, url: str, folder: str = "") -> None:
        """Read a bucket, or a folder in its place."""
        super().__init__()
        self._url, self._url_prefix = url, f"{url}/"
        self._store: Any = LocalStore(folder) if folder else _connect_object_store(url)
        self._object_metadata: dict[str, Any] = {}
        self._cached_objects: dict[str, bytes] = {}
        self._cached_bytes = 0

    def glob(self, path: str, **_: Any) -> list[str]:
        """Return the objects whose names match. `*` stands for all characters but a slash."""
        head = path.removeprefix(self._url_prefix).partition("/date=*")[0]
        fitting = re.compile(re.escape(path).replace(r"\*", "[^/]*"))
        with _translate_store_errors(self._url):
            listed = [each for chunk in self._store.list(head) for each in chunk]
        names = ((f"{self._url_prefix}{each['path']}", each) for each in listed)
        found = {name: each for name, each in names if fitting.fullmatch(name)}
        self._object_metadata |= found
        missing = found.keys() - self._cached_objects.keys()
        if sum(found[path]["size"] for path in missing) <= _CACHE_BYTES - self._cached_bytes:
            # DuckDB requests them one after the other, so each would take the network's latency.
            with ThreadPoolExecutor(_CONCURRENT_READS) as pool:
                list(pool.map(self.read_object, missing))
        # The order of names, as DuckDB lists a folder. The seed comes first in it.
        return sorted(found)

    def read_object(self, path: str) -> bytes:
        """Return the content of an object."""
        content = self._cached_objects.get(path)
        if content is None:
            with _translate_store_errors(self._url):
                content = bytes(self._store.get(path.removeprefix(self._url_prefix)).bytes())
            if self._cached_bytes + len(content) <= _CACHE_BYTES:
                self._cached_objects[path] = content
                self._cached_bytes += len(content)
        return content

    def open(self, path: str, mode: str = "rb", **_: Any) -> io.BytesIO:
        """Return the object as a file."""
        return io.BytesIO(self.read_object(path))

    def size(self, path: str) -> int:
        """Return the bytes of an object that was listed."""
        size: int = self._object_metadata[path]["size"]
        return size

    def modified(self, path: str) -> datetime:
        """Return when an object that was listed was created."""
        created: datetime = self._object_metadata[path]["last_modified"]
        return created


def _connect_object_store(url: str) -> Any:
    name, _, prefix = url.removeprefix("s3://").partition("/")
    # Object stores of one's own, such as MinIO, often have no TLS.
    is_plain = WarehouseSettings().aws_endpoint_url.startswith("http:")
    with _translate_store_errors(url, BucketError, BucketError):
        return S3Store(
            name,
            prefix=prefix or None,
            # A request that takes longer has failed, and is sent again.
            client_options={"allow_http": is_plain, "connect_timeout": "5s", "timeout": "60s"},
            # Callers wait longer themselves.
            retry_config={"max_retries": 3, "retry_timeout": timedelta(seconds=10)},
        )


@contextmanager
def _translate_store_errors(
    url: str, refused_error: _BucketErrorType = BucketAwayError, away_error: _BucketErrorType = BucketAwayError
) -> Iterator[None]:
    """Raise the store's errors as one of these, with a text of one line."""
    try:
        yield
    except (BaseError, FileNotFoundError) as error:
        text, kind = str(error), type(error).__name__
        if "NoSuchBucket" in text:
            message = f"there is no bucket {url.split('/')[2]}: create it, or name another with --data"
        elif kind == "UnauthenticatedError" or any(part in text for part in _NO_LOGIN):
            message = f"{url} needs a login: set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION"
        elif kind == "PermissionDeniedError":
            message = f"{url} denies access: give this login the rights to list, get and put, or use another one"
        else:
            line = re.sub(r"^Generic S3 error: |<\?xml.*", "", text.partition("\n")[0]).strip()
            msg = f"{url} does not answer ({line}): check AWS_ENDPOINT_URL and the network"
            raise away_error(msg) from error
        raise refused_error(message) from error
