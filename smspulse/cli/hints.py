"""Hints for the next step, shown by `smspulse` without a command."""

from pathlib import Path

import click

from ingest.errors import SourcesError
from ingest.sources import list_sources
from smspulse.broker.lockfile import read_broker_file
from smspulse.cli.options import data_option
from smspulse.processes.terminal import echo
from warehouse.catalog import CATALOG_FILE


@click.command()
@data_option
def hints_command(data: Path) -> None:
    """Show the state of the data folder and the commands for the next steps."""
    try:
        sources: dict[str, int] | None = list_sources(data)
    except SourcesError as error:
        if not isinstance(error.__cause__, PermissionError):
            raise
        # Only the user who runs the pipeline may read them.
        sources = None
    is_running, landed = read_broker_file(data) is not None, (data / CATALOG_FILE).is_file()
    if is_running:
        summary = f"The pipeline runs on {data}."
        steps = [("smspulse status", "processes, delivery and lag")]
        if sources == {}:
            steps += [("smspulse source add NAME", "a webhook for your gateway")]
        steps += [
            ('smspulse sql "FROM delivery_now"', "query it"),
            ("smspulse message SOURCE:SMS_ID", "the history of one message"),
        ]
    elif sources or landed:
        known = "sources" if sources is None else f"{len(sources)} source{'s' if len(sources) != 1 else ''}"
        summary = f"{data} has {known}, and nothing runs on it."
        steps = [
            ("smspulse up", "run the pipeline"),
            ('smspulse sql "FROM delivery_by_device"', "query the landed data"),
        ]
    else:
        summary = f"Nothing is in {data} yet."
        steps = [
            ("smspulse up --demo", "watch it work on simulated phones"),
            ("smspulse source add NAME", "a webhook for your gateway, then `smspulse up`"),
            ("smspulse doctor", "check this machine"),
        ]
    width = max(len(command) for command, _ in steps)
    lines = [f"    {command:<{width}}   {what}" for command, what in steps]
    echo("\n".join([summary, "", *lines, "", "`smspulse --help` lists every command."]))
