"""What every notebook begins with: is there anything to look at, and which sources are there."""

from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd

from warehouse.errors import NoWarehouseError
from warehouse.read import query

COLOURS = ["#0072B2", "#D55E00", "#E69F00", "#CC79A7", "#009E73", "#999999"]
"""Colours of Okabe and Ito, which the colour-blind tell apart and which show on white and on black."""


def look(data: Path) -> tuple[str, list[str]]:
    """Return what keeps a notebook from showing anything, in Markdown (empty if nothing does), and the sources."""
    try:
        found = query(data, "SELECT DISTINCT source FROM messages WHERE outcome <> 'incoming' ORDER BY source")
    except NoWarehouseError:
        return f"No warehouse in `{data}`: start `smspulse up`, or name its folder in `SMSPULSE_DATA`.", []
    sources = found["source"].tolist()
    return "" if sources else f"`{data}` has no outgoing message yet: send some, or run `smspulse simulate`.", sources


def chosen(data: Path, sql: str, source: str, days: int, **parameters: Any) -> pd.DataFrame:
    """Query the view `messages`, cut down to outgoing ones of a source (all if empty) and of some days.

    Args:
        data: The data folder.
        sql: The query; `chosen` in it is what is left of `messages`.
        source: A source, or an empty text.
        days: Days up to the newest message.
        parameters: Of the query.
    """
    cut = """
        WITH outgoing AS (
            SELECT * FROM messages WHERE outcome <> 'incoming' AND ($source = '' OR source = $source)
        ),
        chosen AS (
            SELECT * FROM outgoing
            WHERE first_seen_at >= (SELECT max(first_seen_at) FROM outgoing) - to_days($days)
        )
    """
    return query(data, cut + sql, {"source": source, "days": days, **parameters})


def span(days: int) -> str:
    """Return a number of days in words."""
    return "24 hours" if days == 1 else f"{days} days"


def plain(chart: Any) -> Any:
    """Let a chart follow the page's theme, light or dark."""
    return chart.configure(background="transparent", view=alt.ViewConfig(stroke=None))
