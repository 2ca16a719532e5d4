"""`smspulse up --demo`: simulated traffic, its delivery rates on the terminal, and its reconciliation."""

import asyncio
import contextlib
import itertools
import secrets
import time
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ingest.settings import IngestSettings
from smspulse.simulator.options import DEMO_BEHAVIOUR, DEMO_LONGEST_DELAY_S, DEMO_RATE, DEMO_TIME_SCALE

# Sources of the simulated phones, and of webhooks that a person sends by hand.
DEMO_SOURCE: Final = "demo"
OWN_SOURCE: Final = "mine"
# Time for started scenarios to end. Longer than their longest delay.
_DEMO_GRACE_S: Final = 13.0
# Time for their last webhooks to land, before the reconciliation.
_DEMO_LANDING_S: Final = 5.0
# The rates on the terminal are as old at most.
_REFRESH_S: Final = 2.0
# The reconciliation waits so long for stream and lander.
_SETTLE_S: Final = 45.0
_RATE_COLUMNS: Final = (
    *("device", "messages", "ended"),
    *("delivered / attempted", "delivered / ended", "open share", "network p50"),
)
_RATES_SQL: Final = """
    SELECT coalesce(device_id::VARCHAR, 'all') AS device, format('{:,}', count(*)) AS attempted,
           format('{:,}', count(*) FILTER (is_ended)) AS ended,
           format('{:.1f} %', 100 * avg((outcome = 'delivered')::INTEGER)) AS of_attempted,
           coalesce(format('{:.1f} %', 100 * avg((outcome = 'delivered')::INTEGER) FILTER (is_ended)), '') AS of_ended,
           format('{:.1f} %', 100 * avg((NOT is_ended)::INTEGER)) AS still_open,
           coalesce(format('{:.1f} s', median(network_s)), '') AS network
    FROM messages WHERE source = ? AND outcome <> 'incoming'
    GROUP BY ROLLUP (device_id) HAVING count(*) > 0 AND (grouping(device_id) = 1 OR device_id IS NOT NULL)
    ORDER BY grouping(device_id), messages.device_id
"""


def _prepare_demo_source(data: Path, name: str) -> tuple[str, str]:
    """Return the name and the token of one of the demo's sources. Creates the source at its first use.

    A source of that name that the demo did not create is not changed. The demo's own source then gets a number at the
    end of its name. Its token is stored in clear in the data folder.
    """
    from ingest.errors import SourceExistsError  # noqa: PLC0415 - as below
    from ingest.sources import SourceRegistry, add_source  # noqa: PLC0415 - aiohttp

    # A token in the folder may be of an earlier demo, or revoked since.
    sources = SourceRegistry(data, IngestSettings().sources.get_secret_value())
    for candidate in itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2))):
        path = data / f"{candidate}.token"
        token = path.read_text(encoding="utf-8") if path.exists() else ""
        if sources.accepts_token(candidate, token):
            return candidate, token
        if candidate in sources.table:
            continue
        # Another process may have added it just now.
        with contextlib.suppress(SourceExistsError):
            token = add_source(data, candidate)
            path.touch(mode=0o600)
            path.write_text(token, encoding="utf-8")
            return candidate, token
    raise AssertionError


async def run_demo(data: Path, seconds: float | None, console: Console, url: str, stop: asyncio.Event) -> int:
    """Simulate traffic and show its delivery rates until `stop` or the end of the time; then reconcile it."""
    from ingest.sources import webhook_url  # noqa: PLC0415 - aiohttp

    source, token = await asyncio.to_thread(_prepare_demo_source, data, DEMO_SOURCE)
    webhook = webhook_url(url, source, token)
    by_hand = webhook_url(url, *await asyncio.to_thread(_prepare_demo_source, data, OWN_SOURCE))
    console.print(f"simulated phones report to {url}; send webhooks of your own, or let your gateway, to\n  {by_hand}")
    truth = data / "demo-truth.jsonl"
    traffic = asyncio.create_task(_simulate_traffic(webhook, truth, seconds))
    stopped = asyncio.create_task(stop.wait())
    with Live(console=console, auto_refresh=False) if console.is_terminal else contextlib.nullcontext() as live:
        shown = ""
        while not traffic.done():
            await asyncio.wait([traffic, stopped], timeout=_REFRESH_S, return_when=asyncio.FIRST_COMPLETED)
            if stop.is_set():
                # One cancellation would let it finish the scenarios that it has started.
                for _ in range(2):
                    traffic.cancel()
                    await asyncio.sleep(0.05)
                return 0
            table, line = await asyncio.to_thread(_read_delivery_rates, data, source)
            if live is not None:
                live.update(table, refresh=True)
            elif line != shown:
                console.print(line, highlight=False)
            shown = line
    traffic.result()
    return await _reconcile_demo(data, truth, console, stop)


async def _simulate_traffic(url: str, truth: Path, seconds: float | None) -> None:
    from smspulse.simulator.client import Simulation  # noqa: PLC0415 - aiohttp
    from smspulse.simulator.scenarios import generate_scenarios  # noqa: PLC0415 - heavy

    # Each run has its own ids: messages of two runs under one id would differ from their truth.
    seed = secrets.randbelow(1 << 20)
    stop = asyncio.Event()
    if seconds is not None:
        asyncio.get_running_loop().call_later(max(seconds - _DEMO_GRACE_S - _DEMO_LANDING_S, 1), stop.set)
    await Simulation(
        url,
        generate_scenarios(seed, None, DEMO_BEHAVIOUR),
        rate=DEMO_RATE,
        truth=truth,
        time_scale=DEMO_TIME_SCALE,
        max_delay_s=DEMO_LONGEST_DELAY_S,
        stop=stop,
        grace_s=_DEMO_GRACE_S,
    ).run()


def _read_delivery_rates(data: Path, source: str) -> tuple[Table, str]:
    """Return the delivery rates of the demo's source by device, as a table and as one line."""
    import duckdb  # noqa: PLC0415 - heavy

    from warehouse.errors import NoWarehouseError  # noqa: PLC0415 - heavy
    from warehouse.reader import query  # noqa: PLC0415 - heavy

    table = Table(title="smspulse: delivery rates by device, read by SQL", title_justify="left")
    for name in _RATE_COLUMNS:
        table.add_column(name, justify="right")
    line = ""
    # Until something has landed there are none. A lasting error shows when the run is reconciled.
    with contextlib.suppress(NoWarehouseError, duckdb.Error):
        for row in query(data, _RATES_SQL, [source]).itertuples(index=False):
            table.add_row(*row)
            delivered = f"delivered: {row.of_attempted} of attempted, {row.of_ended} of ended"
            # The last row is that of all devices.
            line = f"{row.attempted} messages; {delivered}; open: {row.still_open}"
    return table, line


async def _reconcile_demo(data: Path, truth: Path, console: Console, stop: asyncio.Event) -> int:
    """Wait until all accepted webhooks have landed, and compare them with the truth; return the exit code."""
    from smspulse.simulator.ground_truth import compare_with_truth  # noqa: PLC0415 - heavy

    # Stream and lander may be some seconds behind ingest.
    deadline = time.monotonic() + _SETTLE_S
    while True:
        comparison = await asyncio.to_thread(compare_with_truth, data, truth)
        if comparison.is_reconciled or stop.is_set() or time.monotonic() > deadline:
            break
        await asyncio.sleep(1)
    for problem in comparison.list_problems():
        console.print(Text(problem, style="red"))
    console.print(Text(comparison.format_result(), style="bold green" if comparison.is_reconciled else "bold red"))
    return 0 if comparison.is_reconciled else 1
