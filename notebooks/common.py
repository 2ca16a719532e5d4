"""What every notebook is made of: what one may choose, the messages that are left, and how it shows what it found."""

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

COLOURS: Final = ["#0072B2", "#D55E00", "#E69F00", "#CC79A7", "#009E73", "#999999"]
"""Colours of Okabe and Ito, which the colour-blind tell apart and which show on white and on black."""
_SHARE_COLUMN_PARTS: Final = ("share", "ratio", "per_", " / ", "baseline")
"""What is in the name of a column of shares."""

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
        FROM messages
        WHERE
            outcome <> 'incoming'
            AND ($source = '' OR source = $source)
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

Piece = str | pd.DataFrame | alt.TopLevelMixin
"""Markdown, a table or a picture."""


@dataclass(frozen=True)
class NotebookFilter:
    """What somebody wants to see.

    Args:
        until: The last day (UTC); messages count up to the newest one of it.
        days: How many days up to that.
        source: One, or all where it is empty.
        device, channel: One, or all where it is None.
        step: Of latency: total, queue, device or network.
    """

    until: date
    days: int = 7
    source: str = ""
    device: int | None = None
    channel: int | None = None
    step: str = "total"

    @property
    def time_span(self) -> str:
        """The time in words."""
        return f"{'24 hours' if self.days == 1 else f'{self.days} days'} up to {self.until:%d %b %Y}"


def build_controls(
    data: Path, days: int = 7, places: Sequence[str] = ("source", "device", "channel"), **further: Any
) -> tuple[str, mo.ui.dictionary | None]:
    """Return what keeps a notebook from showing anything, in Markdown (empty if nothing does), and what to choose by.

    Args:
        data: The data folder.
        days: Chosen at first.
        places: Which of source, device and channel can be chosen.
        further: Elements by fields of `NotebookFilter`.
    """
    try:
        found = query(data, _CHOICES_SQL)
    except NoWarehouseError:
        return f"No warehouse in `{data}`: start `smspulse up`, or name its folder in `SMSPULSE_DATA`.", None
    if found.empty:
        return f"`{data}` has no outgoing message yet: send some, or run `smspulse simulate`.", None
    (row,) = found.itertuples()
    elements = {}
    for place in places:
        there: Any = getattr(row, place)
        everything = "" if place == "source" else None
        options = {"all": everything, **{str(each): each for each in ([] if there is None else list(there))}}
        elements[place] = mo.ui.dropdown(options, value="all", label=place.title(), searchable=True)
    newest = row.newest.date()
    elements |= further
    elements["days"] = mo.ui.slider(steps=[1, 2, 7, 14, 30, 90], value=days, label="Days", show_value=True)
    elements["until"] = mo.ui.date(start=row.oldest.date(), stop=newest, value=newest, label="up to (UTC)")
    return "", mo.ui.dictionary(elements)


def show_header(question: str, problem: str, picked: mo.ui.dictionary | None = None) -> Any:
    """Return the head of a notebook: its question, and what is to be chosen or what is in the way."""
    below = [] if picked is None else [picked.hstack(justify="start", wrap=True)]
    return mo.vstack([mo.md(f"# {question}"), *([mo.callout(mo.md(problem), kind="warn")] if problem else below)])


def query_chosen_messages(data: Path, sql: str, choice: NotebookFilter, **parameters: Any) -> pd.DataFrame:
    """Query the view `messages`, cut down to the outgoing ones of a choice.

    Args:
        data: The data folder.
        sql: The query; `chosen` in it is what is left of `messages`, with `time`: the hour of the first report
            up to two days, else the day.
        choice: Which.
        parameters: Of the query.
    """
    names = ("until", "days", "source", "device", "channel")
    return query(data, _CHOSEN_SQL + sql, {name: getattr(choice, name) for name in names} | parameters)


def time_axis(field: str, title: str) -> alt.X:
    """Return an axis of times in UTC."""
    clock = "utchours(datum.value) || utcminutes(datum.value)"
    words = f"utcFormat(datum.value, {clock} ? '%H:%M' : '%d %b')"
    axis = alt.Axis(labelExpr=words, tickCount=7, labelOverlap=True)
    return alt.X(f"{field}:T", title=f"{title} (UTC)", scale=alt.Scale(type="utc"), axis=axis)


def readable_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a table as people read it: shares in per cent, times in UTC, nothing for null."""

    def format_cell(name: str, value: Any, *, whole: bool, days: bool) -> Any:
        if pd.api.types.is_scalar(value) and pd.isna(value):
            return ""
        if isinstance(value, pd.Timestamp):
            return f"{value:%Y-%m-%d}" if days else f"{value:%Y-%m-%d %H:%M:%S}"
        if isinstance(value, float) and any(part in name for part in _SHARE_COLUMN_PARTS):
            return f"{value:.1%}"
        if isinstance(value, float):
            return int(value) if whole else f"{value:,.1f}"  # numbers with a null among them are floats in pandas
        return value

    columns = {}
    for name, column in frame.items():
        whole = bool(pd.api.types.is_float_dtype(column) and (column.dropna() % 1 == 0).all())
        days = bool(pd.api.types.is_datetime64_any_dtype(column) and (column == column.dt.normalize()).all())
        columns[name] = [format_cell(str(name), value, whole=whole, days=days) for value in column]
    return pd.DataFrame(columns, dtype=object)


def show_pieces(pieces: Sequence[Piece]) -> Any:
    """Return what a notebook found, as marimo shows it; pictures follow the page's theme, light or dark."""
    shown = []
    for piece in pieces:
        if isinstance(piece, str):
            shown.append(mo.md(piece))
        elif isinstance(piece, pd.DataFrame):
            shown.append(
                mo.ui.table(
                    readable_table(piece),
                    show_column_summaries=False,
                    show_data_types=False,
                    page_size=20,
                    selection=None,
                    show_download=False,
                )
            )
        else:
            shown.append(piece.configure(background="transparent", view=alt.ViewConfig(stroke=None)))
    return mo.vstack(shown)
