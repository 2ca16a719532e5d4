"""Errors of the warehouse."""

import re
from pathlib import Path

from core.errors import SmspulseError


class WarehouseError(SmspulseError):
    """An operation of the warehouse failed."""


class OvertakenError(WarehouseError):
    """A concurrent lander landed the range first. This is no fault: the caller reads its position again."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path.name} was landed by another lander")
        self.path = path


class DamagedFileError(WarehouseError):
    """A file in a dataset's folder is not a valid file of that dataset."""

    def __init__(self, path: Path, detail: str) -> None:
        super().__init__(
            f"{path} is damaged or not ours ({detail}). Move it out of the data folder. If it was the newest of "
            "its partition, its records are landed again from Kafka as long as Kafka keeps them."
        )


class KafkaRefusedError(WarehouseError):
    """Kafka denies access or cannot serve the client: a login, a permission or a setting is wrong. It does not pass."""


class NoWarehouseError(WarehouseError):
    """No warehouse was published in a data folder."""

    def __init__(self, data: Path | str) -> None:
        super().__init__(
            f"no warehouse in {data}: start `smspulse up` or `smspulse land`, or name its folder by --data"
        )


class NeedsFolderError(WarehouseError):
    """A bucket was named for an operation that needs a folder: files change in one step, or other files are kept."""

    def __init__(self, data: Path) -> None:
        super().__init__(
            f"{re.sub('.*s3:/*', 's3://', str(data))} is a bucket, and this needs a folder of this machine: "
            "only `smspulse land`, `smspulse sql` and warehouse.query() take a bucket as --data"
        )


class StaleViewsError(WarehouseError):
    """The views of a folder read another folder, and cannot be created for this one."""

    def __init__(self, data: Path) -> None:
        super().__init__(
            f"{data} was copied or moved, or another version of smspulse filled it: run `smspulse compact` on it once, "
            "which publishes its views again"
        )


class UnreadablePathError(WarehouseError):
    """DuckDB cannot read the files of a data folder because of its path."""

    def __init__(self, data: Path) -> None:
        super().__init__(
            f"the data folder {data} has a backslash in its path: DuckDB treats it as a slash. Name another by --data"
        )


class BucketError(WarehouseError):
    """An object store denies access or cannot be used. It does not pass."""


class BucketAwayError(OSError):
    """An object store does not answer, or not as it should. A later attempt may succeed."""


class RebuildError(WarehouseError):
    """Lifecycles cannot be recomputed. Nothing was changed."""

    def __init__(self, data: Path, detail: str) -> None:
        super().__init__(f"{data} was not rebuilt, and nothing was changed: {detail}")


class CannotExchangeError(WarehouseError):
    """The file system cannot exchange two folders. Nothing was changed."""

    def __init__(self, folder: Path, detail: str) -> None:
        super().__init__(
            f"{folder} cannot be changed in one step ({detail}), and nothing was changed: put the data folder on a "
            "file system of Linux that can exchange two folders, such as ext4, xfs, btrfs or tmpfs"
        )


class CompactionError(WarehouseError):
    """Files cannot be merged. None was changed."""

    def __init__(self, folder: Path, detail: str) -> None:
        super().__init__(f"the files of {folder} were not merged and are as they were: {detail}")


class RetentionError(WarehouseError):
    """Expired days cannot be dropped."""

    def __init__(self, detail: str) -> None:
        super().__init__(f"nothing was dropped: {detail}")
