"""Arrow schemas of the files of each dataset. A field's description is in its metadata, and so in every file."""

from typing import Any, Final

import pyarrow as pa

from warehouse.columns import load_columns
from warehouse.datasets import DATASET_NAMES, RECENT_BASE, RECENT_UPDATES, ROLLUPS

TIME_TYPE: Final = pa.timestamp("ms", tz="UTC")
POSITION_COLUMNS: Final = ("topic", "partition", "offset", "recorded_at", "incarnation")
"""Columns of a record's place in Kafka."""

_TYPES: Final[dict[str, pa.DataType]] = {
    "VARCHAR": pa.string(),
    "BLOB": pa.binary(),
    "BOOLEAN": pa.bool_(),
    "INTEGER": pa.int32(),
    "BIGINT": pa.int64(),
    "DOUBLE": pa.float64(),
    "DATE": pa.date32(),
    "TIMESTAMPTZ": TIME_TYPE,
    "MAP(VARCHAR, BIGINT)": pa.map_(pa.string(), pa.int64()),
}


def _find_type(name: str) -> pa.DataType:
    if name.endswith("[]"):
        return pa.list_(_find_type(name.removesuffix("[]")))
    # Any other type is a struct, whose fields are rows of the file.
    return _TYPES.get(name) or pa.struct(_fields_of(name))


def _fields_of(owner: str) -> list["pa.Field[Any]"]:
    return [
        pa.field(each.name, _find_type(each.type), metadata={"description": each.meaning} if each.meaning else None)
        for each in load_columns()
        if each.of == owner
    ]


ARRAY_TYPES: Final = (pa.struct(_fields_of("observation")), pa.struct(_fields_of("attempt")))
"""Structs whose fields a record on `sms.messages` has as an array, in this order."""
_OWNERS: Final = {
    RECENT_BASE: "base",
    RECENT_UPDATES: "messages",
    **{f"{RECENT_BASE}/{name}": f"base/{name}" for name in ROLLUPS},
}
SCHEMAS: Final = {name: pa.schema(_fields_of(_OWNERS.get(name, name))) for name in DATASET_NAMES}
"""The schema of each dataset, also of those that are not landed: rebuilt from others, or part of the product."""
