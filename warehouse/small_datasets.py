"""Datasets of one small file: how it is written, the seed of each dataset, and the dataset `prefixes`.

A seed has no rows. With it, a view of a dataset can be created before any landing.

The metadata of a generated file has a marker: a hash of what the file was made from. Parquet stores metadata as plain
bytes in the footer. So a marker is found without a Parquet reader.
"""

import hashlib
from functools import cache
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Final

from core.atomic_file import write_file_atomically
from warehouse.columns import read_column_file
from warehouse.datasets import DATASET_NAMES
from warehouse.file_names import SEED_DATE, SEED_FILE, TEMPORARY_FOLDER

# It takes half a second, and these files are seldom written.
if TYPE_CHECKING:
    import pyarrow as pa

MARKER_KEY: Final = b"smspulse.made_from"
"""Key in the metadata of a generated file. Its value is the marker."""
# Key in a seed's metadata: the dataset may have files of another schema.
_MIXED_SCHEMAS_KEY: Final = b"smspulse.mixed"
_PARQUET_MAGIC: Final = b"PAR1"


def write_table_atomically(data: Path, path: Path, table: "pa.Table") -> None:
    """Write a small table as a file of a data folder, in one step. Durable on return.

    Raises:
        OSError: The data folder is not writable.
    """
    import pyarrow.parquet as pq  # noqa: PLC0415

    content = BytesIO()
    pq.write_table(table, content, compression="zstd")
    write_file_atomically(path, content.getvalue(), scratch=data / TEMPORARY_FOLDER)


def create_seed_files(data: Path) -> None:
    """Create each dataset's folder with a seed, or replace a seed that is damaged or has another schema.

    Raises:
        OSError: The data folder is not writable.
    """
    marker = _schemas_marker()
    for name in DATASET_NAMES:
        if marker not in read_parquet_bytes(_seed_path(data / name)):
            _write_seed(data, name, marker)


@cache
def _schemas_marker() -> bytes:
    """Return a marker of all schemas. It changes with any change of their file, at the cost of new seeds."""
    return compute_marker(read_column_file())


def _write_seed(data: Path, name: str, marker: bytes) -> None:
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    from warehouse.schemas import SCHEMAS  # noqa: PLC0415

    seed, schema = _seed_path(data / name), SCHEMAS[name]
    try:
        found = pq.read_schema(seed)
    except (OSError, pa.ArrowException):
        # Without a readable seed, the schemas of existing files are unknown.
        mixed = any((data / name).glob("date=*/*.parquet"))
    else:
        mixed = _MIXED_SCHEMAS_KEY in (found.metadata or {}) or not found.equals(schema)
    metadata = {MARKER_KEY: marker} | ({_MIXED_SCHEMAS_KEY: b""} if mixed else {})
    write_table_atomically(data, seed, schema.with_metadata(metadata).empty_table())


def has_mixed_schemas(dataset: Path) -> bool:
    """Return whether a dataset's folder may have files of another schema than its seed's."""
    content = read_parquet_bytes(_seed_path(dataset))
    return not content or _MIXED_SCHEMAS_KEY in content


def _seed_path(dataset: Path) -> Path:
    return dataset / f"date={SEED_DATE}" / SEED_FILE


def refresh_prefixes(data: Path) -> None:
    """Write countries and carriers by the library phonenumbers, if the file is missing or from another version of it.

    Raises:
        OSError: The data folder is not writable.
    """
    path = data / "prefixes" / f"date={SEED_DATE}" / "phonenumbers.parquet"
    marker = compute_marker(f"phonenumbers {version('phonenumbers')}, {_schemas_marker().decode()}")
    if marker in read_parquet_bytes(path):
        return
    import pyarrow as pa  # noqa: PLC0415

    from warehouse.number_prefixes import list_number_prefixes  # noqa: PLC0415
    from warehouse.schemas import SCHEMAS  # noqa: PLC0415

    columns = [pa.array(values, pa.string()) for values in zip(*list_number_prefixes(), strict=True)]
    table = pa.table(columns, schema=SCHEMAS["prefixes"].with_metadata({MARKER_KEY: marker}))
    write_table_atomically(data, path, table)


def compute_marker(made_from: str) -> bytes:
    """Return the marker of a file that is made from a text."""
    return hashlib.sha256(made_from.encode()).hexdigest().encode()


def read_parquet_bytes(path: Path) -> bytes:
    """Return the content of a small Parquet file; nothing if it is missing or damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return b""
    return content if content.endswith(_PARQUET_MAGIC) else b""
