"""Seeds: a file without rows in each dataset, so that a view of it can be created before any landing."""

import os
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from warehouse.durable_files import create_durable_folder, open_temporary_file
from warehouse.file_names import SEED_DATE, SEED_FILE
from warehouse.schemas import SCHEMAS

_MIXED_SCHEMAS_KEY: Final = b"smspulse.mixed"
"""Of a seed's metadata: there may be files of another schema."""


def create_seed_files(data: Path) -> None:
    """Make each dataset's folder with a seed: a file without rows, so that a view of it stands before any landing.

    Raises:
        OSError: The data folder is not writable.
    """
    for name, schema in SCHEMAS.items():
        seed = create_durable_folder(data / name / f"date={SEED_DATE}") / SEED_FILE
        try:
            found = pq.read_schema(seed)
        except (OSError, pa.ArrowException):
            mixed = any((data / name).glob("date=*/*.parquet"))
        else:
            if found.remove_metadata().equals(schema, check_metadata=True):
                continue
            mixed = _MIXED_SCHEMAS_KEY in (found.metadata or {}) or not found.equals(schema)
        with open_temporary_file(data, SEED_FILE) as (file, temporary):
            pq.write_table(schema.with_metadata({_MIXED_SCHEMAS_KEY: b""} if mixed else None).empty_table(), file)
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(seed)


def has_mixed_schemas(dataset: Path) -> bool:
    """Tell whether a dataset's folder may have files of another schema than its seed's."""
    try:
        return _MIXED_SCHEMAS_KEY in (pq.read_metadata(dataset / f"date={SEED_DATE}" / SEED_FILE).metadata or {})
    except (OSError, pa.ArrowException):
        return True
