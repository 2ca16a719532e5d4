"""Output of `smspulse alerts`."""

import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import msgspec
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from core.alerts import EVALUATED_KINDS, Alert
from smspulse.alerting.alert_state import CAUSE_WAIT_S, AlertState, alert_evidence, alert_summary
from smspulse.alerting.backtest import BacktestResult
from smspulse.alerting.errors import NoSuchAlertError, PictureError
from smspulse.alerting.silences import SilenceStore
from warehouse.reader import fetch_rows, open_warehouse

# More names would hide the alerts above them.
_MAX_LEARNING_NAMES: Final = 5


def read_landed_alerts(data: Path) -> list[Alert]:
    """Return the alerts of the view `alerts`: those that fire first, then by time, the latest first.

    Raises:
        NoWarehouseError: Nothing has landed yet.
    """
    # The view has timestamps, the model of an alert milliseconds.
    sql = """
        SELECT * EXCLUDE (since, fired_at, resolved_at), epoch_ms(COLUMNS(['since', 'fired_at', 'resolved_at'])),
               alert_id AS id, if(is_firing, 'firing', 'resolved') AS phase,
               epoch_ms(coalesce(resolved_at, fired_at)) AS changed_at
        FROM alerts ORDER BY is_firing DESC, alerts.fired_at DESC
    """
    with open_warehouse(data) as connection:
        return [msgspec.convert(row, Alert) for row in fetch_rows(connection, sql)]


def print_alerts(data: Path, console: Console, *, everything: bool, cause_wait_s: float = CAUSE_WAIT_S) -> None:
    """Print the alerts that fire, or all that ever fired.

    Args:
        data: The data folder.
        console: Where to print.
        everything: Include resolved alerts.
        cause_wait_s: See `AlertSettings`.

    Raises:
        SilenceError: Silences cannot be read.
    """
    now_s = time.time()
    silenced, now = SilenceStore(data).active_silences(now_s), int(now_s * 1000)
    landed_alerts, alert_state = read_landed_alerts(data), AlertState(cause_wait_s)
    for alert in sorted(landed_alerts, key=lambda each: each.fired_at or 0):
        alert_state.update_alert(alert)

    def mark_alert(alert: Alert) -> Text:
        if alert.phase != "firing":
            return Text("new normal" if alert.resolution == "new_normal" else "resolved")
        if alert.id in silenced:
            return Text("silenced")
        return Text("inhibited") if alert_state.is_inhibited(alert, now) else Text("firing", "red")

    table = Table("", Column("id", no_wrap=True), "what", "fired", "resolved")
    for alert in landed_alerts:
        if everything or alert.phase == "firing":
            times = map(_format_local_time, (alert.fired_at, alert.resolved_at))
            table.add_row(mark_alert(alert), alert.id, alert_summary(alert), *times)
    console.print(table if table.row_count else "no alert fires" if not everything else "no alert has ever fired")
    sql = (
        "FROM failure_detectors WHERE state = 'learning' ORDER BY source, device_id NULLS FIRST, channel_id NULLS FIRST"
    )
    with open_warehouse(data) as connection:
        print_learning_detectors(fetch_rows(connection, sql), console)


def print_learning_detectors(found: Sequence[dict[str, Any]], console: Console) -> None:
    """Print the channels, devices and sources that still learn their baseline."""
    if not found:
        return
    names = [str(row["alert_id"]).partition(":")[2] for row in found]
    more = f" and {len(names) - _MAX_LEARNING_NAMES} more" if len(names) > _MAX_LEARNING_NAMES else ""
    console.print(
        f"learning what is usual: {', '.join(names[:_MAX_LEARNING_NAMES])}{more}. "
        "Until then only near-total failure fires, and messages that are not permitted",
        highlight=False,
        markup=False,
    )


def print_alert_evidence(data: Path, console: Console, id_: str) -> None:
    """Print the evidence of the latest alert of an id.

    Raises:
        NoSuchAlertError: There is none.
    """
    found = [alert for alert in read_landed_alerts(data) if alert.id == id_]
    if not found:
        msg = f"no alert {id_} has fired: `smspulse alerts list --all` has those that have"
        raise NoSuchAlertError(msg)
    alert = max(found, key=lambda each: each.fired_at or 0)
    console.print(alert_summary(alert))
    lines = {
        "fired": _format_local_time(alert.fired_at),
        "resolved": _format_local_time(alert.resolved_at) or "not yet",
    } | alert_evidence(alert)
    lines["runbook"] = f"docs/runbooks/{alert.kind}.md"
    for name, text in lines.items():
        console.print(f"  {name:9} {text}")


def print_silences(data: Path, console: Console) -> None:
    """Print the active silences.

    Raises:
        SilenceError: They cannot be read.
    """
    found = SilenceStore(data).active_silences(time.time())
    for id_, until in found.items():
        console.print(f"{id_} until {_format_local_time(int(until * 1000))}")
    if not found:
        console.print("no alert is silenced")


def _format_local_time(at: int | None) -> str:
    return "" if at is None else datetime.fromtimestamp(at / 1000).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def print_backtest(result: BacktestResult, console: Console) -> None:
    """Print the alerts of a backtest, and how often the ratio exceeded the threshold."""
    table = Table("fired", "resolved", Column("id", no_wrap=True), "what")
    for fired, resolved in result.alert_episodes():
        until = Text(_format_local_time(resolved.resolved_at)) if resolved else Text("firing", "red")
        table.add_row(_format_local_time(fired.fired_at), until, fired.id, alert_summary(fired))
    if table.row_count:
        console.print(table)
    days = (result.last_at - result.first_at) / 86_400_000
    console.print(
        f"{result.messages:,} messages of {days:.1f} days: {table.row_count} alerts; the ratio of 15 minutes with ten "
        f"messages or more went over its threshold {len(result.threshold)} times, on "
        f"{len({unit for unit, _ in result.threshold})} channels"
    )
    console.print(
        f"not run over the past: {', '.join(EVALUATED_KINDS)}. "
        "They judge a moment by what was known then, and no setting of theirs could be tried. "
        "Those that fired are in `smspulse alerts list --all`"
    )


def draw_backtest(result: BacktestResult, path: Path) -> None:
    """Write a picture of alerts and threshold over time: .svg, .png or .html.

    Raises:
        PictureError: Altair is not installed, or does not support the format.
    """
    try:
        import altair  # noqa: PLC0415 - an extra
    except ImportError as error:
        msg = "a picture needs the extra `notebooks`: pip install 'smspulse[notebooks]'"
        raise PictureError(msg) from error

    def mark(of: str, rule: str, start: int | None, end: int | None) -> dict[str, Any]:
        return {"of": of, "rule": rule, "from": start, "to": end}

    marks = [mark(unit, "15-minute ratio", at, at) for unit, at in result.threshold]
    for fired, resolved in result.alert_episodes():
        end = resolved.resolved_at if resolved else result.last_at
        marks.append(mark(fired.id.partition(":")[2], fired.kind, fired.fired_at, end))
    base = altair.Chart(altair.Data(values=marks)).encode(
        x=altair.X("from:T", title=None), y=altair.Y("of:N", title=None), color=altair.Color("rule:N", title=None)
    )
    is_point = altair.datum.rule == "15-minute ratio"
    chart = base.transform_filter(~is_point).mark_bar(height=8).encode(x2="to:T")
    chart += base.transform_filter(is_point).mark_tick()
    try:
        chart.properties(width=800).save(path)
    except ValueError as error:
        msg = f"{path} cannot be drawn: {error}"
        raise PictureError(msg) from error
