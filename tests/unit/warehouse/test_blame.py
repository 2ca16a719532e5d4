"""The phone, the SIM card or the network: right and false verdicts on simulated faults of each kind."""

from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest

PHONES, CARDS, NETWORKS = 12, 2, 6
FLEETS = 200
USUAL, FAULTY = 0.05, 0.3
# Attempts that what fails has ended.
ATTEMPTS = 200


def simulate_fleets(kind: str, seed: int) -> pa.Table:
    """Return routes of many fleets, a source each, with a fault of phone 0, of its card 0, of network 0, or none."""
    generator = np.random.default_rng(seed)
    phone, card, network = (axis.ravel() for axis in np.indices((PHONES, CARDS, NETWORKS)))
    is_faulty = {
        "phone": phone == 0,
        "SIM card": (phone == 0) & (card == 0),
        "network": network == 0,
        "none": np.zeros(phone.size, dtype=bool),
    }[kind]
    tables = []
    for fleet in range(FLEETS):
        # Networks of different size, phones of different use; what fails has ended that many attempts.
        weights = generator.dirichlet(np.full(phone.size, 3.0))
        expected = weights / weights[is_faulty].sum() * ATTEMPTS if is_faulty.any() else weights * 3_000
        ended = generator.poisson(expected)
        failed = generator.binomial(ended, np.where(is_faulty, FAULTY, USUAL))
        tables.append(
            pa.table({
                "source": [f"fleet {fleet}"] * phone.size, "device_id": phone, "channel_id": card,
                "country": ["DE"] * phone.size, "network_prefix": [f"49{each}" for each in network],
                "carrier": [f"carrier {each}" for each in network], "delivered": ended - failed, "failed": failed,
                "faulty": is_faulty,
            })
        )  # fmt: skip
    return pa.concat_tables(tables)


def judge(warehouse: duckdb.DuckDBPyConnection, routes: pa.Table) -> dict[str, tuple[set[Any], set[Any]]]:
    """Return, by fleet, the verdicts on the routes that fail, and those on the others."""
    warehouse.register("simulated_routes", routes)
    rows = warehouse.execute("""
        SELECT source, faulty, list(DISTINCT coalesce(cause, 'nothing'))
        FROM blame_routes('simulated_routes')
        INNER JOIN (
            SELECT source, device_id, channel_id, network_prefix, faulty FROM simulated_routes
        ) USING (source, device_id, channel_id, network_prefix)
        GROUP BY source, faulty
    """).fetchall()
    found: dict[str, tuple[set[Any], set[Any]]] = {}
    for source, faulty, causes in rows:
        found.setdefault(source, (set(), set()))[0 if faulty else 1].update(causes)
    return found


@pytest.mark.parametrize("kind", ["phone", "SIM card", "network"])
def test_what_fails_is_blamed_and_nothing_else(warehouse: duckdb.DuckDBPyConnection, kind: str) -> None:
    verdicts = judge(warehouse, simulate_fleets(kind, 3)).values()
    assert sum(of_faulty == {kind} for of_faulty, _ in verdicts) >= 0.95 * FLEETS
    assert sum(of_others != {"nothing"} for _, of_others in verdicts) <= 0.05 * FLEETS


def test_in_healthy_fleets_nothing_is_blamed(warehouse: duckdb.DuckDBPyConnection) -> None:
    verdicts = judge(warehouse, simulate_fleets("none", 5)).values()
    assert sum(of_others != {"nothing"} for _, of_others in verdicts) <= 0.05 * FLEETS
