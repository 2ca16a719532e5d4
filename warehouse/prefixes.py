"""The dataset `prefixes`: countries and carriers by the library phonenumbers, as a file for any DuckDB."""

from importlib.metadata import version
from pathlib import Path

from warehouse.content_marker import MARKER_KEY, compute_marker, has_marker
from warehouse.durable_files import replace_file
from warehouse.file_names import SEED_DATE


def refresh_prefixes(data: Path) -> None:
    """Write the file, if it is missing or from another version of the library.

    Raises:
        OSError: The data folder is not writable.
    """
    path = data / "prefixes" / f"date={SEED_DATE}" / "phonenumbers.parquet"
    marker = compute_marker(f"phonenumbers {version('phonenumbers')}".encode())
    if has_marker(path, marker):
        return
    # Imported here because pyarrow takes half a second, and the file is written once.
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    from warehouse.schemas import PREFIXES_SCHEMA  # noqa: PLC0415

    columns = [pa.array(values, pa.string()) for values in zip(*_collect_prefixes(), strict=True)]
    table = pa.table(columns, schema=PREFIXES_SCHEMA.with_metadata({MARKER_KEY: marker}))
    with replace_file(data, path) as file:
        pq.write_table(table, file, compression="zstd")


def _collect_prefixes() -> list[tuple[str, str, str | None]]:
    """Return the rows of the dataset, sorted by prefix."""
    # Imported here because the library takes a quarter of a second.
    from phonenumbers import COUNTRY_CODE_TO_REGION_CODE  # noqa: PLC0415
    from phonenumbers.carrierdata import CARRIER_DATA  # noqa: PLC0415

    main = {str(code): regions[0] for code, regions in COUNTRY_CODE_TO_REGION_CODE.items()}
    rows: list[tuple[str, str, str | None]] = [(code, region, None) for code, region in main.items()]
    for prefix, names in CARRIER_DATA.items():
        country = next(main[prefix[:size]] for size in (1, 2, 3) if prefix[:size] in main)
        rows.append((prefix, country, names.get("en") or next(iter(names.values()))))
    return sorted(rows, key=lambda row: row[0])
