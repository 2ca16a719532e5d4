"""The page as HTML. Its pictures are inline SVG, so that a browser fetches nothing else."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from html import escape
from typing import Any, Final

from core.errors import where_raised
from gateway.statuses import get_status_name
from smspulse.dashboard.queries import PageFilter, PageSnapshot, Row
from smspulse.processes.terminal import format_duration

_log = logging.getLogger(__name__)

# More would push the rest of the page out of sight.
_MAX_DEVICES: Final = 10
# Height of the bars and width of one bar, in units of the SVG.
_HEIGHT, _BAR = 120, 10
_LATENCY_SQL: Final = (
    "FROM asked WHERE source IS NULL ORDER BY list_position(['queue', 'device', 'network', 'total'], step)"
)
# Outcomes in a bar, from below. Their colours are those of Okabe and Ito (page.css), which colour-blind people can
# distinguish.
_BAR_OUTCOMES: Final = ("delivered", "undelivered", "not_sent", "not_permitted", "expired")


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
    if "trouble" in values:
        return f'<p class="bad">{escape(values["trouble"])}</p>{_pipeline_section(values)}'
    minutes = snapshot.query_view(
        "outcomes_by_minute",
        page_filter,
        "SELECT minute, outcome, sum(messages)::BIGINT AS messages FROM asked GROUP BY ALL",
    )
    delivery = snapshot.query_view("delivery_now", page_filter, "FROM asked WHERE source IS NULL ORDER BY hours")
    sections = (
        _delivery_section(delivery),
        _alerts_section(values["alerts"], page_filter),
        _outcome_bars("Outcomes per minute, last hour", minutes, timedelta(minutes=1), 60),
        _outcome_bars("Outcomes per half hour, 24 hours", minutes, timedelta(minutes=30), 48),
        _devices_section(snapshot, page_filter, values),
        _latency_section(snapshot, page_filter),
        _failures_section(snapshot, page_filter),
        _pipeline_section(values),
        f'<p class="dim">As of {values["as_of"]} UTC. Times are when reports were received.</p>',
    )
    return "".join(sections)


def _devices_section(snapshot: PageSnapshot, page_filter: PageFilter, values: dict[str, Any]) -> str:
    devices = snapshot.query_view(
        "devices_now",
        page_filter,
        "FROM asked WHERE device_id IS NOT NULL "
        f"ORDER BY delivered_per_ended_high NULLS LAST, source, device_id LIMIT {_MAX_DEVICES}",
    )
    head = ("device", "messages", "delivered / ended", "95 % interval", "last seen (UTC)", "mostly failed by", "alert")
    rows = _format_rows(devices, lambda row: _device_cells(row, values["alerts"], values["learning"]))
    return _table_section("Worst devices, 24 hours", head, rows)


def _latency_section(snapshot: PageSnapshot, page_filter: PageFilter) -> str:
    latencies = snapshot.query_view("latency_now", page_filter, _LATENCY_SQL)
    percentiles = ("p50", "p95", "p99")
    rows = _format_rows(
        latencies,
        lambda row: (
            row["step"],
            f"{row['messages']:,}",
            *(format_duration(row[f"{name}_s"]) for name in percentiles),
        ),
    )
    return _table_section("Latency between reports, 24 hours", ("step", "messages", *percentiles), rows)


def _failures_section(snapshot: PageSnapshot, page_filter: PageFilter) -> str:
    failures = snapshot.query_view(
        "failure_reasons",
        page_filter,
        "SELECT last_status_id, sum(messages)::BIGINT AS messages FROM asked GROUP BY ALL "
        "ORDER BY messages DESC, last_status_id",
    )
    rows = _format_rows(
        failures,
        lambda row: (
            get_status_name(row["last_status_id"], snapshot.statuses),
            row["last_status_id"],
            f"{row['messages']:,}",
        ),
    )
    return _table_section("Why messages failed, 24 hours", ("reason", "status", "messages"), rows)


def _format_rows(rows: Iterable[Row], cells: Callable[[Row], Sequence[Any]]) -> Iterator[Sequence[Any]]:
    """Yield the cells of each row. A row that cannot be shown is skipped, with a line in the log."""
    for row in rows:
        try:
            yield cells(row)
        except Exception as error:
            _log.error("a row of the page cannot be shown: %s", where_raised(error))


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


def _format_percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _format_interval(row: Row, name: str) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return "" if low is None else f"{low:.1%} to {high:.1%}"


def _delivery_section(rows: Sequence[Row]) -> str:
    if not rows:
        return '<p class="verdict">No outgoing message was first reported within 24 hours.</p>'
    day = rows[-1]
    text = (
        f"Of {day['ended']:,} messages that ended, {_format_percent(day['delivered_per_ended'])} were delivered "
        f"(24 hours; 95 % interval {_format_interval(day, 'delivered_per_ended')})."
        if day["ended"]
        else f"None of {day['attempted']:,} messages has ended yet."
    )
    head = ("last", "messages", "delivered / attempted", "delivered / ended", "95 % interval", "open share")
    return f'<p class="verdict">{text}</p>{_table_section("Delivery", head, map(_delivery_cells, rows))}'


def _delivery_cells(row: Row) -> tuple[str, ...]:
    return (
        "hour" if row["hours"] == 1 else "24 hours",
        f"{row['attempted']:,}",
        _format_percent(row["delivered_per_attempted"]),
        _format_percent(row["delivered_per_ended"]),
        _format_interval(row, "delivered_per_ended"),
        _format_percent(row["open_share"]),
    )


def _device_cells(row: Row, alerts: Sequence[Row], learning: Sequence[Row]) -> tuple[Any, ...]:
    def is_same_device(found: Row) -> bool:
        return bool((found["source"], found["device_id"]) == (row["source"], row["device_id"]))

    state = "learning" if any(map(is_same_device, learning)) else ""
    state = "firing" if any(map(is_same_device, alerts)) else state
    return (
        f"{row['device_id']} ({row['source']})",
        f"{row['attempted']:,}",
        _format_percent(row["delivered_per_ended"]),
        _format_interval(row, "delivered_per_ended"),
        f"{row['last_seen_at'].astimezone(UTC):%d %b %H:%M}",
        row["top_failure"] or "",
        state,
    )


def _alerts_section(alerts: Sequence[Row], page_filter: PageFilter) -> str:
    shown = [
        row
        for row in alerts
        if page_filter.source in ("", row["source"]) and page_filter.device in (None, row["device_id"])
    ]  # fmt: skip
    if not shown:
        return '<p class="dim">No alert is firing.</p>'
    head = ("alert", "source", "device", "channel", "found", "usual", "since (UTC)")
    rows = _format_rows(
        shown,
        lambda row: (
            row["kind"].replace("_", " "),
            row["source"],
            *("all" if row[name] is None else row[name] for name in ("device_id", "channel_id")),
            row["what"] or f"{row['failures']:,} of {row['count']:,}",
            _format_percent(row["baseline"]),
            f"{row['since'].astimezone(UTC):%d %b %H:%M}",
        ),
    )
    return f'<div class="bad">{_table_section("Firing alerts", head, rows)}</div>'


def _pipeline_section(values: dict[str, Any]) -> str:
    rows: list[Sequence[Any]] = [
        ("✓" if each["ok"] else "✗", each["name"], each["what"]) for each in values.get("processes", ())
    ]
    if values.get("lag"):
        rows += [("", group, f"{count:,} records to go") for group, count in values["lag"].items()]
    rows += _format_rows(
        values.get("freshness", ()),
        lambda row: ("", row["dataset"], f"newest {format_duration(row['seconds_since'])} old, {row['rows']:,} rows"),
    )
    checks = values.get("checks", ())
    if checks:
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
    return _table_section("The pipeline", ("", "what", "state"), rows)


def _table_section(title: str, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    cells = "".join(
        "<tr>"
        + "".join(
            f'<td data-name="{escape(name)}">{escape(str(cell))}</td>' for name, cell in zip(head, row, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    heads = "".join(f"<th>{escape(name)}</th>" for name in head)
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
