"""Addresses of buckets, `s3://bucket/prefix`, which stand where a data folder can."""

from pathlib import Path
from typing import TYPE_CHECKING

from warehouse.errors import BucketError

if TYPE_CHECKING:
    from warehouse.sink.s3_storage import BucketStore


def open_bucket_store(data: Path | str) -> "BucketStore":
    """Return a bucket by its address.

    Raises:
        BucketError: It is no address, no login is set, or a package is not installed.
    """
    try:
        # Imported here because few users have a bucket, and the packages.
        from warehouse.sink.s3_storage import BucketStore  # noqa: PLC0415
    except ModuleNotFoundError as error:
        msg = f"{data} needs {error.name}, which is not installed: pip install 'smspulse[s3]'"
        raise BucketError(msg) from error
    return BucketStore(str(data))
