"""Matching of phone numbers in the columns of landed files, and removal of the matching values."""

from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from gateway.number_search import ENCODED_TEXT, NumberSearch

# Columns of text that people wrote. All of them are erased in a row in which a number is found anywhere. In other
# columns, only a value that contains the number is erased.
_CONTENT_COLUMNS: Final = ("body", "text", "image_url")

# Columns of text by which rows are found. It comes from this project or is made of ids, not from outside.
_IDENTITY_COLUMNS: Final = frozenset(
    {"topic", "incarnation", "origin_topic", "source", "ingest_id", "message_key", "alert_id", "kind", "scope", "phase"}
)

# Integers from outside by which nothing is counted.
_NUMBER_COLUMNS: Final = ("internal_id",)

ERASED: Final = "erased"
"""Replaces an address or a body. Null would remove a fact of the message, or look like a lost body."""


def may_hold_number(column: "pa.Field[Any]") -> bool:
    """Return whether a column may have text, bytes or a number from outside."""
    if column.name in _NUMBER_COLUMNS:
        return True
    kind = column.type.value_type if pa.types.is_list(column.type) else column.type
    return kind in {pa.string(), pa.binary()} and column.name not in _IDENTITY_COLUMNS


def match_columns(batch: pa.RecordBatch, search: NumberSearch) -> dict[str, "pa.Array[Any]"]:
    """Return, by column, the rows in which a value contains one of the numbers."""
    names = [column.name for column in batch.schema if may_hold_number(column)]
    return {name: _match_column(batch, name, search) for name in names}


def match_rows(found: dict[str, "pa.Array[Any]"], batch: pa.RecordBatch, webhooks: set[str]) -> "pa.Array[Any]":
    """Return the rows in which a number was found, and those of the same webhooks."""
    rows = pa.array([False] * batch.num_rows)
    if webhooks:
        is_erased = pc.fill_null(pc.equal(batch["body"], ERASED.encode()), True)
        rows = pc.and_not(pc.is_in(batch["ingest_id"], pa.array(sorted(webhooks), pa.string())), is_erased)
    for matches in found.values():
        rows = pc.or_(rows, matches)
    return rows


def _match_column(batch: pa.RecordBatch, name: str, search: NumberSearch) -> "pa.Array[Any]":
    """Return the rows in which a column contains one of the numbers. No result is null."""
    column = batch[name]
    if name in _NUMBER_COLUMNS:
        return pc.is_in(column, pa.array(search.ids, column.type))
    if pa.types.is_list(column.type):
        parents = pc.list_parent_indices(column).filter(_match_texts(column.flatten(), search))
        return pc.is_in(pa.array(range(batch.num_rows), parents.type), parents)
    types = batch["content_type"] if name == "body" and "content_type" in batch.schema.names else None
    return _match_texts(column, search, types)


def _match_texts(
    column: "pa.Array[Any]", search: NumberSearch, content_types: "pa.Array[Any] | None" = None
) -> "pa.Array[Any]":
    """Return the texts, or bodies of the given types, that contain one of the numbers."""
    found = pc.fill_null(pc.match_substring_regex(column, search.expression), False)
    # The expression is enough for nearly all values. Values that may be encoded are searched in each decoded form.
    undecided = pc.and_not(pc.fill_null(pc.match_substring_regex(column, ENCODED_TEXT), False), found)
    rows = pc.indices_nonzero(undecided).to_pylist()
    if not rows:
        return found
    matches = found.to_pylist()
    for row in rows:
        value = column[row].as_py()
        if type(value) is str:
            matches[row] = search.is_in(value)
        else:
            content_type = content_types[row].as_py() if content_types is not None else None
            matches[row] = search.is_in_body(value, (content_type or "").encode())
    return pa.array(matches, pa.bool_())


def erase_column_values(
    column: "pa.Array[Any]", name: str, found: "pa.Array[Any] | None", rows: "pa.Array[Any]"
) -> "pa.Array[Any]":
    """Return a column without the values in which a number was found, and without contents in any of the rows."""
    if found is None:
        return column
    if name in _CONTENT_COLUMNS:
        return pc.if_else(rows, pa.scalar(ERASED.encode() if name == "body" else None, column.type), column)
    replacement = None if name in _NUMBER_COLUMNS else [ERASED] if pa.types.is_list(column.type) else ERASED
    return pc.if_else(found, pa.scalar(replacement, column.type), column)
