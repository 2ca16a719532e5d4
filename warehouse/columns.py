"""The columns of datasets and views and their meaning, as they are in `warehouse/columns.csv`. Imports no pyarrow.

A row of the file is a column of a dataset (`of`), with its type in DuckDB's words; a field of a struct (`observation`,
`channel`); or, without `of`, a regular expression of the names of columns that views compute.
"""

import csv
import re
from functools import cache
from importlib.resources import files
from typing import Final, NamedTuple


class Column(NamedTuple):
    """A row of `columns.csv`."""

    of: str
    name: str
    type: str
    meaning: str


# Views that show the columns of a dataset under the same names. Others are looked up by expression first.
_DATASET_BY_VIEW: Final = {
    **dict.fromkeys(("raw_webhooks", "status_events", "incoming_messages"), "raw"),
    **dict.fromkeys(("alerts", "failure_detectors"), "alerts"),
    **dict.fromkeys(("quality", "quality_history"), "quality"),
    "messages": "messages",
    "deadletters": "deadletters",
    "rebuild_differences": "differences",
    "statuses": "status_codes",
}


@cache
def load_columns() -> tuple[Column, ...]:
    """Return the rows of the file."""
    lines = read_column_file().splitlines()[1:]
    return tuple(Column(*row) for row in csv.reader(lines))


def read_column_file() -> str:
    """Return the content of the file."""
    return files("warehouse").joinpath("columns.csv").read_text("utf-8")


def describe_column(view: str, column: str) -> str:
    """Return the meaning of a view's column.

    Raises:
        LookupError: It has none.
    """
    own_dataset = _DATASET_BY_VIEW.get(view)
    # A view's own dataset comes first. The last two have the columns that many views share.
    for dataset in (own_dataset, "", "messages", "raw"):
        for each in load_columns():
            if each.of == dataset and (re.fullmatch(each.name, column) if not dataset else each.name == column):
                return each.meaning
    msg = f"nothing describes {view}.{column}: add it to warehouse/columns.csv"
    raise LookupError(msg)
