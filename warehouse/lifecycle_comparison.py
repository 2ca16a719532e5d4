"""Comparison of the lifecycles that follow from the raw webhooks with those that the stream has written.

It works on one partition at a time, in tables of a DuckDB connection: `concluded`, the messages as they are written to
base files, and `differing`, those on which stream and log differ. The SQL is in `warehouse/sql/comparison/`.
"""

from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import duckdb

from core.topics import MESSAGES, RAW
from gateway.events import MAX_NAME_LENGTH
from gateway.statuses import StatusCode
from warehouse import lifecycle_sql
from warehouse.landed_files import list_incarnations_by_age
from warehouse.partition_log import UNKNOWN_INCARNATION, PartitionLog, parse_topic_id
from warehouse.reader import LOCAL_FILE_SETTINGS
from warehouse.schemas import BASE_SCHEMA
from warehouse.sink.lost_records import find_first_lost_offsets, find_present_incarnation
from warehouse.sql_text import dataset_glob_sql, dataset_scan_sql, log_position_sql
from warehouse.watermark import watermark_offset_sql

# How long stream, sinks and clocks may lag behind each other without being called different.
_SETTLED_AFTER: Final = "INTERVAL 10 MINUTE"
_COMPARED_COLUMNS: Final = tuple(
    name for name in BASE_SCHEMA.names if name not in {"message_key", "source", "sms_id", "version", "recorded_at"}
)
_RESULT_COLUMNS: Final = tuple(name for name in BASE_SCHEMA.names if name not in {"version", "recorded_at"})
# Columns of the log that distinguish observations.
_OBSERVATION_COLUMNS: Final = ("source", "sms_id", "status_id", "device_id", "channel_id", "sent_at")
# Earlier releases counted an address of any length as a fact of its message.
_WITHOUT_LONG_RECIPIENT: Final = """* REPLACE (
    CASE WHEN length(recipient) <= getvariable('longest_address') THEN recipient END AS recipient,
    version - coalesce(length(recipient) > getvariable('longest_address'), false)::BIGINT AS version
)"""
# An expiry is one fact more. The log does not show whether a message expired before a report revived it.
_HAS_OTHER_VERSION: Final = (
    "s.version NOT BETWEEN r.version AND r.version + 1 OR (s.outcome = 'expired' AND s.version = r.version)"
)
_FACTS: Final = (
    "["
    + ", ".join(
        f"{{'field': '{name}', 'streamed': s.{name}::VARCHAR, 'rebuilt': r.{name}::VARCHAR}}"
        for name in _COMPARED_COLUMNS
    )
    + "]"
)


class LifecycleComparison:
    """Tables of one run in a DuckDB connection.

    Args:
        connection: A connection of its own.
        data: The data folder.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, data: Path) -> None:
        self._connection, self._data = connection, data
        self.end_offsets: dict[str, int] = {}
        """Offset behind the last landed version, by `PartitionLog.file_label`."""
        self.newest_days: list[date] = []
        """Day of the newest file of each log of sms.messages."""

    def fetch_rows(self, sql: str, *parameters: Any) -> list[Any]:
        """Run SQL and return its rows as tuples."""
        return self._connection.execute(sql, parameters or None).fetchall()

    def fetch_value(self, sql: str, *parameters: Any) -> Any:
        """Run SQL and return the first column of its first row."""
        return self.fetch_rows(sql, *parameters)[0][0]

    def create_input_views(
        self, statuses: Mapping[int, StatusCode], expire_after: timedelta, max_observations: int
    ) -> None:
        """Create the views, tables and variables that the SQL of lifecycles and comparison reads."""
        positions = {
            dataset: f", {log_position_sql(list_incarnations_by_age(self._data, topic))} AS position"
            for dataset, topic in (("raw", RAW), ("messages", MESSAGES))
        }
        self.fetch_rows(LOCAL_FILE_SETTINGS)
        # Days are days in UTC, also in the cursors that write files.
        self.fetch_rows("SET GLOBAL TimeZone = 'UTC'")
        self._set_variable("longest_address", MAX_NAME_LENGTH)
        for name in ("raw", "messages", "deadletters", "base"):
            found = dataset_scan_sql(self._data / name, filename=name == "messages")
            columns = _WITHOUT_LONG_RECIPIENT if name == "messages" else "*"
            self.fetch_rows(f"CREATE TEMP VIEW {name}_files AS SELECT {columns}{positions.get(name, '')} FROM {found}")  # noqa: S608
        lifecycle_sql.create_statuses_table(self._connection, statuses)
        self._set_variable("expire_after", expire_after)
        self._set_variable("max_observations", max_observations)
        landed = ", ".join(dataset_glob_sql(self._data / name) for name in ("raw", "messages"))
        self.fetch_rows(f"""
            SET VARIABLE horizon = (
                SELECT max(stats_max_value::TIMESTAMPTZ) FROM parquet_metadata([{landed}])
                WHERE path_in_schema = 'recorded_at'
            )
        """)  # noqa: S608 - names of ours
        self._read_log_ends()

    def _read_log_ends(self) -> None:
        """Note how far each log of sms.messages is landed: later versions belong to the next run."""
        logs = self.fetch_rows("""
            SELECT "partition", coalesce(incarnation, ''), max("offset") + 1, max(date)
            FROM messages_files WHERE topic IS NOT NULL GROUP BY ALL ORDER BY ALL
        """)
        self.end_offsets = {
            PartitionLog(MESSAGES, partition, incarnation).file_label: end for partition, incarnation, end, _ in logs
        }
        self.newest_days = [newest for *_, newest in logs]

    def begin_at(self, start: date | None) -> None:
        """Set the first day that is rebuilt; None for all."""
        self._set_variable("start", datetime.combine(start or date(1, 1, 1), time(), UTC))

    def _set_variable(self, name: str, value: object) -> None:
        self.fetch_rows(f"SET VARIABLE {name} = ?", value)

    def list_partitions(self) -> list[int]:
        """Return the partitions of which webhooks or versions were landed."""
        rows = self.fetch_rows("""
            SELECT DISTINCT "partition" FROM raw_files UNION SELECT DISTINCT "partition" FROM messages_files ORDER BY 1
        """)
        return [partition for (partition,) in rows]

    def compare_partition(self, partition: int) -> None:
        """Create `result`, `concluded` and `differing` of one partition. Drop `result` after use."""
        self._create_reported_state_view(partition)
        placeholders = {
            "hash": f"hash({', '.join(_COMPARED_COLUMNS)})",
            "position_mask": str(2**64 - 1),
            "is_known": f'"offset" < {watermark_offset_sql(self.end_offsets)}',
            "has_other_version": _HAS_OTHER_VERSION,
            "lifecycle": lifecycle_sql.load_lifecycle_sql("lifecycle"),
            "columns": ", ".join(_RESULT_COLUMNS),
            "settled_after": _SETTLED_AFTER,
            "is_lost_webhook": _lost_records_condition(self._data, RAW, partition),
            "is_lost_version": _lost_records_condition(self._data, MESSAGES, partition),
            "facts": _FACTS,
        }

        def create(kind: str, name: str, *parameters: Any) -> None:
            sql = files("warehouse").joinpath("sql", "comparison", f"{name}.sql").read_text("utf-8")
            for placeholder, text in placeholders.items():
                sql = sql.replace(f"{{{placeholder}}}", text)
            self.fetch_rows(f"CREATE OR REPLACE {kind} {name} AS {sql}", *parameters)

        create("TEMP TABLE", "earlier", partition)
        create("TEMP TABLE", "streamed", partition)
        # Whatever is copied to files is no temporary table: the cursors that copy it would not see it.
        create("TABLE", "result")
        # Where nothing differs, no partition is read a second time.
        compared = partition if self.fetch_value("SELECT bool_or(is_differing) FROM result") else None
        self.fetch_rows("""
            CREATE OR REPLACE TABLE stated AS
            SELECT * FROM messages_files SEMI JOIN (FROM result WHERE is_differing) AS differing USING (position)
            WHERE "partition" = $1
        """, compared)  # fmt: skip
        create("VIEW", "concluded")
        create("TABLE", "differing", compared)

    def _create_reported_state_view(self, partition: int) -> None:
        """Create `reported_state` of one partition, and the variable `logged`: number and last time of its reports."""
        self.fetch_rows(
            f"CREATE TEMP TABLE log AS SELECT * EXCLUDE (position) FROM ({lifecycle_sql.load_lifecycle_sql('log')})",  # noqa: S608
            partition,
        )
        lifecycle_sql.create_message_summary_table(self._connection)
        self._drop_excess_observations(partition)
        lifecycle_sql.create_reported_state_view(self._connection)
        self.fetch_rows("SET VARIABLE logged = (SELECT {'reports': count(*), 'until': max(reported_at)} FROM log)")
        # It is the largest table of all. Memory would not hold the others next to it.
        self.fetch_rows("DROP TABLE log")

    def _drop_excess_observations(self, partition: int) -> None:
        """Remove the reports from the log that the stream puts aside as `too_many_reports`."""
        if not self.fetch_value("SELECT count(*) FROM message_summary WHERE reports > getvariable('max_observations')"):
            return
        log_sql, excess_sql = (lifecycle_sql.load_lifecycle_sql(name) for name in ("log", "excess"))
        self.fetch_rows(f"CREATE OR REPLACE TEMP TABLE excess AS {excess_sql.replace('{log}', log_sql)}", partition)
        same = " AND ".join(f"log.{name} IS NOT DISTINCT FROM excess.{name}" for name in _OBSERVATION_COLUMNS)
        self.fetch_rows(f"CREATE OR REPLACE TEMP TABLE log AS SELECT log.* FROM log ANTI JOIN excess ON {same}")  # noqa: S608 - ours
        lifecycle_sql.create_message_summary_table(self._connection)

    def count_differing(self, what: str) -> int:
        """Return how many messages of the partition differ for one reason."""
        return int(self.fetch_value("SELECT count(*) FROM differing WHERE what = ?", what))


def _lost_records_condition(data: Path, topic: str, partition: int) -> str:
    """Return the SQL condition of landed records of a partition that Kafka does not hold any more.

    Its topic was replaced, or Kafka was restored from an older copy. With the records, or with the copy of its state,
    the stream has lost its state of their messages.
    """
    present = find_present_incarnation(data, topic, partition)
    if present is None:
        return "false"
    found = find_first_lost_offsets(data, topic, partition, parse_topic_id(present))
    first_lost = {incarnation: offset for incarnation, offset in found.items() if offset is not None}
    if not first_lost:
        return "false"
    cases = " ".join(f"WHEN '{incarnation}' THEN {offset}" for incarnation, offset in first_lost.items())
    return f"coalesce(\"offset\" >= CASE coalesce(incarnation, '{UNKNOWN_INCARNATION}') {cases} END, false)"
