"""Comparison of the lifecycles that follow from the raw webhooks with those that the stream has written.

It works on one partition at a time, in tables of a DuckDB connection: `concluded`, the messages as they are written to
base files, and `differing`, those on which stream and log differ. The SQL is in `warehouse/sql/comparison/`.
"""

from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any, Final

import duckdb

from core.topics import MESSAGES, RAW
from gateway.events import MAX_NAME_LENGTH
from gateway.statuses import StatusCode
from warehouse import lifecycle_sql
from warehouse.landed_files import list_incarnations_by_age
from warehouse.partition_log import PartitionLog, parse_topic_id
from warehouse.reader import LOCAL_FILE_SETTINGS
from warehouse.schemas import SCHEMAS
from warehouse.sink.range_metadata import find_first_lost_offsets, find_present_incarnation
from warehouse.sql_text import load_sql, log_position_sql
from warehouse.views import create_macro_statements
from warehouse.watermark import watermark_offset_sql

# How long stream, sinks and clocks may lag behind each other without being called different.
_SETTLED_AFTER: Final = timedelta(minutes=10)
# Columns of the log that distinguish observations.
_OBSERVATION_COLUMNS: Final = ("source", "sms_id", "status_id", "device_id", "channel_id", "sent_at")

# Columns that identify a message or its version. All others are compared.
_IDENTITY_COLUMNS: Final = {"message_key", "source", "sms_id", "version", "recorded_at"}
_COMPARED_COLUMNS: Final = [name for name in SCHEMAS["base"].names if name not in _IDENTITY_COLUMNS]


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
        self.fetch_rows(LOCAL_FILE_SETTINGS)
        # Days are days in UTC, also in the cursors that write files.
        self.fetch_rows("SET GLOBAL TimeZone = 'UTC'")
        for name, value in (
            ("longest_address", MAX_NAME_LENGTH),
            ("expire_after", expire_after),
            ("max_observations", max_observations),
            ("settled_after", _SETTLED_AFTER),
        ):
            self._set_variable(name, value)
        for statement in create_macro_statements(self._data):
            self.fetch_rows(statement)
        # A topic that was created again begins at offset 0 again: positions order its records after the earlier ones.
        for name, topic in (("raw_position", RAW), ("message_position", MESSAGES)):
            position = log_position_sql(list_incarnations_by_age(self._data, topic))
            self.fetch_rows(f'CREATE MACRO {name}(incarnation, "offset") AS {position}')
        lifecycle_sql.create_statuses_table(self._connection, statuses)
        self.fetch_rows(load_sql("comparison", "inputs"))
        self._read_log_ends()
        # What lands during the run belongs to the next one, also for the comparison.
        known = f'"offset" < {watermark_offset_sql(self.end_offsets)}'
        self.fetch_rows(f"CREATE TEMP VIEW known_versions AS FROM messages_files WHERE {known}")

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
        self._set_variable("partition", partition)
        self.fetch_rows(f"CREATE OR REPLACE TEMP VIEW all_reports AS {load_sql('lifecycle', 'log')}")
        self._create_reported_state_view()
        self.fetch_rows(f"CREATE OR REPLACE TEMP VIEW rebuilt AS {load_sql('lifecycle', 'lifecycle')}")
        self._create("TEMP TABLE", "earlier")
        self._create("TEMP TABLE", "streamed")
        # Whatever is copied to files is no temporary table: the cursors that copy it would not see it.
        self._create("TABLE", "result")
        # Where nothing differs, no partition is read a second time.
        differs = self.fetch_value("SELECT bool_or(is_differing) FROM result")
        self._set_variable("compared", partition if differs else None)
        self.fetch_rows("""
            CREATE OR REPLACE TABLE stated AS
            SELECT * FROM messages_files SEMI JOIN (FROM result WHERE is_differing) AS differing USING (position)
            WHERE "partition" = getvariable('compared')
        """)
        self._create("VIEW", "concluded")
        self._create_lost_from_table(partition)
        self._create("TABLE", "differing")

    def _create(self, kind: str, name: str) -> None:
        sql = load_sql("comparison", name).replace("{compared_columns}", ", ".join(_COMPARED_COLUMNS))
        facts = ", ".join(f"fact('{column}', s.{column}, r.{column})" for column in _COMPARED_COLUMNS)
        self.fetch_rows(f"CREATE OR REPLACE {kind} {name} AS {sql.replace('{facts}', facts)}")

    def _create_reported_state_view(self) -> None:
        """Create `reported_state` of one partition, and the variable `logged`: number and last time of its reports."""
        self.fetch_rows("CREATE TEMP TABLE log AS SELECT * EXCLUDE (position) FROM all_reports")
        lifecycle_sql.create_message_summary_table(self._connection)
        self._drop_excess_observations()
        lifecycle_sql.create_reported_state_view(self._connection)
        self.fetch_rows("SET VARIABLE logged = (SELECT {'reports': count(*), 'until': max(reported_at)} FROM log)")
        # It is the largest table of all. Memory would not hold the others next to it.
        self.fetch_rows("DROP TABLE log")

    def _drop_excess_observations(self) -> None:
        """Remove the reports from the log that the stream puts aside as `too_many_reports`."""
        if not self.fetch_value("SELECT count(*) FROM message_summary WHERE reports > getvariable('max_observations')"):
            return
        self.fetch_rows(f"CREATE OR REPLACE TEMP TABLE excess AS {load_sql('lifecycle', 'excess')}")
        same = " AND ".join(f"log.{name} IS NOT DISTINCT FROM excess.{name}" for name in _OBSERVATION_COLUMNS)
        self.fetch_rows(f"CREATE OR REPLACE TEMP TABLE log AS SELECT log.* FROM log ANTI JOIN excess ON {same}")  # noqa: S608 - ours
        lifecycle_sql.create_message_summary_table(self._connection)

    def _create_lost_from_table(self, partition: int) -> None:
        """Create `lost_from`: from which offsets on Kafka does not hold the landed records of a partition any more.

        Its topic was replaced, or Kafka was restored from an older copy.
        """
        self.fetch_rows("""
            CREATE OR REPLACE TEMP TABLE lost_from (topic VARCHAR, incarnation VARCHAR, first_offset BIGINT)
        """)
        for topic in (RAW, MESSAGES):
            present = find_present_incarnation(self._data, topic, partition)
            if present is not None:
                first_lost = find_first_lost_offsets(self._data, topic, partition, parse_topic_id(present))
                for incarnation, offset in first_lost.items():
                    if offset is not None:
                        self.fetch_rows("INSERT INTO lost_from VALUES (?, ?, ?)", topic, incarnation, offset)
