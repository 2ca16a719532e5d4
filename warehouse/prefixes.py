"""The dataset `prefixes`: what the library phonenumbers knows of countries and carriers, as a file for any DuckDB."""

from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from warehouse.durable_files import lock_folder, replace_durably
from warehouse.file_names import SEED_DATE, TEMPORARY_FOLDER
from warehouse.schemas import PREFIXES_SCHEMA

_LIBRARY_VERSION_KEY: Final = b"smspulse.phonenumbers"


def refresh_prefixes(data: Path) -> None:
    """Write the file, if it is missing or of another version of the library.

    Raises:
        OSError: The data folder is not writable.
    """
    path = data / "prefixes" / f"date={SEED_DATE}" / "phonenumbers.parquet"
    current = version("phonenumbers").encode()
    if path.exists() and (pq.read_metadata(path).metadata or {}).get(_LIBRARY_VERSION_KEY) == current:
        return
    table = _build_prefix_table().replace_schema_metadata({_LIBRARY_VERSION_KEY: current})
    temporary = data / TEMPORARY_FOLDER / path.name
    temporary.parent.mkdir(exist_ok=True)
    with lock_folder(temporary.parent):
        pq.write_table(table, temporary, compression="zstd")
        replace_durably(data, temporary, path)


@cache
def _build_prefix_table() -> pa.Table:
    """Return what the library knows, which takes a tenth of a second to gather."""
    from phonenumbers import COUNTRY_CODE_TO_REGION_CODE  # noqa: PLC0415 - a quarter of a second, once
    from phonenumbers.carrierdata import CARRIER_DATA  # noqa: PLC0415

    main = {str(code): regions[0] for code, regions in COUNTRY_CODE_TO_REGION_CODE.items()}
    rows: list[tuple[str, str, str | None]] = [(code, region, None) for code, region in main.items()]
    for prefix, names in CARRIER_DATA.items():
        country = next(main[prefix[:size]] for size in (1, 2, 3) if prefix[:size] in main)
        rows.append((prefix, country, names.get("en") or next(iter(names.values()))))
    columns = [pa.array(values, pa.string()) for values in zip(*sorted(rows, key=lambda row: row[0]), strict=True)]
    return pa.table(columns, schema=PREFIXES_SCHEMA)
