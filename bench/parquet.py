"""Fills a data folder with Parquet straight away: the simulator's stories, told again with other ids and times."""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import duckdb
import pyarrow as pa
from records import PARTITIONS, SOURCE

from core.records import HEADER_INGEST_ID, HEADER_RECEIVED_AT, HEADER_SOURCE
from core.topics import MESSAGES, RAW
from smspulse.simulator.scenarios import generate_scenarios
from warehouse.file_names import format_file_name
from warehouse.partition_log import PartitionLog
from warehouse.schemas import MESSAGES_SCHEMA, RAW_SCHEMA
from warehouse.sink.record_conversion import PartitionRecords
from warehouse.sink.table_building import build_table
from warehouse.sql_text import quote_sql_text

INCARNATION = "bench"
TOLD = 5_000
"""Stories that the simulator tells; more messages are copies of them."""


def fill_raw(data: Path, messages: int, days: int, end: date, devices: int = 300) -> int:
    """Write `raw`, a file a day and partition, of the days before `end`; return the number of status reports.

    Six devices tell a copy of the stories; there are at most so many.
    """
    stories_of, times, bodies = [], [], []
    for number, story in enumerate(story for story in generate_scenarios(1, TOLD) if story.kind == "outgoing"):
        at = 0.0
        for webhook in story.webhooks:
            at += webhook.delay_s
            stories_of.append(number)
            times.append(int(at * 1000))
            bodies.append(webhook.body)
    headers = [
        (
            (HEADER_SOURCE, SOURCE.encode()),
            (HEADER_RECEIVED_AT, b"%d" % at),
            (HEADER_INGEST_ID, b""),
            ("content_type", b"application/json"),
        )
        for at in times
    ]
    told = build_table(PartitionRecords(RAW, 0, range(len(times)), times, [None] * len(times), bodies, headers))
    # A story's number is kept where the partition will be.
    told = told.set_column(told.schema.get_field_index("partition"), "partition", pa.array(stories_of, pa.int32()))
    reports = 0
    with duckdb.connect() as connection:
        connection.register("told", told)
        connection.execute("SET TimeZone = 'UTC'; SET VARIABLE groups = ?", [devices // 6])
        connection.execute("CREATE TABLE template AS FROM told")
        offsets = [0] * PARTITIONS
        for day in range(days):
            today = end - timedelta(days - day)
            # A copy of all stories, its messages begun at random over the day; what comes after midnight stays with it.
            connection.execute("SET VARIABLE midnight = ?", [datetime(today.year, today.month, today.day, tzinfo=UTC)])
            connection.execute(
                """
                CREATE OR REPLACE TABLE told_today AS
                SELECT * REPLACE (
                    sms_id + copy * 100_000 AS sms_id,
                    ((sms_id + copy) % 4)::INTEGER AS "partition",
                    getvariable('midnight') + (received_at - TIMESTAMPTZ 'epoch')
                        + to_milliseconds((hash(copy, told."partition") % 86_000_000)::BIGINT) AS received_at,
                    uuidv7()::VARCHAR AS ingest_id,
                    device_id + copy % getvariable('groups') * 10 AS device_id,
                    '+4477' || lpad((hash(copy, told."partition", 1) % 100_000_000)::VARCHAR, 8, '0') AS address,
                    replace(body::VARCHAR, sms_id::VARCHAR, (sms_id + copy * 100_000)::VARCHAR)::BLOB AS body
                )
                FROM template AS told, range(?, ?) AS copies (copy)
                WHERE kind = 'status'
                """,
                [copies_until(messages, days, day), copies_until(messages, days, day + 1)],
            )
            for partition in range(PARTITIONS):
                folder = data / "raw" / f"date={today}"
                folder.mkdir(parents=True, exist_ok=True)
                path = folder / format_file_name(PartitionLog(RAW, partition, INCARNATION), offsets[partition])
                columns = ", ".join(f'"{name}"' for name in RAW_SCHEMA.names)
                rows = connection.execute(
                    f"""
                    COPY (
                        SELECT {columns} FROM (
                            SELECT * REPLACE (
                                {offsets[partition]} + row_number() OVER (ORDER BY received_at) - 1 AS "offset",
                                received_at AS recorded_at, '{INCARNATION}' AS incarnation
                            ) FROM told_today WHERE "partition" = {partition}
                        ) ORDER BY "offset"
                    ) TO {quote_sql_text(str(path))} (FORMAT parquet, COMPRESSION zstd)
                    """  # noqa: S608 - ours
                ).fetchall()[0][0]
                offsets[partition] += rows
                reports += rows
    return reports


def copies_until(messages: int, days: int, day: int) -> int:
    """Return how many copies of the stories are told before a day."""
    return max(messages // TOLD, days) * day // days


def fill_messages(data: Path) -> None:
    """Write `messages` from the base files: three versions a message, as a stream that keeps up writes them."""
    columns = ", ".join(f'"{name}"' for name in MESSAGES_SCHEMA.names)
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        offsets: dict[str, int] = {}
        for path in sorted(data.glob("base/date=*/[0-9]-*.parquet")):
            partition = path.stem.partition("-")[0]
            start = offsets.get(partition, 0)
            folder = data / "messages" / path.parent.name
            folder.mkdir(parents=True, exist_ok=True)
            target = folder / format_file_name(PartitionLog(MESSAGES, int(partition), INCARNATION), start)
            # Ended and not, the outcome of all but the last is of no matter to any query.
            rows = connection.execute(
                f"""
                COPY (
                    SELECT {columns} FROM (
                        SELECT * REPLACE (
                            greatest(version + (outcome = 'expired')::INTEGER - 2 + step, 1) AS version,
                            first_seen_at + step * (last_seen_at - first_seen_at) / 2 AS recorded_at
                        ),
                        '{INCARNATION}' AS incarnation, false AS is_forgotten,
                        '{MESSAGES}' AS topic, {partition}::INTEGER AS "partition",
                        {start} + row_number() OVER (ORDER BY first_seen_at, step) AS "offset"
                        FROM {quote_sql_text(str(path))}, range(3) AS steps (step)
                    ) ORDER BY "offset"
                ) TO {quote_sql_text(str(target))} (FORMAT parquet, COMPRESSION zstd)
                """.replace("FROM '", "FROM read_parquet('", 1).replace(".parquet', range", ".parquet'), range", 1)  # noqa: S608 - ours
            ).fetchall()[0][0]
            offsets[partition] = start + rows + 1
