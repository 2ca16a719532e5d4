"""What was landed: sql, rebuild, compact, retain, erase."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from smspulse.cli.options import EXIT_CHECK_FAILED, FiniteFloat, broker_option, data_option, require_data_folder
from smspulse.processes.terminal import echo


@click.command()
@data_option
@click.option("--date", "day", type=click.DateTime(["%Y-%m-%d"]), help="Only messages first seen on this day, UTC.")
@click.option("--all", "everything", is_flag=True, help="All days, not only those that are open or have news.")
def rebuild_command(data: Path, day: datetime | None, *, everything: bool) -> None:
    """Recompute lifecycles from the log and compare them with the stream's; 1 if any differs.

    What follows from the log becomes the base of `messages`. `smspulse up` does so once an hour: what was landed since
    is all that a query then has to sort out. Takes the stream's SMSPULSE_STREAM_ settings.

    \b
    smspulse rebuild                       days that are open or have news
    smspulse rebuild --date 2026-11-20     one day
    """
    from streams.settings import StreamSettings
    from warehouse.rebuild import rebuild_base
    from warehouse.status_codes import load_known_statuses

    if day and everything:
        msg = "--date and --all exclude each other"
        raise click.UsageError(msg)
    require_data_folder(data)
    settings = StreamSettings(state=data / "state")
    statuses = load_known_statuses(data)
    expire_after = timedelta(hours=settings.expire_after_h)
    summary = rebuild_base(data, statuses, expire_after, day=day.date() if day else None, everything=everything)
    echo(
        f"{summary.messages:,} messages of {len(summary.days)} days from {summary.reports:,} reports; "
        f"{len(summary.open_days)} days are open; {summary.repaired:,} messages repaired; "
        f"{summary.unsettled:,} not to be compared yet; {summary.differing:,} differ"
    )
    if summary.differing:
        echo('smspulse sql "FROM rebuild_differences" lists them', err=True)
    raise SystemExit(EXIT_CHECK_FAILED if summary.differing else 0)


@click.command()
@data_option
def compact_command(data: Path) -> None:
    """Merge the files of closed hours and days, one a partition. Readers and landers go on meanwhile.

    Also counts the webhooks of days that are over, for webhook_quality.

    \b
    smspulse compact
    """
    from warehouse.maintenance.compaction import compact_files

    require_data_folder(data)
    done = compact_files(data, datetime.now(UTC))
    echo(f"{done.files_before:,} files became {done.files_after:,}, with {done.rows:,} rows")


@click.command()
@data_option
def retain_command(data: Path) -> None:
    """Drop the days that are older than SMSPULSE_RETAIN_RAW_DAYS, _VERSIONS_DAYS, _MESSAGES_DAYS and _DEADLETTERS_DAYS.

    Each is unset by default: kept for ever. What was counted of messages and webhooks outlives them.

    \b
    smspulse retain                        with SMSPULSE_RETAIN_RAW_DAYS=30, for instance
    """
    from streams.settings import StreamSettings
    from warehouse.maintenance.retention import RetentionSettings, drop_expired_days

    require_data_folder(data)
    stream = StreamSettings(state=data / "state")
    kept_after_forgetting = timedelta(hours=stream.forget_after_h, days=2)
    done = drop_expired_days(data, RetentionSettings(), datetime.now(UTC), kept_after_forgetting)
    for name, days in done.dropped_days.items():
        echo(f"{name}: {len(days)} days dropped, {min(days)} to {max(days)}")
    if not done.dropped_days:
        echo("nothing is older than it may be")


@click.command()
@data_option
@broker_option
@click.option("--number", "numbers", required=True, multiple=True, help="Phone number; once for each spelling.")
def erase_command(data: Path, broker: str, numbers: tuple[str, ...]) -> None:
    """Take a phone number, and what was written to or from it, out of files, spool and Kafka. Counts do not change.

    What is left, as in Kafka until its retention ends, is said at the end, and how to drop that. Ends with 1 if files
    still hold it.

    \b
    smspulse erase --number +4915752982212 --number 015752982212
    """
    from smspulse.broker.locate import find_kafka_settings
    from smspulse.runtime.erasure import erase_everywhere

    require_data_folder(data, "spool", "state", "kafka", "broker.json")  # numbers are there before anything has landed
    report = erase_everywhere(data.resolve(), numbers, lambda: find_kafka_settings(data, broker))
    echo("\n".join([*report.lines, *(f"left: {line}" for line in report.remaining)]) or "nothing tells of it")
    raise SystemExit(EXIT_CHECK_FAILED if report.has_remaining_files else 0)


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
def sql_command(
    data: Path, statement: str, form: str, output: Path | None, watch: float | None, *, unrestricted: bool
) -> None:
    """Query the warehouse, and nothing else: of the file system, a statement reads the data folder alone.

    \b
    smspulse sql "SELECT outcome, count(*) FROM messages GROUP BY ALL"
    smspulse sql "FROM freshness" --watch
    smspulse sql "FROM delivery_daily" --format parquet --output daily.parquet
    """
    from smspulse.cli.sql import run_sql_command

    run_sql_command(data, statement, form, output, watch, unrestricted=unrestricted)
