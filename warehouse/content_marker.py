"""Markers of generated Parquet files: a hash of what a file was made from, in the metadata of the file.

Parquet stores a file's metadata as plain bytes in its footer. So a marker is found without a Parquet reader.
"""

import hashlib
from pathlib import Path
from typing import Final

MARKER_KEY: Final = b"smspulse.made_from"
_PARQUET_MAGIC: Final = b"PAR1"


def compute_marker(made_from: bytes) -> str:
    """Return the marker of a file that is made from these bytes."""
    return hashlib.sha256(made_from).hexdigest()


def has_marker(path: Path, marker: str) -> bool:
    """Return whether a file exists, is complete, and has the marker."""
    return marker.encode() in read_parquet_bytes(path)


def read_parquet_bytes(path: Path) -> bytes:
    """Return the content of a small Parquet file; nothing if it is missing or damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return b""
    return content if content.endswith(_PARQUET_MAGIC) else b""
