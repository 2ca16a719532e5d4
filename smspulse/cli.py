"""The command line. Heavy imports happen inside the commands, so that `smspulse --help` answers at once.

Exit codes: 0 done, 1 the thing checked is not so, 2 it could not be done.
"""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import fields
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn
from rich.table import Table

from gateway.errors import SmspulseError
from smspulse import logs
from smspulse.checking import check
from smspulse.options import broker_option, data_option
from smspulse.readiness import VARIABLE, tell_ready
from smspulse.simulator.behaviour import Behaviour, parse_shares

_Command = TypeVar("_Command", bound=Callable[..., Any])

_NOT_SO = 1
_NOT_DONE = 2


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-v", "--verbose", is_flag=True, help="Log everything.")
@click.version_option(package_name="smspulse")
def cli(*, verbose: bool) -> None:
    """Delivery analytics for SMS gateways: webhooks in, SQL, notebooks and alerts out.

    Begin with `smspulse up --demo`, or with `smspulse source add NAME` and `smspulse up`.
    """
    logs.set_up(verbose=verbose, supervised=VARIABLE in os.environ)


@cli.command()
@data_option
@click.option(
    "--broker",
    envvar="SMSPULSE_BROKER",
    default="auto",
    show_default=True,
    help="auto: a real Kafka where Java and Maven are, else one in memory; kafka; memory; or HOST:PORT.",
)
@click.option("--port", envvar="SMSPULSE_INGEST_PORT", default=8080, show_default=True, help="Port for webhooks.")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Stream workers, a process each.")
@click.option("--demo", is_flag=True, help="Feed simulated traffic and show its delivery rates.")
@click.option("--for", "seconds", type=click.FloatRange(min=30), help="End after so many seconds.")
def up(data: Path, broker: str, port: int, workers: int, seconds: float | None, *, demo: bool) -> None:
    """Run the whole pipeline: broker, ingest, stream, lander.

    \b
    smspulse up --demo                     watch it work
    smspulse up --demo --for 60            the same, ended and reconciled
    smspulse up --broker kafka1:9092       on your own cluster
    """
    from smspulse.up import UpOptions
    from smspulse.up import up as run_up

    console = Console(soft_wrap=True)
    logging.getLogger().handlers[:] = [logs.PrefixHandler(console)]
    _writable(data)
    options = UpOptions(data.resolve(), broker, port, workers, demo, seconds)
    raise SystemExit(asyncio.run(run_up(options, console)))


@cli.command()
@data_option
@click.option("--mode", default="auto", type=click.Choice(["auto", "kafka", "memory"]), show_default=True)
@click.option("--fetch", is_flag=True, help="Fetch Kafka's jars into the cache, and start nothing.")
def broker(data: Path, mode: Any, *, fetch: bool) -> None:
    """Run a one-node Kafka under the data folder.

    \b
    smspulse broker                        until Ctrl-C
    smspulse broker --fetch                only get Kafka
    """
    from smspulse.broker import run_broker
    from smspulse.jars import fetch_kafka, what_is_missing
    from smspulse.topics import ensure_topics
    from smspulse.up import kafka_settings

    if fetch:
        if missing := what_is_missing():
            click.echo(f"no real Kafka here, the in-memory broker will serve: {'; '.join(missing)}")
        else:
            click.echo(f"Kafka is in {fetch_kafka()}")
        return

    def ready() -> None:
        ensure_topics(kafka_settings(data, "auto"))
        tell_ready()

    _writable(data)
    raise SystemExit(run_broker(data, mode, ready=ready))


@cli.command()
@data_option
@broker_option
@click.option("--port", envvar="SMSPULSE_INGEST_PORT", default=8080, show_default=True)
@click.option("--host", envvar="SMSPULSE_INGEST_HOST", default="127.0.0.1", show_default=True)
@click.option(
    "--processes",
    envvar="SMSPULSE_INGEST_PROCESSES",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Receivers on this one port.",
)
def ingest(data: Path, broker: str, host: str, port: int, processes: int) -> None:
    """Receive webhooks and write each to Kafka, or to the spool while Kafka is away."""
    from ingest.server import run
    from ingest.settings import IngestSettings
    from smspulse.up import kafka_settings

    def ready(url: str) -> None:
        logging.getLogger(__name__).info("receiving webhooks at %s", url)
        tell_ready()

    _writable(data)
    if processes > 1:
        from smspulse.ingest_processes import run_processes

        asyncio.run(run_processes(data.resolve(), broker, host, port, processes, ready=ready))
        return
    run(IngestSettings(host=host, port=port), kafka_settings(data, broker), data, ready=ready)


@cli.command()
@data_option
@broker_option
@click.option("--worker", default="0", show_default=True, help="Name of this worker; each keeps a state of its own.")
@click.option("--instance", envvar="SMSPULSE_STREAM_INSTANCE", default="", help="Static name in the group.")
def stream(data: Path, broker: str, worker: str, instance: str) -> None:
    """Build the lifecycle of every message (a Faust worker)."""
    from smspulse.topics import ensure_topics
    from smspulse.up import kafka_settings
    from streams.settings import StreamSettings
    from streams.worker import run

    kafka = kafka_settings(data, broker)
    ensure_topics(kafka)
    run(StreamSettings(state=data / "state" / worker, instance=instance), kafka, tell_ready)


@cli.command()
@data_option
@broker_option
@click.option("--flush-interval", type=float, help="Seconds between landings.  [default: 5]")
@click.option("--instance", envvar="SMSPULSE_LANDER_INSTANCE", default="", help="Static name in the group.")
def land(data: Path, broker: str, flush_interval: float | None, instance: str) -> None:
    """Land topics as Parquet."""
    from smspulse.topics import ensure_topics
    from smspulse.up import kafka_settings
    from warehouse.lander import run
    from warehouse.settings import LanderSettings

    _writable(data)
    kafka = kafka_settings(data, broker)
    ensure_topics(kafka)
    given = {"flush_interval_s": flush_interval, "instance": instance or None}
    settings = LanderSettings(data=data, **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    run(settings, kafka, ready=tell_ready)


@cli.command()
@data_option
@click.option("--date", "day", type=click.DateTime(["%Y-%m-%d"]), help="Only messages first seen on this day, UTC.")
@click.option("--all", "everything", is_flag=True, help="All days, not only those that are open or have news.")
def rebuild(data: Path, day: datetime | None, *, everything: bool) -> None:
    """Recompute lifecycles from the log and compare them with the stream's; 1 if any differs.

    What follows from the log becomes the base of `messages`. Run it once an hour: what was landed since is all that a
    query then has to sort out. Takes the stream's SMSPULSE_STREAM_ settings.

    \b
    smspulse rebuild                       days that are open or have news
    smspulse rebuild --date 2026-11-20     one day
    """
    from gateway.statuses import parse_meanings, status_table
    from streams.settings import StreamSettings
    from warehouse.rebuild.run import rebuild as run

    if day and everything:
        msg = "--date and --all exclude each other"
        raise click.UsageError(msg)
    _writable(data)
    settings = StreamSettings(state=data / "state")
    statuses = status_table(parse_meanings(settings.status_meanings))
    expire_after = timedelta(hours=settings.expire_after_h)
    found = run(data, statuses, expire_after, day=day.date() if day else None, everything=everything)
    click.echo(
        f"{found.messages:,} messages of {len(found.days)} days from {found.reports:,} reports; "
        f"{len(found.open)} days are open; {found.repaired:,} messages repaired; "
        f"{found.unsettled:,} not to be compared yet; {found.differing:,} differ"
    )
    if found.differing:
        click.echo('smspulse sql "FROM rebuild_differences" lists them', err=True)
    raise SystemExit(_NOT_SO if found.differing else 0)


@cli.command()
@data_option
@click.argument("statement")
@click.option("--format", "form", type=click.Choice(["table", "csv", "json"]), default="table", show_default=True)
def sql(data: Path, statement: str, form: str) -> None:
    """Ask the warehouse.

    \b
    smspulse sql "SELECT outcome, count(*) FROM messages GROUP BY ALL"
    smspulse sql "FROM freshness" --format json
    """
    import duckdb

    from warehouse.read import query

    try:
        frame = query(data, statement)
    except duckdb.Error as error:
        raise click.ClickException(str(error).strip()) from error
    if form == "csv":
        click.echo(frame.to_csv(index=False), nl=False)
    elif form == "json":
        click.echo(frame.to_json(orient="records", date_format="iso", date_unit="ms", force_ascii=False))
    else:
        table = Table()
        for column in frame.columns:
            table.add_column(str(column))
        for row in frame.astype(object).where(frame.notna(), "").itertuples(index=False):
            table.add_row(*(str(value) for value in row))
        Console().print(table)


def behaviour_options(command: _Command) -> _Command:
    """Add an option for each rate and share of the simulated gateway's behaviour."""
    for each in reversed(fields(Behaviour)):
        name = f"--{each.name.replace('_', '-')}"
        if "help" in each.metadata:
            option = click.option(
                name, type=click.FloatRange(0, 1), default=each.default, show_default=True, help=each.metadata["help"]
            )
        elif isinstance(each.default, int):
            option = click.option(name, type=click.IntRange(1), default=each.default, show_default=True)
        else:
            text = ",".join(f"{id_}={share}" for id_, share in each.default)
            option = click.option(name, default=text, show_default=True, metavar="ID=SHARE,…")
        command = option(command)
    return command


@cli.command()
@click.option("--url", required=True, help="The webhook, as `smspulse source add` prints it.")
@click.option("--messages", type=click.IntRange(1), help="Outgoing messages.  [default: until Ctrl-C]")
@click.option("--rate", default=20.0, show_default=True, help="Messages started a second.")
@click.option("--seed", default=1, show_default=True, help="The same seed tells the same stories.")
@click.option(
    "--truth", type=click.Path(dir_okay=False, path_type=Path), help="File for what was accepted, by message."
)
@click.option("--time-scale", default=1.0, show_default=True, help="0.1 is ten times faster than life.")
@click.option("--max-delay", default=60.0, show_default=True, help="No delay is longer, in seconds.")
@behaviour_options
def simulate(
    url: str,
    messages: int | None,
    rate: float,
    seed: int,
    truth: Path | None,
    time_scale: float,
    max_delay: float,
    **rates: Any,
) -> None:
    """Send webhooks as a gateway with phones would, with all that goes wrong there.

    \b
    smspulse simulate --url http://127.0.0.1:8080/webhooks/demo/TOKEN --messages 1000
    smspulse simulate --url … --duplicates 0.5 --unhealthy 8001=0.9
    """
    from smspulse.simulator.stories import stories
    from smspulse.simulator.traffic import simulate as send

    shares = {name: parse_shares(value) for name, value in rates.items() if isinstance(value, str)}
    behaviour = Behaviour(**(rates | shares))
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    progress = Progress(*columns, console=Console(stderr=True))

    async def until_signalled() -> Any:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        with progress:
            task = progress.add_task("messages", total=messages)
            return await send(
                url,
                stories(seed, messages, behaviour),
                rate=rate,
                truth=truth,
                time_scale=time_scale,
                max_delay_s=max_delay,
                stop=stop,
                on_progress=lambda totals: progress.update(task, completed=totals.messages),
            )

    totals = asyncio.run(until_signalled())
    click.echo(
        f"{totals.sent:,} webhooks sent, {totals.accepted:,} accepted, {totals.retried:,} sent again, "
        f"{totals.abandoned:,} given up; {totals.messages:,} messages, {totals.incoming:,} incoming, "
        f"{totals.malformed:,} malformed"
    )
    raise SystemExit(_NOT_SO if totals.accepted < totals.sent or totals.abandoned else 0)


@cli.group()
def source() -> None:
    """Gateway accounts that may send webhooks."""


@source.command("add")
@data_option
@click.argument("name")
@click.option("--url", default="http://127.0.0.1:8080", show_default=True, help="Where the gateway reaches ingest.")
def source_add(data: Path, name: str, url: str) -> None:
    """Make a token for a source and print what to paste into the gateway."""
    from ingest.sources import add_source

    _writable(data)
    _show_webhook(url, name, add_source(data, name))


@source.command("rotate")
@data_option
@click.argument("name")
@click.option("--url", default="http://127.0.0.1:8080", show_default=True, help="Where the gateway reaches ingest.")
@click.option("--finish", is_flag=True, help="Make no token: end all but the newest.")
def source_rotate(data: Path, name: str, url: str, *, finish: bool) -> None:
    """Replace the token of a source without a gap.

    \b
    smspulse source rotate mygateway              makes a new one; both are valid
    smspulse source rotate mygateway --finish     once the gateway has the new one: ends the others
    """
    from ingest.sources import retire_tokens, rotate_source

    if finish:
        click.echo(f"{retire_tokens(data, name)} tokens of {name} are no longer valid, the newest is")
        return
    _show_webhook(url, name, rotate_source(data, name))
    click.echo(f"\nThe old token stays valid until: smspulse source rotate {name} --finish")


def _show_webhook(url: str, name: str, token: str) -> None:
    from ingest.sources import webhook_url

    webhook = webhook_url(url, name, token)
    click.echo(
        f"In smsgateway24, paste this one URL into both places. It holds the token, which is shown only now:\n\n"
        f"  device settings, delivery status URL         {webhook}\n"
        f"  each channel slot, incoming message URL      {webhook}"
    )


@source.command("list")
@data_option
def source_list(data: Path) -> None:
    """List the sources and how many tokens each has."""
    from ingest.sources import list_sources

    for name, tokens in list_sources(data).items():
        click.echo(f"{name}\t{tokens} token{'s' if tokens != 1 else ''}")


@cli.command()
@data_option
@broker_option
@click.option("--port", envvar="SMSPULSE_INGEST_PORT", default=8080, show_default=True)
def doctor(data: Path, broker: str, port: int) -> None:
    """Look at this machine and say what is missing and how to mend it."""
    from gateway.kafka import KafkaSettings
    from smspulse.doctor import diagnose

    findings = diagnose(data, KafkaSettings(bootstrap=broker) if ":" in broker else None, port)
    marks = {"ok": "[green]✓[/]", "warn": "[yellow]![/]", "fail": "[red]✗[/]"}
    table = Table("", "what", "found", "mend")
    for finding in findings:
        table.add_row(marks[finding.level], finding.name, finding.what, finding.mend)
    Console().print(table)
    raise SystemExit(_NOT_SO if any(finding.level == "fail" for finding in findings) else 0)


def _writable(data: Path) -> None:
    try:
        data.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        msg = f"the data folder {data} cannot be made: {error.strerror}; name another with --data"
        raise SmspulseError(msg) from error
    if not os.access(data, os.W_OK | os.X_OK):
        msg = f"the data folder {data} is not writable; mend its rights or name another with --data"
        raise SmspulseError(msg)


cli.add_command(check)


def main() -> None:
    """Run the command line; errors that have a mend are one line on standard error, with exit code 2."""
    from pydantic import ValidationError

    supervised = VARIABLE in os.environ
    try:
        cli(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(_NOT_DONE)
    except click.Abort:
        sys.exit(130)
    except ValidationError as error:
        faults = [f"{'.'.join(str(part) for part in each['loc'])}: {each['msg']}" for each in error.errors()]
        problem = f"{error.title}, {'; '.join(faults)}: mend the option, or the SMSPULSE_ variable, of that name"
    except (SmspulseError, OSError) as error:
        problem = str(error)
    else:
        return
    if supervised:
        logging.getLogger(__name__).error("%s", problem)
    else:
        click.echo(f"smspulse: {problem}", err=True)
    sys.exit(_NOT_DONE)
