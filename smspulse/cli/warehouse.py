"""The commands of the warehouse: sql, rebuild, compact, retain, erase."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click

from smspulse.cli import options
from smspulse.processes.terminal import echo


@click.command()
@options.data_option
@click.option("--date", "day", type=click.DateTime(["%Y-%m-%d"]), help="Only messages first seen on this day, UTC.")
@click.option("--all", "everything", is_flag=True, help="All days, not only those that are open or have changes.")
def rebuild_command(data: Path, day: datetime | None, *, everything: bool) -> None:
    """Recompute lifecycles from the raw webhooks and compare them with the stream's. Exits with 1 if any differs.

    The result becomes the base of `messages`, so that a query only merges the versions that landed since. `smspulse up`
    does this once an hour. Uses the SMSPULSE_STREAM_ settings of the stream.

    \b
    smspulse rebuild                       days that are open or have changes
    smspulse rebuild --date 2026-11-20     one day
    """
    from streams.settings import StreamSettings
    from warehouse.rebuild import rebuild_base
    from warehouse.status_codes import load_known_statuses

    if day and everything:
        msg = "--date and --all exclude each other"
        raise click.UsageError(msg)
    options.require_data_folder(data)
    statuses = load_known_statuses(data)
    expire_after = timedelta(hours=StreamSettings(state=data / "state").expire_after_h)
    summary = rebuild_base(data, statuses, expire_after, day=day.date() if day else None, everything=everything)
    echo(
        f"{summary.messages:,} messages of {len(summary.days)} days from {summary.reports:,} reports; "
        f"{len(summary.open_days)} days are open; {summary.repaired:,} messages repaired; "
        f"{summary.unsettled:,} not to be compared yet; {summary.differing:,} differ"
    )
    if summary.differing:
        echo('smspulse sql "FROM rebuild_differences" lists them', err=True)
    raise SystemExit(options.EXIT_CHECK_FAILED if summary.differing else 0)


@click.command()
@options.data_option
def compact_command(data: Path) -> None:
    """Merge the files of closed hours and days, to one for each partition. Readers and landers can go on meanwhile.

    Also counts the webhooks of past days, for webhook_quality.

    \b
    smspulse compact
    """
    from warehouse.maintenance.compaction import compact_files

    options.require_data_folder(data)
    done = compact_files(data, datetime.now(UTC))
    echo(f"{done.files_before:,} files became {done.files_after:,}, with {done.rows:,} rows")


@click.command()
@options.data_option
def retain_command(data: Path) -> None:
    """Drop the days that are older than SMSPULSE_RETAIN_RAW_DAYS, _VERSIONS_DAYS, _MESSAGES_DAYS and _DEADLETTERS_DAYS.

    Each is unset by default: the days are kept. Counts of messages and webhooks are never dropped.

    \b
    smspulse retain                        with SMSPULSE_RETAIN_RAW_DAYS=30, for instance
    """
    from streams.settings import StreamSettings
    from warehouse.maintenance.retention import drop_expired_days
    from warehouse.settings import RetentionSettings

    options.require_data_folder(data)
    kept_after_forgetting = timedelta(hours=StreamSettings(state=data / "state").forget_after_h, days=2)
    done = drop_expired_days(data, RetentionSettings(), datetime.now(UTC), kept_after_forgetting)
    for name, days in done.items():
        echo(f"{name}: {len(days)} days dropped, {min(days)} to {max(days)}")
    if not done:
        echo("no day has expired")


@click.command()
@options.data_option
@options.broker_option
@click.option("--number", "numbers", required=True, multiple=True, help="Phone number; once for each spelling.")
def erase_command(data: Path, broker: str, numbers: tuple[str, ...]) -> None:
    """Remove a phone number, and the texts to and from it, from files, spool and Kafka. Counts do not change.

    The output lists what is left, such as in Kafka until the end of its retention, and how to drop it. Exits with 1 if
    files still contain the number.

    \b
    smspulse erase --number +4915752982212 --number 015752982212
    """
    from smspulse.broker.locate import find_kafka_settings
    from smspulse.runtime.erasure import erase_everywhere

    # These have numbers before anything has landed.
    options.require_data_folder(data, "spool", "state", "kafka", "broker.json")
    report = erase_everywhere(data.resolve(), numbers, lambda: find_kafka_settings(data, broker))
    echo("\n".join([*report.lines, *(f"left: {line}" for line in report.remaining)]) or "no record has it")
    raise SystemExit(options.EXIT_CHECK_FAILED if report.has_remaining_files else 0)


@click.command()
@options.data_option
@click.argument("statement")
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "csv", "spreadsheet", "json", "parquet"]),
    default="table",
    help="csv is exact, for programs; spreadsheet is CSV in which no text is a formula.",
)
@click.option("--output", type=options.OUTPUT_FILE, help="Output file, replaced in one step.")
@click.option(
    "--watch",
    is_flag=False,
    flag_value=2.0,
    type=options.POSITIVE,
    metavar="SECONDS",
    help="Repeat the query every so many seconds, by default 2, and show a changed result.",
)
@click.option(
    "--unrestricted", is_flag=True, help="Let it read and write other files, attach databases and change settings."
)
def sql_command(**given: Any) -> None:
    """Query the warehouse. A statement can read only the data folder of the file system.

    \b
    smspulse sql "SELECT outcome, count(*) FROM messages GROUP BY ALL"
    smspulse sql "FROM freshness" --watch
    smspulse sql "FROM delivery_daily" --format parquet --output daily.parquet
    """
    from smspulse.cli.sql import run_sql_command

    run_sql_command(**given)
