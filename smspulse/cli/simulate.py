"""The command `simulate`: simulated traffic of a gateway."""

import asyncio
from dataclasses import fields
from typing import Any, Final
from urllib.parse import urlsplit

import click
from click.core import ParameterSource
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

from smspulse.cli.options import EXIT_CHECK_FAILED, OUTPUT_FILE, POSITIVE, SHARE, URL, Command, FiniteFloat, ParsedType
from smspulse.processes.children import make_stop_event
from smspulse.processes.terminal import echo, make_console
from smspulse.simulator.options import GatewayBehaviour, parse_shares

# Slashes in `/webhooks/SOURCE/TOKEN`. Without the token, which can also be a password, there is one less.
_SLASHES_WITH_TOKEN: Final = 3


def add_behaviour_options(command: Command) -> Command:
    """Add an option for each rate and share of the simulated gateway's behaviour."""
    for each in reversed(fields(GatewayBehaviour)):
        name = f"--{each.name.replace('_', '-')}"
        if "help" in each.metadata:
            option = click.option(name, type=SHARE, default=each.default, help=each.metadata["help"])
        elif isinstance(each.default, int):
            option = click.option(name, type=click.IntRange(1), default=each.default)
        else:
            text = ",".join(f"{id_}={share}" for id_, share in each.default)
            option = click.option(name, default=text, type=ParsedType("ID=SHARE,…", parse_shares))
        command = option(command)
    return command


def _read_webhook_url(context: click.Context, option: click.Parameter, value: str) -> str:
    is_argument = context.get_parameter_source("url") is ParameterSource.COMMANDLINE
    if value == "-":
        value, is_argument = click.get_text_stream("stdin").readline().strip(), False
    url = str(URL.convert(value, option, context))
    if is_argument and urlsplit(url).path.count("/") >= _SLASHES_WITH_TOKEN:
        echo(
            "smspulse: `ps` shows the token in --url to every user of this machine: set SMSPULSE_SIMULATE_URL instead, "
            "or give --url - and the URL on standard input",
            err=True,
        )
    return url


@click.command()
@click.option(
    "--url",
    envvar="SMSPULSE_SIMULATE_URL",
    required=True,
    callback=_read_webhook_url,
    help="The webhook, as `smspulse source add` prints it; - reads a line of standard input. `ps` shows the option "
    "to other users.  [env: SMSPULSE_SIMULATE_URL]",
)
@click.option("--messages", type=click.IntRange(1), help="Outgoing messages.  [default: until Ctrl-C]")
@click.option("--rate", type=POSITIVE, default=20.0, help="Messages started a second.")
@click.option("--seed", default=1, help="The same seed gives the same scenarios.")
@click.option("--truth", type=OUTPUT_FILE, help="File for the truth about each accepted message.")
@click.option("--time-scale", type=FiniteFloat(min=0), default=1.0, help="0.1 is ten times faster than life.")
@click.option(
    "--max-delay", "max_delay_s", type=FiniteFloat(min=0), default=60.0, help="Maximum of a delay, in seconds."
)
@add_behaviour_options
def simulate_command(url: str, messages: int | None, seed: int, **options: Any) -> None:
    """Send webhooks as a gateway with phones would, with its usual errors.

    \b
    export SMSPULSE_SIMULATE_URL=http://127.0.0.1:8080/webhooks/demo/TOKEN
    smspulse simulate --messages 1000
    smspulse simulate --duplicates 0.5 --unhealthy 8001=0.9
    """
    from smspulse.simulator.scenarios import generate_scenarios

    rates = {each.name: options.pop(each.name) for each in fields(GatewayBehaviour)}
    scenarios = generate_scenarios(seed, messages, GatewayBehaviour(**rates))
    totals = asyncio.run(_simulate_until_signal(url, scenarios, messages, options))
    echo(
        f"{totals.sent:,} webhooks sent, {totals.accepted:,} accepted, {totals.retried:,} sent again, "
        f"{totals.abandoned:,} given up; {totals.messages:,} messages, {totals.incoming:,} incoming, "
        f"{totals.malformed:,} malformed"
    )
    raise SystemExit(EXIT_CHECK_FAILED if totals.accepted < totals.sent or totals.abandoned else 0)


async def _simulate_until_signal(url: str, scenarios: Any, messages: int | None, options: dict[str, Any]) -> Any:
    """Run a simulation until its end, SIGTERM or SIGINT, and show its progress."""
    from smspulse.simulator.client import Simulation

    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=make_console(stderr=True)) as progress:
        task = progress.add_task("messages", total=messages)
        options |= {"on_progress": lambda totals: progress.update(task, completed=totals.messages)}
        return await Simulation(url, scenarios, stop=make_stop_event(), **options).run()
