"""The views of the moment; their rows are compared with what a hand counts."""

import time
from pathlib import Path

import pytest
from landing import land_records
from warehouse_records import NOON, version

from warehouse.reader import query

HOUR = 3600


@pytest.fixture
def data(published: Path) -> Path:
    """Messages an hour, five hours and two days old, of two sources."""
    ago = time.time() - NOON / 1000
    steps = {"network_s": 4.0, "total_s": 8.0}
    land_records(
        published,
        0,
        [
            version(0, 1, "delivered", seconds=ago - 60, **steps),
            version(1, 2, "not_sent", seconds=ago - 60, failure_class="generic"),
            version(2, 3, "sent", seconds=ago - 5 * HOUR, device_id=2),
            version(3, 4, "delivered", seconds=ago - 5 * HOUR, source="beta", network_s=8.0, total_s=8.0),
            version(4, 5, "delivered", seconds=ago - 48 * HOUR, **steps),
            version(5, 6, "incoming", seconds=ago - 60),
        ],
    )
    return published


def test_delivery_now_counts_by_span_and_source(data: Path) -> None:
    rows = query(data, "SELECT hours, source, attempted, ended, delivered FROM delivery_now ORDER BY ALL NULLS FIRST")
    assert rows.astype(object).where(rows.notna(), None).values.tolist() == [
        [1, None, 2, 2, 1],
        [1, "acme", 2, 2, 1],
        [24, None, 4, 3, 2],
        [24, "acme", 3, 2, 1],
        [24, "beta", 1, 1, 1],
    ]


def test_devices_and_minutes_and_latency_are_of_a_day(data: Path) -> None:
    devices = query(data, "SELECT source, device_id, attempted, top_failure FROM devices_now ORDER BY ALL")
    assert devices["attempted"].tolist() == [2, 1, 1]
    assert devices["top_failure"].tolist()[0] == "generic"
    minutes = query(data, "SELECT outcome, sum(messages)::INT AS n FROM outcomes_by_minute GROUP BY ALL ORDER BY ALL")
    assert minutes.values.tolist() == [["delivered", 2], ["not_sent", 1]]
    latency = query(data, "SELECT step, messages, p50_s FROM latency_now WHERE source IS NULL ORDER BY step")
    assert latency.values.tolist() == [["network", 2, 6.0], ["total", 2, 8.0]]
