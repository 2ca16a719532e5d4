"""Addresses of buckets, `s3://bucket/prefix`, which stand where a data folder can."""

from pathlib import Path


def is_bucket_address(data: Path | str) -> bool:
    """Return whether a data folder is a bucket's address, also one that was resolved as a path."""
    return "s3:" in Path(data).parts
