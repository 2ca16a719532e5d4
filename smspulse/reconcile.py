"""The suite `reconciliation`: what ingest has answered 2xx is landed or in the spool, by source and hour."""

from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from expectations.check import Measured
from expectations.settings import CheckSettings
from expectations.suites import Check
from ingest.accepted import ID_BYTES, accepted_ids
from ingest.spool import spooled_ids
from warehouse.read import open_warehouse, retried
from warehouse.views import covered

_SQL = """
    WITH raw AS (
        SELECT DISTINCT source, date_trunc('hour', received_at) AS hour, unhex(replace(ingest_id, '-', '')) AS id
        FROM raw_webhooks
        WHERE received_at >= $since AND regexp_full_match(ingest_id, '[-0-9a-f]{36}')
    ),

    hours AS (
        SELECT source, hour, count(*) AS accepted FROM accepted GROUP BY source, hour
    ),

    missing AS (
        SELECT * FROM accepted
        ANTI JOIN raw USING (id)
        ANTI JOIN spooled USING (id)
        -- An id tells when it was given; what is newer may be on its way.
        WHERE ('0x' || hex(id[1:6]))::BIGINT < epoch_ms($until)
    ),

    extra AS (
        SELECT source, hour, count(*) AS extra
        FROM raw
        SEMI JOIN hours USING (source, hour)
        ANTI JOIN accepted USING (id)
        GROUP BY source, hour
    )

    SELECT
        source || ' ' || strftime(hour, '%Y-%m-%d %H:00') AS scope,
        count(missing.id) AS reconciliation_accepted_landed,
        coalesce(any_value(extra), 0) / any_value(accepted) AS reconciliation_landed_accepted,
        list(lower(hex(missing.id)) ORDER BY missing.id) FILTER (missing.id IS NOT NULL) AS ids
    FROM hours
    LEFT JOIN missing USING (source, hour)
    LEFT JOIN extra USING (source, hour)
    GROUP BY source, hour
    ORDER BY hour, source
"""


def checks(settings: CheckSettings) -> tuple[Check, ...]:
    """Return the checks of the suite."""
    return (
        Check(
            "reconciliation_accepted_landed", "reconciliation", "critical",
            "Webhooks were answered 2xx and are neither in the warehouse nor in ingest's spool.",
            "See whether `smspulse land` runs: what Kafka still has is landed late. If it does, look for a lost file.",
        ),
        Check(
            "reconciliation_landed_accepted", "reconciliation", "warning",
            "Webhooks were landed that this ingest has not answered 2xx: it was killed, or others write to sms.raw.",
            "See what ingest logs, and whether another ingest with a data folder of its own takes this source.",
            unit="share", most=settings.max_unanswered_share,
        ),
    )  # fmt: skip


def measure(data: Path, settings: CheckSettings, now: datetime, since: datetime | None = None) -> Measured:
    """Compare ingest's record of what it answered with what was landed, from `since` on, or of the recent hours.

    Raises:
        SpoolError: The spool cannot be read.
        NoWarehouseError: Nothing was published in the folder.
    """
    since = (since or now - timedelta(hours=settings.recent_h)).replace(minute=0, second=0, microsecond=0)
    if base := covered(data.resolve()):
        since = max(since, datetime.combine(base.floor, time(), UTC))  # before it, raw was dropped for its age
    parts = []
    for source, hour, found in accepted_ids(data, since):
        count = len(found) // ID_BYTES
        ids = pa.FixedSizeBinaryArray.from_buffers(pa.binary(ID_BYTES), count, [None, pa.py_buffer(found)])
        columns: list[Any] = [
            pa.repeat(source, count),
            pa.repeat(pa.scalar(hour, pa.timestamp("ms", tz="UTC")), count),
            ids,
        ]
        parts.append(pa.table(columns, names=["source", "hour", "id"]))
    fields: list[Any] = [("source", pa.string()), ("hour", pa.timestamp("ms", tz="UTC")), ("id", pa.binary(ID_BYTES))]
    waiting = pa.array([bytes.fromhex(each.replace("-", "")) for each in spooled_ids(data)], pa.binary(ID_BYTES))
    with open_warehouse(data) as connection:
        connection.register("accepted", pa.concat_tables([pa.schema(fields).empty_table(), *parts]))
        connection.register("spooled", pa.table([waiting], names=["id"]))
        until = now - timedelta(seconds=settings.max_waiting_s)
        frame = retried(lambda: connection.execute(_SQL, {"since": since, "until": until}).df())
    rows = [str(each) for ids in frame.pop("ids").dropna() for each in ids[:5]][:5]
    return Measured("reconciliation", checks(settings), frame, rows={"reconciliation_accepted_landed": rows})
