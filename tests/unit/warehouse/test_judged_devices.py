"""Which devices are called failing: exact probabilities, intervals, and the false discovery rate of whole fleets."""

import math
from collections.abc import Sequence
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest


def evaluate(warehouse: duckdb.DuckDBPyConnection, expression: str) -> Any:
    return warehouse.execute(f"SELECT {expression}").fetchall()[0][0]


@pytest.mark.parametrize(
    ("failed", "ended", "others_failed", "others_ended"),
    # The lady tasting tea (R. A. Fisher, 1935), then counts of phones.
    [(3, 4, 1, 4), (4, 4, 0, 4), (5, 10, 3, 90), (40, 200, 300, 10_000), (1, 1, 0, 99)],
)
def test_the_chance_of_failures_is_that_of_the_hypergeometric_distribution(
    warehouse: duckdb.DuckDBPyConnection, failed: int, ended: int, others_failed: int, others_ended: int
) -> None:
    total, failures = ended + others_ended, failed + others_failed
    exact = sum(
        math.comb(ended, k) * math.comb(others_ended, failures - k) for k in range(failed, min(ended, failures) + 1)
    ) / math.comb(total, failures)
    found = evaluate(warehouse, f"chance_of_failures({failed}, {ended}, {others_failed}, {others_ended})")
    assert found == pytest.approx(exact, rel=1e-6)


def test_a_device_that_fails_no_more_often_than_others_has_a_chance_of_1(warehouse: duckdb.DuckDBPyConnection) -> None:
    assert evaluate(warehouse, "chance_of_failures(1, 10, 10, 100)") == 1
    assert evaluate(warehouse, "chance_of_failures(0, 10, 0, 100)") == 1


def test_without_a_group_or_others_there_is_no_chance(warehouse: duckdb.DuckDBPyConnection) -> None:
    assert evaluate(warehouse, "chance_of_failures(0, 0, 1, 10)") is None
    assert evaluate(warehouse, "chance_of_failures(1, 10, 0, 0)") is None


def test_the_interval_of_a_difference_is_newcombes(warehouse: duckdb.DuckDBPyConnection) -> None:
    # R. G. Newcombe, Statistics in Medicine 17 (1998), 873-890, table II, method 10, rows (a) and (d).
    assert evaluate(warehouse, "difference_low(56, 70, 48, 80)") == pytest.approx(0.0524, abs=5e-5)
    assert evaluate(warehouse, "difference_high(56, 70, 48, 80)") == pytest.approx(0.3339, abs=5e-5)
    assert evaluate(warehouse, "difference_low(5, 56, 0, 29)") == pytest.approx(-0.0381, abs=5e-5)
    assert evaluate(warehouse, "difference_high(5, 56, 0, 29)") == pytest.approx(0.1926, abs=5e-5)
    assert evaluate(warehouse, "difference_low(0, 0, 1, 2)") is None


def judge(warehouse: duckdb.DuckDBPyConnection, fleets: Sequence[Any]) -> dict[str, set[int]]:
    """Return the devices that are called failing, by source."""
    rows = pa.table({
        "source": [f"fleet {number}" for number, (ended, _) in enumerate(fleets) for _ in ended],
        "device_id": [device for ended, _ in fleets for device in range(len(ended))],
        "ended": [int(count) for ended, _ in fleets for count in ended],
        "delivered": [int(n - k) for ended, failed in fleets for n, k in zip(ended, failed, strict=True)],
    })  # fmt: skip
    warehouse.register("judged_rows", rows)
    found: dict[str, set[int]] = {f"fleet {number}": set() for number in range(len(fleets))}
    for source, device in warehouse.execute(
        "SELECT source, device_id FROM judge_devices('judged_rows') WHERE is_failing"
    ).fetchall():
        found[source].add(device)
    return found


@pytest.mark.parametrize("devices", [5, 40, 1_000])
def test_of_healthy_fleets_at_most_one_in_twenty_has_a_device_called_failing(
    warehouse: duckdb.DuckDBPyConnection, devices: int
) -> None:
    generator = np.random.default_rng(devices)
    fleets = []
    for _ in range(200 if devices < 1_000 else 20):
        ended = generator.integers(1, 400, devices)
        fleets.append((ended, generator.binomial(ended, 0.05)))
    wrong = sum(map(bool, judge(warehouse, fleets).values()))
    # One in twenty, and three standard errors.
    expected = 0.05 * len(fleets)
    assert wrong <= expected + 3 * math.sqrt(expected)


def test_of_the_devices_called_failing_at_most_one_in_twenty_is_well(warehouse: duckdb.DuckDBPyConnection) -> None:
    generator = np.random.default_rng(7)
    fleets = []
    for _ in range(50):
        ended = generator.integers(50, 400, 200)
        # The first twenty fail.
        rates = np.where(np.arange(200) < 20, 0.25, 0.05)
        fleets.append((ended, generator.binomial(ended, rates)))
    found = judge(warehouse, fleets).values()
    called = sum(map(len, found))
    wrong = sum(device >= 20 for devices in found for device in devices)
    assert called >= 0.95 * 20 * len(fleets)
    assert wrong <= 0.05 * called
