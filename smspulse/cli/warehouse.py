"""What was landed: sql, rebuild, compact, retain, erase."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from smspulse.cli.options import NOT_SO, FiniteFloat, broker_option, data_option, existing
from smspulse.processes.terminal import echo


@click.command()
@data_option
@click.option("--date", "day", type=click.DateTime(["%Y-%m-%d"]), help="Only messages first seen on this day, UTC.")
@click.option("--all", "everything", is_flag=True, help="All days, not only those that are open or have news.")
def rebuild(data: Path, day: datetime | None, *, everything: bool) -> None:
    """Recompute lifecycles from the log and compare them with the stream's; 1 if any differs.

    What follows from the log becomes the base of `messages`. `smspulse up` does so once an hour: what was landed since
    is all that a query then has to sort out. Takes the stream's SMSPULSE_STREAM_ settings.

    \b
    smspulse rebuild                       days that are open or have news
    smspulse rebuild --date 2026-11-20     one day
    """
    from streams.settings import StreamSettings
    from warehouse.rebuild import rebuild as run
    from warehouse.status_codes import known_statuses

    if day and everything:
        msg = "--date and --all exclude each other"
        raise click.UsageError(msg)
    existing(data)
    settings = StreamSettings(state=data / "state")
    statuses = known_statuses(data)
    expire_after = timedelta(hours=settings.expire_after_h)
    found = run(data, statuses, expire_after, day=day.date() if day else None, everything=everything)
    echo(
        f"{found.messages:,} messages of {len(found.days)} days from {found.reports:,} reports; "
        f"{len(found.open)} days are open; {found.repaired:,} messages repaired; "
        f"{found.unsettled:,} not to be compared yet; {found.differing:,} differ"
    )
    if found.differing:
        echo('smspulse sql "FROM rebuild_differences" lists them', err=True)
    raise SystemExit(NOT_SO if found.differing else 0)


@click.command()
@data_option
def compact(data: Path) -> None:
    """Merge the files of closed hours and days, one a partition. Readers and landers go on meanwhile.

    Also counts the webhooks of days that are over, for webhook_quality.

    \b
    smspulse compact
    """
    from warehouse.maintenance.compaction import compact as run

    existing(data)
    done = run(data, datetime.now(UTC))
    echo(f"{done.before:,} files became {done.after:,}, with {done.rows:,} rows")


@click.command()
@data_option
def retain(data: Path) -> None:
    """Drop the days that are older than SMSPULSE_RETAIN_RAW_DAYS, _VERSIONS_DAYS, _MESSAGES_DAYS and _DEADLETTERS_DAYS.

    Each is unset by default: kept for ever. What was counted of messages and webhooks outlives them.

    \b
    smspulse retain                        with SMSPULSE_RETAIN_RAW_DAYS=30, for instance
    """
    from streams.settings import StreamSettings
    from warehouse.maintenance.retention import RetentionSettings
    from warehouse.maintenance.retention import retain as run

    existing(data)
    stream = StreamSettings(state=data / "state")
    done = run(data, RetentionSettings(), datetime.now(UTC), timedelta(hours=stream.forget_after_h, days=2))
    for name, days in done.dropped.items():
        echo(f"{name}: {len(days)} days dropped, {min(days)} to {max(days)}")
    if not done.dropped:
        echo("nothing is older than it may be")


@click.command()
@data_option
@broker_option
@click.option("--number", "numbers", required=True, multiple=True, help="Phone number; once for each spelling.")
def erase(data: Path, broker: str, numbers: tuple[str, ...]) -> None:
    """Take a phone number, and what was written to or from it, out of files, spool and Kafka. Counts do not change.

    What is left, as in Kafka until its retention ends, is said at the end, and how to drop that. Ends with 1 if files
    still hold it.

    \b
    smspulse erase --number +4915752982212 --number 015752982212
    """
    from smspulse.runtime.erasure import erase as run
    from smspulse.runtime.pipeline import kafka_settings

    existing(data, "spool", "state", "kafka", "broker.json")  # numbers are there before anything has landed
    report = run(data.resolve(), numbers, lambda: kafka_settings(data, broker))
    echo("\n".join([*report.lines, *(f"left: {line}" for line in report.left)]) or "nothing tells of it")
    raise SystemExit(NOT_SO if report.files_left else 0)


@click.command()
@data_option
@click.argument("statement")
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "csv", "spreadsheet", "json", "parquet"]),
    default="table",
    show_default=True,
    help="csv loses nothing, and is for programs; spreadsheet is CSV in which no text is a formula.",
)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="File for it, replaced in one step.")
@click.option(
    "--watch",
    is_flag=False,
    flag_value=2.0,
    type=FiniteFloat(min=0, min_open=True),
    metavar="SECONDS",
    help="Ask again every so many seconds, 2 if none are given, and show what changed.",
)
@click.option(
    "--unrestricted", is_flag=True, help="Let it read and write other files, attach databases and change settings."
)
def sql(data: Path, statement: str, form: str, output: Path | None, watch: float | None, *, unrestricted: bool) -> None:
    """Query the warehouse, and nothing else: of the file system, a statement reads the data folder alone.

    \b
    smspulse sql "SELECT outcome, count(*) FROM messages GROUP BY ALL"
    smspulse sql "FROM freshness" --watch
    smspulse sql "FROM delivery_daily" --format parquet --output daily.parquet
    """
    from smspulse.cli.sql import ask

    ask(data, statement, form, output, watch, unrestricted=unrestricted)
