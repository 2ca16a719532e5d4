"""Seeds: a file without rows in each dataset, so that a view of it can be created before any landing."""

from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Final

from warehouse.content_marker import MARKER_KEY, compute_marker, has_marker, read_parquet_bytes
from warehouse.datasets import DATASET_NAMES
from warehouse.durable_files import replace_file
from warehouse.file_names import SEED_DATE, SEED_FILE

# Key in a seed's metadata: the dataset may have files of another schema.
_MIXED_SCHEMAS_KEY: Final = b"smspulse.mixed"


def create_seed_files(data: Path) -> None:
    """Create each dataset's folder with a seed, or replace a seed that is damaged or has another schema.

    Raises:
        OSError: The data folder is not writable.
    """
    marker = _schemas_marker()
    for name in DATASET_NAMES:
        if not has_marker(_seed_path(data / name), marker):
            _write_seed(data, name, marker)


@cache
def _schemas_marker() -> str:
    """Return a marker of all schemas. It changes with any change of their module, at the cost of new seeds."""
    return compute_marker(files("warehouse").joinpath("schemas.py").read_bytes())


def _write_seed(data: Path, name: str, marker: str) -> None:
    # Imported here because pyarrow takes half a second, and seeds are seldom written.
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
    with replace_file(data, seed) as file:
        pq.write_table(schema.with_metadata(metadata).empty_table(), file)


def has_mixed_schemas(dataset: Path) -> bool:
    """Return whether a dataset's folder may have files of another schema than its seed's."""
    content = read_parquet_bytes(_seed_path(dataset))
    return not content or _MIXED_SCHEMAS_KEY in content


def _seed_path(dataset: Path) -> Path:
    return dataset / f"date={SEED_DATE}" / SEED_FILE
