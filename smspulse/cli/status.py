"""The commands `status`, `message` and `page`."""

import json
import logging
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from core.background_tasks import end_process_if_a_thread_fails
from smspulse.cli.options import EXIT_CHECK_FAILED, PORT, broker_option, data_option, ingest_options
from smspulse.processes.children import raise_file_limit, report_readiness
from smspulse.processes.terminal import echo, escape_to_line, make_console

_format_option: Final = click.option(
    "--format", "form", type=click.Choice(["text", "json"]), default="text", help="Format."
)


@click.command()
@data_option
@click.argument("key", metavar="SOURCE:SMS_ID")
@_format_option
def message_command(data: Path, key: str, form: str) -> None:
    """Show the history of one message. Exits with 1 if the message is unknown.

    \b
    smspulse message acme:48210377
    smspulse message acme:48210377 --format json
    """
    from smspulse.runtime.message_history import find_message, format_history

    if not key.rpartition(":")[2].isdecimal() or not key.rpartition(":")[0]:
        msg = f"{key!r} is not a SOURCE:SMS_ID, such as acme:48210377"
        raise click.UsageError(msg)
    found = find_message(data, key)
    if found is None:
        echo(f"no status report of {key} has landed: check the name of the source and the id, or wait 10 s", err=True)
        raise SystemExit(EXIT_CHECK_FAILED)
    echo(json.dumps(found) if form == "json" else format_history(found))


@click.command()
@data_option
@broker_option
@ingest_options()
@_format_option
def status_command(data: Path, broker: str, host: str | None, port: int | None, form: str) -> None:
    """Show process, delivery and lag status. Exits with 1 if there is a problem.

    \b
    smspulse status
    smspulse status --format json | jq .lag
    """
    from smspulse.runtime.status import collect_status

    found = collect_status(data, broker, port, host)
    if form == "json":
        echo(json.dumps(found))
    else:
        _print_status(found, make_console(soft_wrap=True))
    raise SystemExit(0 if found["ok"] else EXIT_CHECK_FAILED)


def _print_status(found: dict[str, Any], console: Console) -> None:
    from smspulse.alerting.rendering import print_learning_detectors
    from smspulse.processes.terminal import format_duration

    def format_percent(value: float | None) -> str:
        return "" if value is None else f"{value:.1%}"

    for each in found["processes"]:
        mark = ("✓", "green") if each["ok"] else ("✗", "red")
        console.print(Text.assemble(mark, escape_to_line(f" {each['name']:<12} {each['what']}")))
    table = Table("last", "messages", "delivered / attempted", "delivered / ended", "95 % interval", "open share")
    for row in found["delivery"]:
        interval = (format_percent(row["delivered_per_ended_low"]), format_percent(row["delivered_per_ended_high"]))
        table.add_row(
            f"{row['hours']} h",
            f"{row['attempted']:,}",
            format_percent(row["delivered_per_attempted"]),
            format_percent(row["delivered_per_ended"]),
            " to ".join(interval) if interval[0] else "",
            format_percent(row["open_share"]),
        )
    if found["delivery"]:
        console.print(table)
    else:
        console.print("no outgoing message was first reported within 24 hours")
    if found["lag"] is not None:
        behind = ", ".join(f"{group} {count:,}" for group, count in found["lag"].items())
        console.print(f"records to go: {behind}")
    ages = ", ".join(f"{row['dataset']} {format_duration(row['seconds_since'])} ago" for row in found["freshness"])
    console.print(f"newest landed: {ages or 'nothing'}")
    if "unreadable" in found:
        console.print(f"the warehouse cannot be read: {found['unreadable']}", style="red")
    for alert in found["alerts"]:
        console.print(Text.assemble(("firing", "red"), escape_to_line(f" {alert['alert_id']}")))
    print_learning_detectors(found["learning"], console)


@click.command()
@data_option
@broker_option
@click.option("--host", envvar="SMSPULSE_PAGE_HOST", default="127.0.0.1")
@click.option("--port", envvar="SMSPULSE_PAGE_PORT", type=PORT, default=8081)
@ingest_options("ingest-")
def page_command(
    data: Path, broker: str, host: str, port: int, ingest_host: str | None, ingest_port: int | None
) -> None:
    """Serve the live page. Other machines reach it with a password, SMSPULSE_PAGE_PASSWORD, and `--host 0.0.0.0`.

    \b
    smspulse page
    SMSPULSE_PAGE_PASSWORD=… smspulse page --host 0.0.0.0
    """
    from smspulse.dashboard.queries import PageSnapshot
    from smspulse.dashboard.server import run_page
    from smspulse.dashboard.settings import PageSettings
    from smspulse.runtime.status import collect_pipeline_status

    def on_ready(url: str) -> None:
        logging.getLogger(__name__).info("the live page is at %s", url)
        report_readiness()

    end_process_if_a_thread_fails()
    raise_file_limit()
    settings = PageSettings(host=host, port=port)
    numbers = PageSnapshot(
        data, lambda: collect_pipeline_status(data, broker, ingest_port, ingest_host), settings.memory
    )
    with closing(numbers):
        run_page(data, numbers, settings, on_ready)
