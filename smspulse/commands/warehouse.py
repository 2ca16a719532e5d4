"""What was landed: sql, rebuild."""

from datetime import datetime, timedelta
from pathlib import Path

import click

from smspulse.commands.options import NOT_SO, data_option, writable


@click.command()
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
    writable(data)
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
    raise SystemExit(NOT_SO if found.differing else 0)


@click.command()
@data_option
@click.argument("statement")
@click.option(
    "--format", "form", type=click.Choice(["table", "csv", "json", "parquet"]), default="table", show_default=True
)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="File for it, replaced in one step.")
@click.option(
    "--watch",
    is_flag=False,
    flag_value=2.0,
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Ask again every so many seconds, 2 if none are given, and show what changed.",
)
def sql(data: Path, statement: str, form: str, output: Path | None, watch: float | None) -> None:
    """Ask the warehouse.

    \b
    smspulse sql "SELECT outcome, count(*) FROM messages GROUP BY ALL"
    smspulse sql "FROM freshness" --watch
    smspulse sql "FROM delivery_daily" --format parquet --output daily.parquet
    """
    from smspulse.ask import ask

    ask(data, statement, form, output, watch)
