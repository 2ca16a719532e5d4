"""What to do next, for somebody who typed `smspulse` and nothing more."""

from pathlib import Path

from ingest.errors import SourcesError
from ingest.sources import list_sources
from smspulse.broker.lockfile import read_broker_file
from warehouse.catalog import CATALOG_FILE


def suggest_next_steps(data: Path) -> str:
    """Return some lines that begin with where the data folder stands and go on with what to type.

    Raises:
        SourcesError: The sources mean nothing.
    """
    try:
        sources: dict[str, int] | None = list_sources(data)
    except SourcesError as error:
        if not isinstance(error.__cause__, PermissionError):
            raise
        sources = None  # they are for those who run the pipeline
    is_running, landed = read_broker_file(data) is not None, (data / CATALOG_FILE).is_file()
    if is_running:
        summary = f"The pipeline runs on {data}."
        steps = [("smspulse status", "what runs, what is delivered, how far behind it is")]
        if sources == {}:
            steps += [("smspulse source add NAME", "a webhook for your gateway")]
        steps += [
            ('smspulse sql "FROM delivery_now"', "ask it"),
            ("smspulse message SOURCE:SMS_ID", "one message's way"),
        ]
    elif sources or landed:
        known = "sources" if sources is None else f"{len(sources)} source{'s' if len(sources) != 1 else ''}"
        summary = f"{data} has {known}, and nothing runs on it."
        steps = [("smspulse up", "run the pipeline"), ('smspulse sql "FROM delivery_by_device"', "ask what was landed")]
    else:
        summary = f"Nothing is in {data} yet."
        steps = [
            ("smspulse up --demo", "watch it work on simulated phones"),
            ("smspulse source add NAME", "a webhook for your gateway, then `smspulse up`"),
            ("smspulse doctor", "what this machine lacks"),
        ]
    width = max(len(command) for command, _ in steps)
    lines = [f"    {command:<{width}}   {what}" for command, what in steps]
    return "\n".join([summary, "", *lines, "", "`smspulse --help` lists every command."])
