"""The views, and the file that holds them: `{data}/smspulse.duckdb`.

The file has no data of its own, only views over the Parquet files by absolute path. Analysts open it read-only, any
number of them with any DuckDB from 1.2 on, while the lander goes on; it is replaced in one step, and those who have it
open see new data all the same.
"""

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

import duckdb

from core.topics import MESSAGES
from gateway.statuses import STATUSES
from warehouse import prefixes, status_codes
from warehouse.errors import NeedsFolderError, UnreadablePathError, WarehouseError
from warehouse.partition_log import UNKNOWN_INCARNATION
from warehouse.schemas import COUNT_COLUMNS, ROLLUPS, SCHEMAS
from warehouse.sink import parquet_files

_log = logging.getLogger(__name__)

CATALOG_FILE: Final = "smspulse.duckdb"
WATERMARK_FILE: Final = "covered.json"
_MAX_OFFSET: Final = 2**48
"""More than any partition has records; a number below 2^15 for its incarnation fits into a BIGINT above it."""

VIEWS: Final = (
    *("raw_webhooks", "status_events", "incoming_messages", "live_messages", "messages_by_day", "messages", "changes"),
    *("delivery_hourly", "delivery_daily", "delivery_by_device", "delivery_by_prefix", "latency_hourly"),
    *("delivery_now", "devices_now", "outcomes_by_minute", "latency_now"),
    *("failure_reasons", "funnel", "stuck_messages", "device_health", "conversations", "webhook_quality"),
    *("alerts", "failure_detectors", "deadletters", "rebuild_differences", "quality_history", "quality", "freshness"),
)
"""Every view; each stands after those that it reads."""

MACROS: Final = {"messages_as_of": "moment"}
"""Every table macro, with its parameter."""

RATES: Final = {
    "delivered_per_attempted": ("delivered", "attempted"),
    "delivered_per_ended": ("delivered", "ended"),
    "open_share": ("open", "attempted"),
}
"""Every rate of counted messages: part and whole."""

# The only partition key: the date of the folder that a file is in. DuckDB's own hive partitioning takes every key=value
# of a path for one, those above the data folder too, and they replace columns of the same name. A condition on this
# expression chooses files before any is opened, as one on a partition key does.
_FOLDER_DATE: Final = "right(parse_dirpath(filename), 10)::DATE"

# What DuckDB 1.2 can open. DuckDB 2.0 writes a format by default that older ones, and tools built on them, cannot.
_STORAGE_VERSION: Final = "v1.2.0"


def load_view_sql(name: str) -> str:
    """Return a view's SQL as it is in its file, with its header, `{raw}` and the like standing for datasets."""
    return files("warehouse").joinpath("sql", "views", f"{name}.sql").read_text("utf-8")


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
"""The columns of a message, in whatever view of it."""

_COUNTED_COLUMNS: Final = (
    *("source", "device_id", "channel_id", "recipient", "outcome", "failure_class", "last_status_id", "is_ended"),
    *("first_seen_at", "last_seen_at", "observations"),
)
"""Those of them that marts are made of."""


def load_rollup_sql(name: str, rows: str, prefixes: str = "") -> str:
    """Return the SQL of what is counted of messages, or of webhooks.

    Args:
        name: One of `SUMS`, or `webhooks`.
        rows: The SQL of the messages, each with its day and the sign with which it counts; or of all webhooks of dates.
        prefixes: The SQL that reads the dataset of that name; for `networks`.
    """
    sql = files("warehouse").joinpath("sql", "rollups", f"{name}.sql").read_text("utf-8")
    documented = ", ".join(map(str, sorted(STATUSES)))
    return sql.replace("{rows}", rows).replace("{prefixes}", prefixes).replace("{documented}", documented)


@cache
def rollup_fingerprint() -> str:
    """Return what tells apart sums that were made otherwise."""
    return _hash_statements([version("phonenumbers"), *(load_rollup_sql(name, "", "") for name in ROLLUPS)])[:16]


def publish_views(data: Path) -> Path:
    """Write the file of views, if it is missing or differs from what it should be, and return its path.

    Raises:
        NeedsFolderError: It is no folder but a bucket.
        SettingError: The meanings of further statuses cannot be meant.
        UnreadablePathError: DuckDB could not read the folder.
        OSError: The data folder is not writable.
    """
    if "s3:" in data.parts:
        raise NeedsFolderError(data)
    data = data.resolve()
    if "\\" in str(data):
        raise UnreadablePathError(data)
    path = data / CATALOG_FILE
    parquet_files.create_seed_files(data)
    prefixes.refresh_prefixes(data)
    status_codes.refresh_status_codes(data)
    sql = create_folder_statements(data)
    temporary = data / parquet_files.TEMPORARY_FOLDER / CATALOG_FILE
    temporary.parent.mkdir(exist_ok=True)
    with parquet_files.lock_folder(temporary.parent):
        if _read_fingerprint(path) == _hash_statements(sql):
            return path
        # DuckDB cannot create a file below a folder with `?` in its name, where it looks for parameters.
        with TemporaryDirectory() as scratch:
            written = Path(scratch) / CATALOG_FILE
            write_catalog_file(written, sql, str(data))
            copyfile(written, temporary)
        temporary.replace(path)
    _log.info("published %d views in %s", len(VIEWS), path)
    return path


def create_folder_statements(data: Path) -> list[str]:
    """Return the SQL that makes every view of a folder of this machine.

    Args:
        data: The data folder, resolved.

    Raises:
        WarehouseError: The file of what base files hold is damaged.
    """
    known = parquet_files.list_incarnations_by_age(data, MESSAGES)
    return create_view_statements(
        data,
        unmerged_versions_condition(data),
        has_rollups=has_current_rollups(data),
        uncounted_from=first_uncounted_date(data),
        incarnation_order=known,
    )


def read_published_folder(connection: duckdb.DuckDBPyConnection) -> str | None:
    """Return the data folder that opened views read; None if an earlier version wrote them.

    Raises:
        duckdb.Error: The file cannot be read.
    """
    found = connection.execute("FROM meta")
    row = dict(zip([column[0] for column in found.description or ()], found.fetchall()[0], strict=True))
    folder = row.get("folder")
    return str(folder) if folder else None


def write_catalog_file(path: Path, sql: list[str], folder: str, file_system: Any = None) -> None:
    """Write the file of views.

    Args:
        path: Where nothing is yet.
        sql: As `create_view_statements` makes it.
        folder: The data folder, or the address of a bucket's, that they read.
        file_system: The file system of fsspec that has what it reads, where that is none of this machine.

    Raises:
        OSError: It cannot be written.
    """
    try:
        with duckdb.connect() as connection:
            if file_system is not None:
                connection.register_filesystem(file_system)
            connection.execute(
                f"ATTACH {quote_sql_text(str(path))} AS published (STORAGE_VERSION '{_STORAGE_VERSION}')"
            )
            connection.execute("USE published")
            for statement in sql:
                connection.execute(statement)
            columns = f"'{_hash_statements(sql)}' AS fingerprint, {quote_sql_text(folder)} AS folder"
            connection.execute(f"CREATE VIEW meta AS SELECT {columns}")
            connection.execute("USE memory")
            connection.execute("DETACH published")
    except duckdb.IOException as error:
        raise OSError(" ".join(str(error).split())) from error


def create_view_statements(
    data: Path | str,
    unmerged_condition: str = "true",
    *,
    has_rollups: bool = False,
    uncounted_from: date = date.min,
    incarnation_order: Sequence[str] = (),
) -> list[str]:
    """Return the SQL that makes every view.

    Args:
        data: The data folder, or the address of a bucket's.
        unmerged_condition: As `unmerged_versions_condition` says.
        has_rollups: As `has_current_rollups` says.
        uncounted_from: As `first_uncounted_date` says.
        incarnation_order: Of sms.messages, in the order in which they appeared.
    """
    folder = (lambda name: f"{data}/{name}") if isinstance(data, str) else data.__truediv__
    sources = {name: dataset_scan_sql(folder(name)) for name in SCHEMAS} | {
        "live": unmerged_condition,
        "message": ", ".join(_MESSAGE_COLUMNS),
    }
    sources |= {f"{name} files": dataset_glob_sql(folder(name)) for name in ("raw", "messages", "deadletters")}
    sources["position"] = log_position_sql(incarnation_order)
    sources["newer"] = dataset_scan_sql(folder("messages"), filename=True)
    sources |= {
        "sums": ", ".join(f"sum({name})::BIGINT AS {name}" for name in COUNT_COLUMNS),
        "rates": rate_columns_sql(),
    }
    sources |= {
        "counted": ", ".join(_COUNTED_COLUMNS),
        "base.counted": ", ".join(f"base.{name}" for name in _COUNTED_COLUMNS),
    }
    # Newer versions are few once there are base files: read once, and looked up by numbers. Otherwise they are all.
    sources["once"] = "NOT MATERIALIZED" if unmerged_condition == "true" else "MATERIALIZED"
    sources["same"] = "live.source = base.source AND live.sms_id = base.sms_id"
    if unmerged_condition == "true":
        sources["same"] += " AND live.message_key = base.message_key"
    # As a part of a condition: DuckDB would rather hash all messages than a semi join's few hours.
    affected_hours_sql = """(
        SELECT 1 AS sign, * FROM messages_by_day
        WHERE coalesce(
            time_bucket(INTERVAL 1 HOUR, first_seen_at) IN (SELECT hour FROM touched), false
        )
    )"""
    for name in ROLLUPS:
        kept = f"SELECT date AS day, * EXCLUDE (date) FROM {sources[f'base/{name}']}"  # noqa: S608 - names of ours
        sql = load_rollup_sql(name, affected_hours_sql, sources["prefixes"])
        sources[f"{name} by hour"] = f"({kept} ANTI JOIN touched USING (hour) UNION ALL BY NAME FROM ({sql}))"
        if not has_rollups:  # then `changes` are all messages
            kept += f" WHERE date NOT IN (SELECT date FROM {sources['base']})"  # noqa: S608 - names of ours
        sources[name] = f"({kept} UNION ALL BY NAME FROM ({load_rollup_sql(name, 'changes', sources['prefixes'])}))"
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


def rate_columns_sql() -> str:
    """Return the rates of counted messages, each with its 95 % Wilson interval."""
    z = 1.959963984540054
    columns = []
    for name, (part, whole) in RATES.items():
        n = f"nullif({whole}, 0)"
        middle, reach = f"{part} + {z**2 / 2}", f"{z} * sqrt({part} * ({whole} - {part}) / {n} + {z**2 / 4})"
        columns += [
            f"{part} / {n} AS {name}",
            # At the ends, where rounding could lead out of them, the bounds are 0 and 1.
            f"CASE WHEN {part} > 0 THEN ({middle} - {reach}) / ({n} + {z**2}) ELSE 0.0 * {n} END AS {name}_low",
            f"CASE WHEN {part} < {whole} THEN ({middle} + {reach}) / ({n} + {z**2}) ELSE {n} / {n} END AS {name}_high",
        ]
    return ", ".join(columns)


class BaseWatermark(NamedTuple):
    """What the base files hold.

    Args:
        since: The first day of the dataset messages with versions that they do not hold.
        offsets: Of sms.messages, up to which they hold everything, by `PartitionLog.file_label`.
        floor: The first day that the raw webhooks still tell all of; days before cannot be rebuilt.
        sums: The `rollup_fingerprint` of what was counted of them; empty where something was not.
    """

    since: date
    offsets: dict[str, int]
    floor: date = date.min
    sums: str = ""

    def to_json(self) -> str:
        """Return it as `read_base_watermark` reads it."""
        return json.dumps(self._asdict(), default=str)


def read_base_watermark(data: Path) -> BaseWatermark | None:
    """Return what the base files hold; None without any.

    Raises:
        WarehouseError: The file that says so cannot be read.
    """
    path = data / "base" / WATERMARK_FILE
    try:
        fields = json.loads(path.read_text())
        return BaseWatermark(
            date.fromisoformat(fields["since"]),
            {str(label): int(offset) for label, offset in fields["offsets"].items()},
            date.fromisoformat(fields.get("floor", str(date.min))),
            fields.get("sums", ""),
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, AttributeError) as error:
        msg = f"{path} is damaged: remove it, and run `smspulse rebuild`"
        raise WarehouseError(msg) from error


def unmerged_versions_condition(data: Path) -> str:
    """Return the SQL condition of versions in the dataset messages that the base files do not hold.

    Raises:
        WarehouseError: The file that says so cannot be read.
    """
    watermark = read_base_watermark(data)
    if watermark is None or not watermark.offsets:
        return "true"
    return f"date >= DATE '{watermark.since}' AND {newer_versions_condition(watermark.offsets)}"


def newer_versions_condition(offsets: Mapping[str, int]) -> str:
    """Return the SQL condition of versions in the dataset messages that are behind these offsets.

    Args:
        offsets: By `PartitionLog.file_label`. Of other logs, all versions are.
    """
    # By the names of files, for those that the base holds need not be opened: a name has the offset where its last
    # range begins, and the label of its log before that. Judging names by `split_part` takes half as long again.
    by_label = " ".join(f"WHEN '{label}' THEN '{offset:020d}'" for label, offset in offsets.items())
    name, label = "string_split(filename, '+')[-1]", "string_split(filename, '+')[-2]"
    return f"{name} >= CASE {label} {by_label} ELSE '' END AND \"offset\" >= {watermark_offset_sql(offsets)}"


def log_position_sql(incarnation_order: Sequence[str]) -> str:
    """Return the SQL of a record's place in all logs of its partition: those of a later incarnation are larger numbers.

    Args:
        incarnation_order: The topic's incarnations, oldest first. One that is not among them counts as newer.
    """
    if not incarnation_order:
        return '"offset"'
    cases = " ".join(f"WHEN '{incarnation}' THEN {number}" for number, incarnation in enumerate(incarnation_order))
    newer = len(incarnation_order)
    number = f"CASE coalesce(incarnation, '{UNKNOWN_INCARNATION}') {cases} ELSE {newer} END"
    return f'{number}::BIGINT * {_MAX_OFFSET} + "offset"'


def watermark_offset_sql(offsets: Mapping[str, int]) -> str:
    """Return the SQL of the offset that a row's log has among these, by `PartitionLog.file_label`; 0 if it has none."""
    by_incarnation: dict[str, list[str]] = {}
    for label, offset in offsets.items():
        partition, _, incarnation = label.partition("@")
        by_incarnation.setdefault(incarnation, []).append(f"WHEN {partition} THEN {offset}")
    if not by_incarnation:
        return "0"
    cases = [
        f"WHEN '{incarnation}' THEN CASE \"partition\" {' '.join(partitions)} ELSE 0 END"
        for incarnation, partitions in by_incarnation.items()
    ]
    return f"CASE coalesce(incarnation, '{UNKNOWN_INCARNATION}') {' '.join(cases)} ELSE 0 END"


def has_current_rollups(data: Path) -> bool:
    """Tell whether all base files were counted as this version counts.

    Raises:
        WarehouseError: The file that says so cannot be read.
    """
    watermark = read_base_watermark(data)
    return watermark is not None and watermark.sums == rollup_fingerprint()


def first_uncounted_date(data: Path) -> date:
    """Return the first date of which compaction has not counted the webhooks, nor of any behind it."""
    names = [path.parent.name for path in (data / "webhooks").glob("date=*/[0-9]*.parquet")]
    # Not of the seeds' date without any: records without a time are landed there.
    return date.fromisoformat(max(names).removeprefix("date=")) + timedelta(days=1) if names else date.min


def dataset_scan_sql(folder: Path | str, *, filename: bool = False) -> str:
    """Return the SQL that reads all files of a dataset's folder, with a column of their names if that is wanted.

    Args:
        folder: Prepared (`parquet_files.create_seed_files`), or the address of a bucket's.
        filename: Whether it is.
    """
    # Its seed is the first file, and has all columns. Where there are files that lack some, or may be, columns go by
    # name: for that each query opens every file, 0.1 ms a file and reference.
    by_name = isinstance(folder, str) or parquet_files.has_mixed_schemas(folder)
    options = ("union_by_name = true, " if by_name else "") + "filename = true, hive_partitioning = false"
    columns = "*" if filename else "* EXCLUDE (filename)"
    files = f"read_parquet({dataset_glob_sql(folder)}, {options})"
    return f"(SELECT {columns}, {_FOLDER_DATE} AS date FROM {files})"  # noqa: S608 - names of ours


def dataset_glob_sql(folder: Path | str) -> str:
    """Return the SQL text that stands for all files of a dataset's folder."""
    return quote_sql_text(f"{escape_glob(str(folder))}/date=*/*.parquet")


def escape_glob(path: str) -> str:
    """Return the glob pattern that stands for a path alone."""
    return re.sub(r"([\[*?{])", r"[\1]", path)


def quote_sql_text(text: str) -> str:
    """Return a text as SQL writes it."""
    return "'" + text.replace("'", "''") + "'"


def _hash_statements(sql: list[str]) -> str:
    return hashlib.sha256("\n".join(sql).encode()).hexdigest()


def _read_fingerprint(path: Path) -> str | None:
    if not path.exists():
        return None
    try:
        with duckdb.connect(path, read_only=True) as connection:
            row = connection.execute("SELECT fingerprint FROM meta").fetchone()
    except duckdb.Error:  # damaged, locked by a writer, or of another age: to be replaced in any case
        return None
    return str(row[0]) if row else None
