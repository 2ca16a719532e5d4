"""The views: their names, and the SQL that creates them."""

import re
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Final

from gateway.statuses import STATUSES
from warehouse.datasets import DATASET_NAMES, RECENT_BASE, RECENT_UPDATES, ROLLUPS
from warehouse.small_datasets import has_mixed_schemas
from warehouse.sql_text import escape_glob, load_sql, log_position_sql, quote_sql_text

VIEWS: Final = (
    *("raw_webhooks", "status_events", "incoming_messages", "live_messages", "messages_by_day", "messages", "changes"),
    *("attempts", "attempts_hourly", "delivery_hourly", "delivery_daily", "delivery_by_device", "delivery_by_prefix"),
    *("delivery_by_channel", "latency_hourly", "routes_daily", "routes", "blame"),
    *("delivery_now", "devices_now", "outcomes_by_minute", "latency_now"),
    *("failure_reasons", "funnel", "stuck_messages", "device_health", "conversations", "webhook_quality"),
    *("alerts", "failure_detectors", "deadletters", "rebuild_differences", "quality_history", "quality", "freshness"),
    *("statuses", "message_networks"),
)
"""Every view, after those that it reads."""

CHANGING_VIEWS: Final = ("messages_by_day", "changes")
"""Views whose SQL depends on whether there are base files and rollups."""

# Views of counts, which get columns of rates here. A macro for that would take planning time in each query.
_RATED_VIEWS: Final = (
    *("attempts_hourly", "delivery_hourly", "delivery_daily", "delivery_by_device", "delivery_by_prefix"),
    *("delivery_by_channel", "delivery_now", "devices_now"),
)
_WITH_RATES: Final = """
    SELECT * EXCLUDE (rates), unnest(rates)
    FROM (SELECT *, rates(attempted, ended, delivered, open) AS rates FROM ({}))
"""

MACROS: Final = {"messages_as_of": "moment"}
"""Every table macro that people use, with its parameter."""

# The columns of a message that marts are made of.
_COUNTED_COLUMNS: Final = (
    "source, sms_id, device_id, channel_id, recipient, outcome, failure_class, last_status_id, is_ended, "
    "first_seen_at, last_seen_at, attempts, attempt_details, observations"
)


# Date of a file's folder. As with a partition key, DuckDB evaluates a condition on it before it opens files.
_FILE_DATE: Final = "right(parse_dirpath(filename), 10)::DATE"


def create_macro_statements(data: Path | str) -> list[str]:
    """Return the SQL that creates the macros of datasets, rates and rollups in a database.

    Args:
        data: The data folder, or the address of a bucket's.
    """
    # Another release may document more: its files are not asked.
    documented = ", ".join(map(str, sorted(STATUSES)))
    source = f"{_FILE_DATE} AS date FROM {_read_sql(data, 'name')}"
    return [
        f"CREATE MACRO dataset_pattern(name) AS {_pattern_sql(data, 'name')}",
        # Rows of a dataset, each with its file.
        f"CREATE MACRO dataset_files(name) AS TABLE SELECT *, {source}",
        f"CREATE MACRO dataset(name) AS TABLE SELECT * EXCLUDE (filename), {source}",
        f"CREATE MACRO is_documented(status_id) AS status_id IN ({documented})",
        # In this order: a macro finds those that were created before it.
        *load_sql("macros").split(";\n")[:-1],
        *(f"CREATE MACRO count_{name}(rows) AS TABLE {load_sql('rollups', name)}" for name in (*ROLLUPS, "webhooks")),
    ]


def _pattern_sql(data: Path | str, name: str) -> str:
    """Return the SQL of the pattern of a dataset's files, whose name is an SQL expression."""
    return f"{quote_sql_text(escape_glob(str(data)) + '/')} || {name} || '/date=*/*.parquet'"


def _patterns_sql(data: Path | str, name: str) -> str:
    """Return the SQL of the patterns of a dataset's files: those of base include the recent ones."""
    # Recent files come first. They are listed before a rebuild replaces both, or the list names a missing file: so no
    # query takes both for empty.
    both = f"[{_pattern_sql(data, quote_sql_text(RECENT_BASE))}, {_pattern_sql(data, name)}]"
    return f"CASE WHEN {name} = 'base' THEN {both} ELSE [{_pattern_sql(data, name)}] END"


def _read_sql(data: Path | str, name: str, patterns: str = "") -> str:
    """Return the SQL that reads a dataset's files. It stands in each macro, for macros within one take planning time.

    Args:
        data: The data folder, or the address of a bucket's.
        name: SQL expression of the dataset's name.
        patterns: SQL expression of the patterns of its files, if they are others than the dataset's own.

    The only partition key is the date of a file's folder. DuckDB's own hive partitioning would take every key=value of
    a path for one, also above the data folder, and they would replace columns of the same name.
    """
    # The seed is the first file and has all columns. If other files may lack some, columns are matched by name. For
    # that, each query opens every file, which takes 0.1 ms a file and reference.
    # Without seeds to look at, the files of a bucket may have any schema.
    # The empty name is that of no dataset: a list cannot be empty.
    mixed = ["", *(each for each in DATASET_NAMES if isinstance(data, str) or has_mixed_schemas(data / each))]
    is_mixed = f"({name}) IN ({', '.join(map(quote_sql_text, mixed))})"
    patterns = patterns or _patterns_sql(data, name)
    return f"read_parquet({patterns}, union_by_name = {is_mixed}, filename = true, hive_partitioning = false)"


def create_view_statements(
    data: Path | str,
    unmerged_condition: str = "true",
    *,
    has_rollups: bool = False,
    uncounted_from: date = date.min,
    incarnation_order: Sequence[str] = (),
) -> list[str]:
    """Return the SQL that creates every view, and the macros that they use.

    Args:
        data: The data folder, or the address of a bucket's.
        unmerged_condition: Condition of versions that the base files do not hold (`unmerged_versions_condition`).
        has_rollups: Whether all base files are counted as this version counts (`has_current_rollups`).
        uncounted_from: First date whose webhooks are not counted (`first_uncounted_date`).
        incarnation_order: Incarnations of sms.messages, in the order in which they appeared.
    """
    # A condition that is always true is that of a folder without base files.
    has_base = unmerged_condition != "true"
    same_message = "live_source = base_source AND live_sms_id = base_sms_id"
    counted, recently_counted = "'base/' || name", f"'{RECENT_BASE}/' || name"
    patterns = f"[{_pattern_sql(data, recently_counted)}, {_pattern_sql(data, counted)}]"
    source = _read_sql(data, counted, patterns)
    kept_counts = f"SELECT {_FILE_DATE} AS day, * EXCLUDE (filename) FROM {source}"  # noqa: S608 - names of ours
    live_datasets = (quote_sql_text(each) for each in ("messages", RECENT_UPDATES))
    updates = f"[{', '.join(_pattern_sql(data, each) for each in live_datasets)}]"
    live_files = _read_sql(data, "'messages'", updates)
    changes = load_sql("views", "changes")
    if not has_base:
        # A filter on the key alone reaches the files of both.
        same_message += " AND live_key = base_key"
    if not has_rollups:
        kept_counts += " WHERE day NOT IN (SELECT base.date FROM dataset('base') AS base)"
        changes = f"SELECT 1 AS sign, day, {_COUNTED_COLUMNS} FROM messages_by_day"  # noqa: S608 - names of ours
    statements = [
        *create_macro_statements(data),
        f'CREATE MACRO log_position(incarnation, "offset") AS {log_position_sql(incarnation_order)}',
        f'CREATE MACRO is_unmerged(filename, date, "partition", incarnation, "offset") AS {unmerged_condition}',
        "CREATE MACRO is_same_message(live_source, base_source, live_sms_id, base_sms_id, live_key, base_key) AS "
        + same_message,
        # Landed versions, and those that recent base files keep as updates.
        f"CREATE MACRO live_files() AS TABLE SELECT *, {_FILE_DATE} AS date FROM {live_files}",  # noqa: S608 - ours
        f"CREATE MACRO counted_until() AS DATE '{uncounted_from}'",
        f"CREATE MACRO rollup(name) AS TABLE {kept_counts}",
    ]
    for name in (*VIEWS, *MACROS):
        sql = changes if name == "changes" else load_view_sql(name)
        # With base files, newer versions are few: they are read once, and looked up by numbers. Without, they are all.
        sql = sql.replace("{once}", "MATERIALIZED" if has_base else "NOT MATERIALIZED")
        kind = f"MACRO {name}({MACROS[name]}) AS TABLE" if name in MACROS else f"VIEW {name} AS"
        statements.append(f"CREATE {kind} {sql}")
        owner = f"MACRO TABLE {name}" if name in MACROS else f"VIEW {name}"
        statements.append(f"COMMENT ON {owner} IS {quote_sql_text(_read_header(name))}")
    return statements


def load_view_sql(name: str) -> str:
    """Return the SQL of a view's rows."""
    sql = load_sql("views", name)
    return _WITH_RATES.format(sql) if name in _RATED_VIEWS else sql


def _read_header(name: str) -> str:
    """Return the comment at the top of a view's file: a line for each of its parts, such as `Key: ...`."""
    header = re.match(r"(?:--.*\n)*", load_sql("views", name))
    lines = header[0].splitlines() if header else []
    text = " ".join(line.removeprefix("--").strip() for line in lines)
    return re.sub(r" (?=(Key|Units|Units and freshness|Freshness): )", "\n", text)
