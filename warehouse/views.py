"""The views: their names, and the SQL that creates them."""

from collections.abc import Mapping, Sequence
from datetime import date
from importlib.resources import files
from pathlib import Path
from typing import Final

from warehouse.datasets import COUNT_COLUMNS, DATASET_NAMES, ROLLUPS
from warehouse.rollups import load_rollup_sql
from warehouse.sql_text import dataset_glob_sql, dataset_scan_sql, log_position_sql, rate_columns_sql

VIEWS: Final = (
    *("raw_webhooks", "status_events", "incoming_messages", "live_messages", "messages_by_day", "messages", "changes"),
    *("delivery_hourly", "delivery_daily", "delivery_by_device", "delivery_by_prefix", "latency_hourly"),
    *("delivery_now", "devices_now", "outcomes_by_minute", "latency_now"),
    *("failure_reasons", "funnel", "stuck_messages", "device_health", "conversations", "webhook_quality"),
    *("alerts", "failure_detectors", "deadletters", "rebuild_differences", "quality_history", "quality", "freshness"),
)
"""Every view, after those that it reads."""

MACROS: Final = {"messages_as_of": "moment"}
"""Every table macro, with its parameter."""

# The columns of a message in all views.
_MESSAGE_COLUMNS: Final = (
    "source",
    "sms_id",
    "message_key",
    "device_id",
    "channel_id",
    "recipient",
    "outcome",
    "failure_class",
    "last_status_id",
    "is_ended",
    "first_seen_at",
    "ended_at",
    "delivered_at",
    "attempts",
    "contradicted",
    "flags",
    "queue_s",
    "device_s",
    "network_s",
    "total_s",
    "version",
    "last_seen_at",
    "observations",
    "recorded_at",
)

# The columns of a message that marts are made of.
_COUNTED_COLUMNS: Final = (
    *("source", "device_id", "channel_id", "recipient", "outcome", "failure_class", "last_status_id", "is_ended"),
    *("first_seen_at", "last_seen_at", "observations"),
)

# A condition, because DuckDB would hash all messages for a semi join with a few hours.
_AFFECTED_HOURS_SQL: Final = """(
    SELECT 1 AS sign, * FROM messages_by_day
    WHERE coalesce(
        time_bucket(INTERVAL 1 HOUR, first_seen_at) IN (SELECT hour FROM touched), false
    )
)"""


def load_view_sql(name: str) -> str:
    """Return a view's SQL as it is in its file: with its header, and with placeholders such as `{raw}`."""
    return files("warehouse").joinpath("sql", "views", f"{name}.sql").read_text("utf-8")


def create_view_statements(
    data: Path | str,
    unmerged_condition: str = "true",
    *,
    has_rollups: bool = False,
    uncounted_from: date = date.min,
    incarnation_order: Sequence[str] = (),
) -> list[str]:
    """Return the SQL that creates every view.

    Args:
        data: The data folder, or the address of a bucket's.
        unmerged_condition: Condition of versions that the base files do not hold (`unmerged_versions_condition`).
        has_rollups: Whether all base files are counted as this version counts (`has_current_rollups`).
        uncounted_from: First date whose webhooks are not counted (`first_uncounted_date`).
        incarnation_order: Incarnations of sms.messages, in the order in which they appeared.
    """
    folder = (lambda name: f"{data}/{name}") if isinstance(data, str) else data.__truediv__
    sources = {name: dataset_scan_sql(folder(name)) for name in DATASET_NAMES}
    sources |= {f"{name} files": dataset_glob_sql(folder(name)) for name in ("raw", "messages", "deadletters")}
    sources["newer"] = dataset_scan_sql(folder("messages"), filename=True)
    sources |= _column_placeholders()
    sources |= _merge_placeholders(unmerged_condition, incarnation_order)
    for name in ROLLUPS:
        sources |= _rollup_placeholders(name, sources, has_rollups=has_rollups)
    received = load_rollup_sql("webhooks", f"(FROM raw_webhooks WHERE date >= DATE '{uncounted_from}')")
    sources["webhooks"] = (
        f"(FROM {sources['webhooks']} WHERE date < DATE '{uncounted_from}' UNION ALL BY NAME {received})"
    )
    create_statements = []
    for name in (*VIEWS, *MACROS):
        sql = load_view_sql(name)
        if name == "changes" and not has_rollups:
            sql = f"SELECT 1 AS sign, day, {sources['counted']} FROM messages_by_day"  # noqa: S608 - names of ours
        for placeholder, source in sources.items():
            sql = sql.replace(f"{{{placeholder}}}", source)
        kind = f"MACRO {name}({MACROS[name]}) AS TABLE" if name in MACROS else f"VIEW {name} AS"
        create_statements.append(f"CREATE {kind} {sql}")
    return create_statements


def _column_placeholders() -> dict[str, str]:
    return {
        "message": ", ".join(_MESSAGE_COLUMNS),
        "sums": ", ".join(f"sum({name})::BIGINT AS {name}" for name in COUNT_COLUMNS),
        "rates": rate_columns_sql(),
        "counted": ", ".join(_COUNTED_COLUMNS),
        "base.counted": ", ".join(f"base.{name}" for name in _COUNTED_COLUMNS),
    }


def _merge_placeholders(unmerged_condition: str, incarnation_order: Sequence[str]) -> dict[str, str]:
    """Return how versions that the base files do not hold are merged with the base."""
    has_base = unmerged_condition != "true"
    same = "live.source = base.source AND live.sms_id = base.sms_id"
    return {
        "live": unmerged_condition,
        "position": log_position_sql(incarnation_order),
        # With base files, newer versions are few: they are read once, and looked up by numbers. Without, they are all.
        "once": "MATERIALIZED" if has_base else "NOT MATERIALIZED",
        "same": same if has_base else f"{same} AND live.message_key = base.message_key",
    }


def _rollup_placeholders(name: str, sources: Mapping[str, str], *, has_rollups: bool) -> dict[str, str]:
    """Return the SQL of one rollup, by day and by hour: kept counts, and counts of what came since."""
    kept = f"SELECT date AS day, * EXCLUDE (date) FROM {sources[f'base/{name}']}"  # noqa: S608 - names of ours
    affected_hours = load_rollup_sql(name, _AFFECTED_HOURS_SQL, sources["prefixes"])
    by_hour = f"({kept} ANTI JOIN touched USING (hour) UNION ALL BY NAME FROM ({affected_hours}))"
    # Without current rollups, the view `changes` has all messages.
    if not has_rollups:
        kept += f" WHERE date NOT IN (SELECT date FROM {sources['base']})"  # noqa: S608 - names of ours
    changes = load_rollup_sql(name, "changes", sources["prefixes"])
    return {name: f"({kept} UNION ALL BY NAME FROM ({changes}))", f"{name} by hour": by_hour}
