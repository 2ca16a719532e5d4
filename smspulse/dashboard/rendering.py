"""The page as HTML. Its pictures are inline SVG, so that a browser fetches nothing else."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from html import escape
from operator import itemgetter
from typing import Any, Final

import duckdb

from core.errors import where_raised
from gateway.statuses import get_status_name
from smspulse.dashboard.queries import FAILURES, PageFilter, PageSnapshot, Row
from smspulse.processes.terminal import format_duration

_log = logging.getLogger(__name__)

# More would push the rest of the page out of sight.
_MAX_DEVICES: Final = 10
# Height of the bars and width of one bar, in units of the SVG.
_HEIGHT, _BAR = 120, 10
# Outcomes in a bar, from below. Their colours are those of Okabe and Ito (page.css), which colour-blind people can
# distinguish.
_BAR_OUTCOMES: Final = ("delivered", "undelivered", "not_sent", "not_permitted", "expired")

# A table: how a row is shown, by the heads of its columns.
_Columns = Mapping[str, Callable[[Row], Any]]


def _count(name: str) -> Callable[[Row], str]:
    return lambda row: f"{row[name]:,}"


def _percent(name: str) -> Callable[[Row], str]:
    return lambda row: "-" if row[name] is None else f"{row[name]:.1%}"


def _interval(row: Row) -> str:
    low, high = row["delivered_per_ended_low"], row["delivered_per_ended_high"]
    return "" if low is None else f"{low:.1%} to {high:.1%}"


def _utc_time(name: str) -> Callable[[Row], str]:
    return lambda row: f"{row[name].astimezone(UTC):%d %b %H:%M}"


def _part_or_all(name: str) -> Callable[[Row], Any]:
    return lambda row: "all" if row[name] is None else row[name]


_DELIVERY_COLUMNS: Final[_Columns] = {
    "last": lambda row: "hour" if row["hours"] == 1 else "24 hours",
    "messages": _count("attempted"),
    "delivered / attempted": _percent("delivered_per_attempted"),
    "delivered / ended": _percent("delivered_per_ended"),
    "95 % interval": _interval,
    "open share": _percent("open_share"),
}
_ALERT_COLUMNS: Final[_Columns] = {
    "alert": lambda row: row["kind"].replace("_", " "),
    "source": itemgetter("source"),
    "device": _part_or_all("device_id"),
    "channel": _part_or_all("channel_id"),
    "found": lambda row: row["what"] or f"{row['failures']:,} of {row['count']:,}",
    "usual": _percent("baseline"),
    "since (UTC)": _utc_time("since"),
}
_DEVICE_COLUMNS: Final[_Columns] = {
    "device": lambda row: f"{row['device_id']} ({row['source']})",
    "attempts": _count("attempted"),
    "delivered / ended": _percent("delivered_per_ended"),
    "95 % interval": _interval,
    "verdict": lambda row: "failing" if row["is_failing"] else "",
    "last seen (UTC)": _utc_time("last_seen_at"),
    "mostly failed by": lambda row: row["top_failure"] or "",
}
_LATENCY_COLUMNS: Final[_Columns] = {
    "step": itemgetter("step"),
    "messages": _count("messages"),
    "p50": lambda row: format_duration(row["p50_s"]),
    "p95": lambda row: format_duration(row["p95_s"]),
    "p99": lambda row: format_duration(row["p99_s"]),
}


def render_page(snapshot: PageSnapshot, page_filter: PageFilter, refresh_s: float) -> str:
    """Return the whole page, which refreshes itself every so many seconds."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>smspulse</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="stylesheet" href="page.css"><script src="page.js" defer></script>
<noscript><meta http-equiv="refresh" content="10"></noscript></head>
<body>{_filter_form(snapshot, page_filter)}
<main id="content" data-refresh="{refresh_s}">{render_content(snapshot, page_filter)}</main></body></html>"""


def render_content(snapshot: PageSnapshot, page_filter: PageFilter) -> str:
    """Return the changing part of the page."""
    values = snapshot.current_values
    trouble = values.get("trouble")
    if trouble is None:
        try:
            return _render_numbers(snapshot, page_filter, values)
        except duckdb.OutOfMemoryException:
            trouble = "the messages of a day need more memory: raise SMSPULSE_PAGE_MEMORY, or choose a source above"
    return f'<p class="bad">{escape(trouble)}</p>{_pipeline_section(values)}'


def _render_numbers(snapshot: PageSnapshot, page_filter: PageFilter, values: Mapping[str, Any]) -> str:
    def query(view: str, sql: str) -> list[Row]:
        return snapshot.query_view(view, page_filter, sql)

    minutes = query(
        "outcomes_by_minute", "SELECT minute, outcome, sum(messages)::BIGINT AS messages FROM asked GROUP BY ALL"
    )
    devices = query(
        "devices_now",
        "FROM asked WHERE device_id IS NOT NULL AND ($device IS NULL OR device_id = $device) "
        f"ORDER BY delivered_per_ended_high NULLS LAST, source, device_id LIMIT {_MAX_DEVICES}",
    )
    latencies = query(
        "latency_now",
        "FROM asked WHERE source IS NULL ORDER BY list_position(['queue', 'device', 'network', 'total'], step)",
    )
    failures = query(
        FAILURES,
        "SELECT last_status_id, sum(messages)::BIGINT AS messages FROM asked GROUP BY ALL "
        "ORDER BY messages DESC, last_status_id",
    )
    failure_columns: _Columns = {
        "reason": lambda row: get_status_name(row["last_status_id"], snapshot.statuses),
        "status": itemgetter("last_status_id"),
        "attempts": _count("messages"),
        "likely cause": lambda row: _read_status_text(snapshot, row, "likely_cause"),
        "what to do": lambda row: _read_status_text(snapshot, row, "what_to_do"),
    }
    sections = (
        _delivery_section(query("delivery_now", "FROM asked WHERE source IS NULL ORDER BY hours")),
        _alerts_section(values["alerts"], page_filter),
        _outcome_bars("Outcomes per minute, last hour", minutes, timedelta(minutes=1), 60),
        _outcome_bars("Outcomes per half hour, 24 hours", minutes, timedelta(minutes=30), 48),
        _table_section("Worst devices, 24 hours", devices, {**_DEVICE_COLUMNS, "alert": _device_state(values)}),
        _table_section("Latency between reports, 24 hours", latencies, _LATENCY_COLUMNS),
        _table_section("Why attempts failed, 24 hours", failures, failure_columns),
        _pipeline_section(values),
        f'<p class="dim">As of {values["as_of"]} UTC. Times are when reports were received.</p>',
    )
    return "".join(sections)


def _read_status_text(snapshot: PageSnapshot, row: Row, name: str) -> str:
    """Return a text about the status of a row; empty for a status that nobody documents."""
    status = snapshot.statuses.get(row["last_status_id"])
    return "" if status is None else str(getattr(status, name))


def _filter_form(snapshot: PageSnapshot, page_filter: PageFilter) -> str:
    options = "".join(
        f'<option value="{escape(name)}"{" selected" if name == page_filter.source else ""}>{escape(name)}</option>'
        for name in [row["source"] for row in snapshot.current_values.get("sources", ())]
    )
    device = "" if page_filter.device is None else page_filter.device
    return f"""<header><h1>smspulse</h1><form>
<label>Source <select name="source"><option value="">all</option>{options}</select></label>
<label>Device <input name="device" inputmode="numeric" pattern="[0-9]*" size="7" value="{device}"></label>
<button>Show</button></form></header>"""


def _delivery_section(rows: Sequence[Row]) -> str:
    if not rows:
        return '<p class="verdict">No outgoing message was first reported within 24 hours.</p>'
    day = rows[-1]
    text = (
        f"Of {day['ended']:,} messages that ended, {_percent('delivered_per_ended')(day)} were delivered "
        f"(24 hours; 95 % interval {_interval(day)})."
        if day["ended"]
        else f"None of {day['attempted']:,} messages has ended yet."
    )
    return f'<p class="verdict">{text}</p>{_table_section("Delivery", rows, _DELIVERY_COLUMNS)}'


def _device_state(values: Mapping[str, Any]) -> Callable[[Row], str]:
    """Return how the alerts of a device stand, of its row."""
    states = {(row["source"], row["device_id"]): "learning" for row in values["learning"]}
    states |= {(row["source"], row["device_id"]): "firing" for row in values["alerts"]}
    return lambda row: states.get((row["source"], row["device_id"]), "")


def _alerts_section(alerts: Sequence[Row], page_filter: PageFilter) -> str:
    shown = [
        row
        for row in alerts
        if page_filter.source in ("", row["source"]) and page_filter.device in (None, row["device_id"])
    ]  # fmt: skip
    if not shown:
        return '<p class="dim">No alert is firing.</p>'
    return f'<div class="bad">{_table_section("Firing alerts", shown, _ALERT_COLUMNS)}</div>'


def _pipeline_section(values: Mapping[str, Any]) -> str:
    rows: list[tuple[str, str, str]] = [
        ("✓" if each["ok"] else "✗", each["name"], each["what"]) for each in values.get("processes", ())
    ]
    rows += [("", group, f"{count:,} records to go") for group, count in (values.get("lag") or {}).items()]
    for row in values.get("freshness", ()):
        with _skip_if_odd():
            rows.append(
                ("", row["dataset"], f"newest {format_duration(row['seconds_since'])} old, {row['rows']:,} rows")
            )
    if checks := values.get("checks", ()):
        age = datetime.now(UTC) - max(row["checked_at"] for row in checks)
        failed = [row for row in checks if not row["success"]]
        checked = format_duration(age.total_seconds())
        text = f"{len(checks) - len(failed)} of {len(checks)} expectations hold, {checked} ago"
        rows.append(("✗" if failed else "✓", "checks", text))
        rows += [("✗", row["expectation"], f"{row['severity']}: {row['observed']}") for row in failed]
    rows += [
        ("!", "dead letters", f"{row['records']:,} {row['reason']} in 24 hours")
        for row in values.get("deadletters", ())
    ]
    return _table_section("The pipeline", rows, {"": itemgetter(0), "what": itemgetter(1), "state": itemgetter(2)})


@contextmanager
def _skip_if_odd() -> Iterator[None]:
    """Skip a row that cannot be shown, with a line in the log. It costs itself, and not the page."""
    try:
        yield
    except Exception as error:
        _log.error("a row of the page cannot be shown: %s", where_raised(error))


def _table_section(title: str, rows: Iterable[Any], columns: Mapping[str, Callable[[Any], Any]]) -> str:
    cells = ""
    for row in rows:
        with _skip_if_odd():
            texts = [(escape(name), escape(str(show(row)))) for name, show in columns.items()]
            cells += "<tr>" + "".join(f'<td data-name="{name}">{text}</td>' for name, text in texts) + "</tr>"
    heads = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = f"<div class=wide><table><thead><tr>{heads}</tr></thead><tbody>{cells}</tbody></table></div>"
    return f"<section><h2>{escape(title)}</h2>{body if cells else '<p class=dim>None.</p>'}</section>"


def _sum_by_bar(minutes: Sequence[Row], width: timedelta, count: int) -> list[dict[str, int]]:
    """Return the messages by outcome of each bar, the newest bar last."""
    now = datetime.now(UTC)
    sums = [dict.fromkeys(_BAR_OUTCOMES, 0) for _ in range(count)]
    for row in minutes:
        place = count - 1 - (now - row["minute"]) // width
        if 0 <= place < count and row["outcome"] in _BAR_OUTCOMES:
            sums[place][row["outcome"]] += row["messages"]
    return sums


def _outcome_bars(title: str, minutes: Sequence[Row], width: timedelta, count: int) -> str:
    """Return stacked bars of outcomes, the newest one last, as a picture with its totals as text."""
    sums = _sum_by_bar(minutes, width, count)
    most = max(sum(bar.values()) for bar in sums) or 1
    shapes = []
    for place, bar in enumerate(sums):
        bottom = 0.0
        for part, messages in bar.items():
            height = messages / most * _HEIGHT
            bottom += height
            if messages:
                box = f'x="{place * _BAR}" y="{_HEIGHT - bottom:.2f}" width="{_BAR - 2}" height="{height:.2f}"'
                shapes.append(f'<rect class="{part}" {box}><title>{part} {messages:,}</title></rect>')
    totals = {part: sum(bar[part] for bar in sums) for part in _BAR_OUTCOMES}
    legend = " ".join(
        f'<span class="key {part}">{part.replace("_", " ")} {n:,}</span>' for part, n in totals.items() if n
    )
    since = format_duration((width * count).total_seconds())
    return (
        f'<section><h2>{title}</h2><svg viewBox="0 0 {count * _BAR} {_HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="{title}">{"".join(shapes)}</svg><p class="dim ends"><span>{since} ago</span><span>now</span></p>'
        f"<p>{legend or 'None.'} "
        f'<span class="dim">Highest: {most if legend else 0:,}.</span></p></section>'
    )
