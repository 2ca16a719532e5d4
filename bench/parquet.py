"""Fills a data folder with Parquet directly: copies of the simulator's scenarios with other ids and times."""

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
from warehouse.schemas import SCHEMAS
from warehouse.sink.partition_records import PartitionRecords
from warehouse.sink.range_metadata import NEXT_OFFSET_KEY
from warehouse.sink.record_conversion import build_table
from warehouse.sql_text import quote_sql_text

INCARNATION = "bench"
SCENARIOS = 5_000
"""Number of scenarios of the simulator. All further messages are copies of them."""


def fill_raw(data: Path, messages: int, days: int, end: date, devices: int = 300) -> int:
    """Write `raw`, a file a day and partition, of the days before `end`; return the number of status reports.

    Each copy of the scenarios has six devices. `devices` is the maximum of all copies.
    """
    scenario_numbers, times, bodies = [], [], []
    outgoing = (scenario for scenario in generate_scenarios(1, SCENARIOS) if scenario.kind == "outgoing")
    for number, scenario in enumerate(outgoing):
        at = 0.0
        for webhook in scenario.webhooks:
            at += webhook.delay_s
            scenario_numbers.append(number)
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
    originals = build_table(PartitionRecords(RAW, 0, range(len(times)), times, [None] * len(times), bodies, headers))
    # The column of the partition holds the number of the scenario.
    originals = originals.set_column(
        originals.schema.get_field_index("partition"), "partition", pa.array(scenario_numbers, pa.int32())
    )
    reports = 0
    with duckdb.connect() as connection:
        connection.register("originals", originals)
        connection.execute("SET TimeZone = 'UTC'; SET VARIABLE groups = ?", [devices // 6])
        connection.execute("CREATE TABLE template AS FROM originals")
        offsets = [0] * PARTITIONS
        for day in range(days):
            today = end - timedelta(days - day)
            # A copy of all scenarios that start at random times of the day. Reports after midnight stay in its files.
            connection.execute("SET VARIABLE midnight = ?", [datetime(today.year, today.month, today.day, tzinfo=UTC)])
            connection.execute(
                """
                CREATE OR REPLACE TABLE reports_of_day AS
                SELECT * REPLACE (
                    sms_id + copy * 100_000 AS sms_id,
                    ((sms_id + copy) % 4)::INTEGER AS "partition",
                    getvariable('midnight') + (received_at - TIMESTAMPTZ 'epoch')
                        + to_milliseconds((hash(copy, original."partition") % 86_000_000)::BIGINT) AS received_at,
                    uuidv7()::VARCHAR AS ingest_id,
                    device_id + copy % getvariable('groups') * 10 AS device_id,
                    '+4477' || lpad((hash(copy, original."partition", 1) % 100_000_000)::VARCHAR, 8, '0') AS address,
                    replace(body::VARCHAR, sms_id::VARCHAR, (sms_id + copy * 100_000)::VARCHAR)::BLOB AS body
                )
                FROM template AS original, range(?, ?) AS copies (copy)
                WHERE kind = 'status'
                """,
                [copies_until(messages, days, day), copies_until(messages, days, day + 1)],
            )
            for partition in range(PARTITIONS):
                folder = data / "raw" / f"date={today}"
                folder.mkdir(parents=True, exist_ok=True)
                path = folder / format_file_name(PartitionLog(RAW, partition, INCARNATION), offsets[partition])
                columns = ", ".join(f'"{name}"' for name in SCHEMAS["raw"].names)
                ((rows,),) = connection.execute(
                    'SELECT count(*) FROM reports_of_day WHERE "partition" = ?', [partition]
                ).fetchall()
                connection.execute(
                    f"""
                    COPY (
                        SELECT {columns} FROM (
                            SELECT * REPLACE (
                                {offsets[partition]} + row_number() OVER (ORDER BY received_at) - 1 AS "offset",
                                received_at AS recorded_at, '{INCARNATION}' AS incarnation
                            ) FROM reports_of_day WHERE "partition" = {partition}
                        ) ORDER BY "offset"
                    ) TO {quote_sql_text(str(path))} ({_file_options(offsets[partition] + rows)})
                    """  # noqa: S608 - ours
                )
                offsets[partition] += rows
                reports += rows
    return reports


def _file_options(next_offset: int) -> str:
    """Return the options of COPY for a landed file."""
    return f"FORMAT parquet, COMPRESSION zstd, KV_METADATA {{'{NEXT_OFFSET_KEY.decode()}': '{next_offset}'}}"


def copies_until(messages: int, days: int, day: int) -> int:
    """Return the number of copies of the scenarios before a day."""
    return max(messages // SCENARIOS, days) * day // days


def fill_messages(data: Path) -> None:
    """Write `messages` from the base files: three versions per message, as a stream without lag writes them."""
    columns = ", ".join(f'"{name}"' for name in SCHEMAS["messages"].names)
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        offsets: dict[str, int] = {}
        for path in sorted(data.glob("base/date=*/[0-9]-*.parquet")):
            partition = path.stem.partition("-")[0]
            start = offsets.get(partition, 0)
            folder = data / "messages" / path.parent.name
            folder.mkdir(parents=True, exist_ok=True)
            target = folder / format_file_name(PartitionLog(MESSAGES, int(partition), INCARNATION), start)
            source = f"read_parquet({quote_sql_text(str(path))})"
            ((rows,),) = connection.execute(f"SELECT 3 * count(*) FROM {source}").fetchall()  # noqa: S608 - ours
            # No query reads the outcome of a version other than the last.
            connection.execute(
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
                        FROM {source}, range(3) AS steps (step)
                    ) ORDER BY "offset"
                ) TO {quote_sql_text(str(target))} ({_file_options(start + rows + 1)})
                """  # noqa: S608 - ours
            )
            offsets[partition] = start + rows + 1
