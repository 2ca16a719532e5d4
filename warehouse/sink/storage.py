"""Where the lander lands: a folder of this machine, or a bucket."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

import pyarrow as pa

from warehouse import catalog as views
from warehouse import status_codes
from warehouse.errors import BucketError
from warehouse.partition_log import PartitionLog
from warehouse.sink import parquet_files as landing

if TYPE_CHECKING:
    from warehouse.sink.s3_storage import Bucket


class Store(Protocol):
    """What landing needs of a data folder. Failures that may pass are OSErrors."""

    def prepare(self) -> int:
        """Publish the views. Return how many unfinished files of dead landers were deleted."""

    def probe(self) -> None:
        """Write something and delete it, to find out whether the store takes data.

        Raises:
            OSError: It does not.
        """

    def incarnations(self, topic: str, partition: int) -> set[str]:
        """As `parquet_files.incarnations`; `s3_storage.BucketAwayError` is worth waiting for, here and below."""

    def position(self, log: PartitionLog) -> int:
        """As `landing.landed_position`."""

    def files(self, log: PartitionLog) -> list[Path]:
        """As `landing.landed_files`."""

    def source(self, path: Path) -> Path | BinaryIO:
        """Return what pyarrow reads one of the files from."""

    def land_rows(self, start: int, table: pa.Table) -> object:
        """As `landing.land_rows`: all or nothing, durable on return, and never twice."""


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of this machine, or one that it has mounted."""

    data: Path

    def __str__(self) -> str:
        return str(self.data)

    def prepare(self) -> int:
        """As `Store`."""
        swept = landing.sweep(self.data)
        # The lander has the environment of the stream. Where the setting is gone, it takes the meanings back.
        status_codes.record(self.data, status_codes.configured_statuses())
        views.publish(self.data)
        return swept

    def probe(self) -> None:
        """As `Store`."""
        landing.probe(self.data)

    def incarnations(self, topic: str, partition: int) -> set[str]:
        """As `Store`."""
        return landing.incarnations(self.data, topic, partition)

    def position(self, log: PartitionLog) -> int:
        """As `Store`."""
        return landing.landed_position(self.data, *log)

    def files(self, log: PartitionLog) -> list[Path]:
        """As `Store`."""
        return landing.landed_files(self.data, log)

    def source(self, path: Path) -> Path:
        """As `Store`."""
        return path

    def land_rows(self, start: int, table: pa.Table) -> object:
        """As `Store`."""
        return landing.land_rows(self.data, start, table)


def is_bucket(data: Path | str) -> bool:
    """Tell whether a data folder is a bucket's: `s3://…`, which as a path has lost a slash."""
    return str(data).startswith("s3:/")


def store_of(data: Path) -> Store:
    """Return what to land in.

    Raises:
        BucketError: As `bucket` says.
    """
    return bucket(data) if is_bucket(data) else Folder(data.resolve())


def bucket(data: Path | str) -> "Bucket":
    """Return a bucket by its address.

    Raises:
        BucketError: It is no address, no login is set, or what speaks to object stores is not installed.
    """
    try:
        from warehouse.sink.s3_storage import Bucket  # noqa: PLC0415 - few have one
    except ModuleNotFoundError as error:
        msg = f"{data} needs {error.name}, which is not installed: pip install 'smspulse[s3]'"
        raise BucketError(msg) from error
    return Bucket(str(data))
