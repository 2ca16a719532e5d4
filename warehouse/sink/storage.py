"""The store that the sink lands in: a folder of this machine, or a bucket."""

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, Protocol

import pyarrow as pa

from core.atomic_file import delete_orphaned_files, flush_to_disk, open_temporary_file
from core.buckets import is_bucket_address
from warehouse import catalog, status_codes
from warehouse.buckets import open_bucket_store
from warehouse.file_names import TEMPORARY_FOLDER
from warehouse.landed_files import list_incarnations, list_log_files
from warehouse.partition_log import PartitionLog
from warehouse.sink import parquet_files
from warehouse.sink.range_metadata import read_landed_position

# As many as a small landed file has.
_PROBE_BYTES: Final = 1 << 16


class LandedFileAccess(Protocol):
    """Access to the landed files of a data folder or a bucket. A `BucketAwayError` may pass with time."""

    def list_incarnations(self, topic: str, partition: int) -> set[str]:
        """As `warehouse.landed_files.list_incarnations`."""

    def read_landed_position(self, log: PartitionLog) -> int:
        """As `warehouse.sink.range_metadata.read_landed_position`."""

    def list_log_files(self, log: PartitionLog) -> list[Path]:
        """As `warehouse.landed_files.list_log_files`."""

    def open_parquet_source(self, path: Path) -> Path | BinaryIO:
        """Return a source that pyarrow can read one of the files from."""


class LandingStore(LandedFileAccess, Protocol):
    """Operations of a data folder or a bucket that landing needs. Failures that may pass are OSErrors."""

    def prepare_store(self) -> int:
        """Publish the views. Return the number of deleted files that killed landers had not finished."""

    def probe_write(self) -> None:
        """Write a probe and delete it, to find out whether the store takes data.

        Raises:
            OSError: The store takes no data.
        """

    def land_rows(self, start: int, table: pa.Table) -> object:
        """As `parquet_files.land_rows`: all or nothing, durable on return, and never twice."""


@dataclass(frozen=True, slots=True)
class FolderStore:
    """A folder of this machine, or one that it has mounted."""

    data: Path

    def __str__(self) -> str:
        return str(self.data)

    def prepare_store(self) -> int:
        """As `LandingStore`."""
        deleted = delete_orphaned_files(self.data / TEMPORARY_FOLDER)
        # The lander has the same environment as the stream. If the setting is gone, it removes the meanings.
        status_codes.write_status_codes(self.data, status_codes.parse_configured_statuses())
        catalog.publish_views(self.data)
        return deleted

    def probe_write(self) -> None:
        """As `LandingStore`."""
        with open_temporary_file(self.data / TEMPORARY_FOLDER, "probe.parquet") as (file, _):
            file.write(bytes(_PROBE_BYTES))
            flush_to_disk(file)

    def list_incarnations(self, topic: str, partition: int) -> set[str]:
        """As `LandingStore`."""
        return list_incarnations(self.data, topic, partition)

    def read_landed_position(self, log: PartitionLog) -> int:
        """As `LandingStore`."""
        return read_landed_position(self.data, *log)

    def list_log_files(self, log: PartitionLog) -> list[Path]:
        """As `LandingStore`."""
        return list_log_files(self.data, log)

    def open_parquet_source(self, path: Path) -> Path:
        """As `LandingStore`."""
        return path

    def land_rows(self, start: int, table: pa.Table) -> object:
        """As `LandingStore`."""
        return parquet_files.land_rows(self.data, start, table)


def open_landing_store(data: Path) -> LandingStore:
    """Return the store of a data folder.

    Raises:
        BucketError: The bucket cannot be used, as in `open_bucket_store`.
    """
    return open_bucket_store(data) if is_bucket_address(data) else FolderStore(data.resolve())
