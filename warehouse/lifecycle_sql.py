"""The lifecycle in SQL (`warehouse/sql/lifecycle/`): loads it, and creates the tables and views of its steps."""

from collections.abc import Mapping

import duckdb

from gateway.statuses import StatusCode
from warehouse.sql_text import load_sql


def create_statuses_table(connection: duckdb.DuckDBPyConnection, statuses: Mapping[int, StatusCode]) -> None:
    """Create `statuses` and the macros that the SQL of the lifecycle reads."""
    connection.execute("""
        CREATE OR REPLACE TEMP MACRO observation(
            status_id, device_id, channel_id, sent_at, is_sent, first_at, last_at
        ) AS {
            'status_id': status_id, 'device_id': device_id, 'channel_id': channel_id,
            'sent_at': CASE WHEN is_sent THEN sent_at END, 'first_received_at': first_at, 'last_received_at': last_at
        }
    """)
    connection.execute("""
        CREATE OR REPLACE TEMP MACRO seconds_between(start_at, end_at) AS
        CASE WHEN start_at <= end_at THEN (epoch_ms(end_at) - epoch_ms(start_at)) / 1000 END
    """)
    connection.execute(
        "CREATE TEMP TABLE statuses "
        "(status_id INT, rank INT, outcome VARCHAR, failure_class VARCHAR, is_end BOOLEAN, is_failure BOOLEAN)"
    )
    rows = [(s.id, s.rank, s.outcome.value, s.failure_class, s.is_end, s.is_failure) for s in statuses.values()]
    connection.executemany("INSERT INTO statuses VALUES (?, ?, ?, ?, ?, ?)", rows)


def create_message_summary_table(connection: duckdb.DuckDBPyConnection) -> None:
    """Create `message_summary`, the messages of `log`. It reads `statuses`."""
    connection.execute(f"CREATE OR REPLACE TEMP TABLE message_summary AS {load_sql('lifecycle', 'message_summary')}")


def create_reported_state_view(connection: duckdb.DuckDBPyConnection) -> None:
    """Create `reported_state`, the content of the reports in `log` by message.

    Its columns are those of lifecycle_multi_attempt.sql.
    It reads `message_summary` and `statuses`.
    """
    connection.execute("""
        CREATE OR REPLACE TEMP TABLE reports AS
        SELECT message_summary.rowid AS message, status_id, log.device_id, log.channel_id, sent_at, reported_at
        FROM log
        INNER JOIN message_summary
            ON message_summary.source = log.source AND message_summary.sms_id = log.sms_id AND NOT is_simple
    """)
    connection.execute(
        f"CREATE OR REPLACE TEMP VIEW reported_state AS ({load_sql('lifecycle', 'lifecycle_multi_attempt')}) "
        f"UNION ALL BY NAME ({load_sql('lifecycle', 'lifecycle_simple')})"
    )
