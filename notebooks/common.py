"""Shared parts of the notebooks: controls, the chosen messages, and output."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Final

import altair as alt
import marimo as mo
import pandas as pd

from warehouse.errors import NoWarehouseError
from warehouse.reader import query

# Colours of Okabe and Ito. Colour-blind people can distinguish them, and they are visible on white and on black.
COLOURS: Final = ["#0072B2", "#D55E00", "#E69F00", "#CC79A7", "#009E73", "#999999"]
# Of what needs attention, and of the rest.
ALARM_COLOURS: Final = [COLOURS[1], COLOURS[0]]
# Parts of names of columns with shares.
_SHARE_COLUMN_PARTS: Final = ("share", "ratio", "per_", " / ", "baseline")

_CHOICES_SQL: Final = """
    SELECT
        list_sort(list(DISTINCT source)) AS source,
        list_sort(list(DISTINCT device_id) FILTER (device_id IS NOT NULL)) AS device,
        list_sort(list(DISTINCT channel_id) FILTER (channel_id IS NOT NULL)) AS channel,
        min(first_seen_at)::DATE AS oldest,
        max(first_seen_at)::DATE AS newest
    FROM messages WHERE outcome <> 'incoming' HAVING count(*) > 0
"""
_CHOSEN_SQL: Final = """
    WITH outgoing AS (
        SELECT *, date_trunc(if($days <= 2, 'hour', 'day'), first_seen_at) AS time
        FROM {relation}
        WHERE
            outcome <> 'incoming'
            AND ($source IS NULL OR source = $source)
            AND first_seen_at < $until::DATE + INTERVAL 1 DAY
    ),
    chosen AS (
        SELECT * FROM outgoing
        WHERE
            first_seen_at >= (SELECT max(first_seen_at) FROM outgoing) - to_days($days)
            AND ($device IS NULL OR device_id = $device)
            AND ($channel IS NULL OR channel_id = $channel)
    )
"""

# Markdown, a table or a picture.
Piece = str | pd.DataFrame | alt.TopLevelMixin


@dataclass(frozen=True)
class NotebookFilter:
    """The choice of a reader.

    Args:
        until: The last day (UTC). The period ends with the newest message of it.
        days: Length of the period in days.
        source, device, channel: One of them; all if None.
        step: Step of the latency: total, queue, device or network.
    """

    until: date
    days: int = 7
    source: str | None = None
    device: int | None = None
    channel: int | None = None
    step: str = "total"

    @property
    def parameters(self) -> dict[str, Any]:
        """The period and the place, as parameters of SQL."""
        return {name: getattr(self, name) for name in ("until", "days", "source", "device", "channel")}

    @property
    def time_span(self) -> str:
        """The period as text."""
        return f"{'24 hours' if self.days == 1 else f'{self.days} days'} up to {self.until:%d %b %Y}"


def open_notebook(
    days: int = 7, places: Sequence[str] = ("source", "device", "channel"), **further: Any
) -> tuple[Path, str, mo.ui.dictionary | None]:
    """Return the data folder, a problem in Markdown (empty without one), and the controls (None with a problem).

    The folder is that of SMSPULSE_DATA, by default `./.smspulse`.

    Args:
        days: Initial length of the period.
        places: The controls for source, device and channel.
        further: Further controls by fields of `NotebookFilter`.
    """
    data = Path(os.environ.get("SMSPULSE_DATA", "./.smspulse"))
    try:
        found = query(data, _CHOICES_SQL)
    except NoWarehouseError:
        return data, f"No warehouse in `{data}`: start `smspulse up`, or name its folder in `SMSPULSE_DATA`.", None
    if found.empty:
        return data, f"`{data}` has no outgoing message yet: send some, or run `smspulse simulate`.", None
    (row,) = found.itertuples()
    elements: dict[str, Any] = {place: _build_dropdown(place, getattr(row, place)) for place in places} | further
    newest = row.newest.date()
    elements["days"] = mo.ui.slider(steps=[1, 2, 7, 14, 30, 90], value=days, label="Days", show_value=True)
    elements["until"] = mo.ui.date(start=row.oldest.date(), stop=newest, value=newest, label="up to (UTC)")
    return data, "", mo.ui.dictionary(elements)


def _build_dropdown(place: str, values: Any) -> mo.ui.dropdown:
    options = {"all": None, **{str(each): each for each in ([] if values is None else list(values))}}
    return mo.ui.dropdown(options, value="all", label=place.title(), searchable=True)


def read_choice(picked: Any) -> NotebookFilter:
    """Return the choice of the controls; without controls, stop the cell and those that depend on it."""
    mo.stop(picked is None)
    return NotebookFilter(**picked.value)


def show_header(question: str, problem: str, picked: mo.ui.dictionary | None = None) -> Any:
    """Return the head of a notebook: its question, and the controls or the problem."""
    below = [] if picked is None else [picked.hstack(justify="start", wrap=True)]
    return mo.vstack([mo.md(f"# {question}"), *([mo.callout(mo.md(problem), kind="warn")] if problem else below)])


def query_chosen_messages(data: Path, sql: str, choice: NotebookFilter, **parameters: Any) -> pd.DataFrame:
    """Query the outgoing messages of a choice.

    Args:
        data: The data folder.
        sql: The query. Its relation `chosen` has the chosen rows of `messages` and a column `time`: the hour of the
            first report for up to two days, else the day.
        choice: The choice of messages.
        parameters: Parameters of the query.
    """
    return query(data, _CHOSEN_SQL.format(relation="messages") + sql, choice.parameters | parameters)


def query_chosen_attempts(data: Path, sql: str, choice: NotebookFilter, **parameters: Any) -> pd.DataFrame:
    """Query the attempts of a choice: as `query_chosen_messages`, but `chosen` has rows of `attempts`."""
    return query(data, _CHOSEN_SQL.format(relation="attempts") + sql, choice.parameters | parameters)


def time_axis(field: str, title: str) -> alt.X:
    """Return an axis of times in UTC."""
    # At midnight the axis shows the date.
    clock = "utchours(datum.value) || utcminutes(datum.value)"
    words = f"utcFormat(datum.value, {clock} ? '%H:%M' : '%d %b')"
    axis = alt.Axis(labelExpr=words, tickCount=7, labelOverlap=True)
    return alt.X(f"{field}:T", title=f"{title} (UTC)", scale=alt.Scale(type="utc"), axis=axis)


def readable_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a table for people: shares in per cent, times in UTC, an empty cell for null."""
    return pd.DataFrame({name: _format_column(str(name), column) for name, column in frame.items()}, dtype=object)


def _format_column(name: str, column: Any) -> Any:
    cells = column
    if pd.api.types.is_datetime64_any_dtype(column):
        has_days_only = (column == column.dt.normalize()).all()
        cells = column.dt.strftime("%Y-%m-%d" if has_days_only else "%Y-%m-%d %H:%M:%S")
    elif pd.api.types.is_float_dtype(column):
        if any(part in name for part in _SHARE_COLUMN_PARTS):
            cells = column.map("{:.1%}".format)
        # pandas has floats for whole numbers in a column with nulls.
        elif (column.dropna() % 1 == 0).all():
            cells = column.astype("Int64")
        else:
            cells = column.map("{:,.1f}".format)
    return cells.astype(object).where(column.notna(), "")


def show_pieces(pieces: Sequence[Piece]) -> Any:
    """Return the output of a notebook for marimo. Pictures follow the light or dark theme of the page."""
    return mo.vstack([_show_piece(piece) for piece in pieces])


def _show_piece(piece: Piece) -> Any:
    if isinstance(piece, str):
        return mo.md(piece)
    if isinstance(piece, pd.DataFrame):
        hidden = {"show_column_summaries": False, "show_data_types": False, "show_download": False}
        return mo.ui.table(readable_table(piece), page_size=20, selection=None, **hidden)
    return piece.configure(background="transparent", view=alt.ViewConfig(stroke=None))
