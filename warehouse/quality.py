"""The dataset `quality`: results of the checks, a file a day to which each run adds its rows."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from core.atomic_file import lock_folder
from warehouse import catalog
from warehouse.schemas import SCHEMAS
from warehouse.small_datasets import write_table_atomically


def append_check_results(data: Path, checked_at: datetime, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Add the results of a run, and return the file. In one step, durable on return. Readers go on meanwhile.

    Args:
        data: The data folder.
        checked_at: Time of the run, with a time zone.
        rows: A row an expectation, by the names of the schema. `checked_at` is added.

    Raises:
        OSError: The data folder is not writable, or today's file is damaged.
    """
    data = data.resolve()
    catalog.publish_views(data)
    path = data / "quality" / f"date={checked_at:%Y-%m-%d}" / "checks.parquet"
    table = pa.Table.from_pylist([{**row, "checked_at": checked_at} for row in rows], schema=SCHEMAS["quality"])
    # Two runs at once must not lose the results of one of them.
    with lock_folder(data / "quality"):
        if path.exists():
            try:
                table = pa.concat_tables([pq.read_table(path, schema=SCHEMAS["quality"], partitioning=None), table])
            except pa.ArrowException as error:
                msg = f"{path} is damaged ({error}): move it out of the data folder"
                raise OSError(msg) from error
        write_table_atomically(data, path, table)
    return path
