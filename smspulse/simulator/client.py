"""The load generator: a simulation from its first scenario to its truth file."""

import asyncio
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlsplit

import aiohttp

from smspulse.simulator.ground_truth import TruthFile
from smspulse.simulator.scenario_sender import ScenarioSender, SimulationError, SimulationTotals
from smspulse.simulator.scenario_writer import MessageScenario


async def run_simulation(
    url: str,
    scenarios: Iterable[MessageScenario],
    *,
    rate: float,
    truth: Path | None = None,
    time_scale: float = 1.0,
    max_delay_s: float = 60.0,
    connections: int = 64,
    max_open: int = 20_000,
    stop: asyncio.Event | None = None,
    stop_after: float | None = None,
    grace_s: float = 10.0,
    deadline_s: float = 120.0,
    timeout_s: float = 10.0,
    on_progress: Callable[[SimulationTotals], None] | None = None,
) -> SimulationTotals:
    """Send scenarios to a webhook, and write the truth about the accepted ones.

    Ends after all scenarios. Once `stop` is set or `stop_after` has passed, it starts no more scenarios, and gives the
    started ones `grace_s` to end. A cancelled simulation does the same before it raises `CancelledError`. Cancelled
    again, it ends at once without a truth. It never interrupts a request, so it can take `timeout_s` more.

    Args:
        url: `http://HOST:PORT/webhooks/SOURCE/TOKEN`.
        scenarios: Read as needed; may be endless.
        rate: Scenarios started per second, evenly.
        truth: File to write; `smspulse.simulator.ground_truth` has its format.
        time_scale: Factor for every delay: with 0.1, everything is ten times faster.
        max_delay_s: Maximum of a delay, after scaling.
        connections: Maximum of concurrent requests.
        max_open: Maximum of concurrent scenarios; more wait for their start.
        stop: Set it to end the simulation early.
        stop_after: Seconds until no more scenarios are started.
        grace_s: Seconds for started scenarios after the stop.
        deadline_s: Seconds after which a webhook without a definite answer is abandoned, with the rest of its scenario.
        timeout_s: Seconds to wait for an answer.
        on_progress: Called with the totals after every answer.

    Raises:
        SimulationError: The URL is not a webhook of smspulse, or it answers 401, 403, 404 or 405.
        OSError: The truth file cannot be written.
    """
    if not rate > 0:
        msg = f"rate is {rate}: use a number of scenarios per second above 0"
        raise SimulationError(msg)
    totals = SimulationTotals(parse_source_name(url), _now_ms())
    stop = stop or asyncio.Event()
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=timeout_s, sock_read=timeout_s)
    connector = aiohttp.TCPConnector(limit=connections)
    with TruthFile(truth) if truth else nullcontext() as file:
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            post = partial(session.post, url, allow_redirects=False)
            sender = ScenarioSender(post, totals, file, stop, time_scale, max_delay_s, deadline_s, on_progress)
            if stop_after is not None:
                timer = asyncio.get_running_loop().call_later(stop_after, stop.set)
            try:
                await sender.run(scenarios, rate, max_open, grace_s)
            finally:
                if stop_after is not None:
                    timer.cancel()
                totals.finished_at = _now_ms()
                if file and sender.is_done:
                    file.complete(asdict(totals))
    return totals


def parse_source_name(url: str) -> str:
    """Return the source in the URL of a webhook.

    Raises:
        SimulationError: It is not such a URL.
    """
    parts = urlsplit(url)
    match parts.path.strip("/").split("/"):
        case [*_, "webhooks", source, _] if source and parts.scheme in {"http", "https"} and parts.hostname:
            return unquote(source)
    msg = "the URL is not a webhook of smspulse: use http://HOST:PORT/webhooks/SOURCE/TOKEN"
    raise SimulationError(msg)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
