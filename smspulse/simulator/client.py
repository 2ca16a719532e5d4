"""The load generator: a simulation from its first scenario to its truth file.

It sends the reports of one message strictly one after another, and many messages at once.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any, BinaryIO, Final
from urllib.parse import unquote, urlsplit

import aiohttp
import orjson

from smspulse.simulator.errors import SimulationError
from smspulse.simulator.ground_truth import MessageTruth
from smspulse.simulator.scenarios import MessageScenario, SimulatedWebhook

_log = logging.getLogger(__name__)

# Maximum of concurrent requests.
_CONNECTIONS: Final = 64
# The receiver's clock has milliseconds, and must show the order of the scenario. A timer may be early by one of them.
_MIN_GAP_S: Final = 0.003
# Pauses before retries double from the first to the last.
_FIRST_BACKOFF_S: Final = 0.1
_LAST_BACKOFF_S: Final = 5.0
# Answers to a stored webhook. Ingest has a setting for it.
_STORED_STATUSES: Final = frozenset({HTTPStatus.OK, HTTPStatus.ACCEPTED})
# Answers after which the same request may succeed.
_RETRYABLE_STATUSES: Final = frozenset({429, 500, 502, 503, 504})
# Answers that every further webhook would get, too.
_FATAL_STATUSES: Final = frozenset({401, 403, 404, 405})
_LINE: Final = orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS


@dataclass(slots=True)
class SimulationTotals:
    """Counts of a simulation, updated while it runs.

    Args:
        source: The simulated gateway account.
        started_at: Milliseconds since 1970 UTC.
        finished_at: Milliseconds since 1970 UTC; 0 until it ends.
        messages: Outgoing messages with an accepted report.
        incoming: Incoming messages accepted.
        malformed: Malformed webhooks accepted.
        sent: Webhooks that were accepted or permanently refused.
        accepted: Webhooks that were answered with success.
        refused: Other answers by status code, including those before a retry.
        retried: Requests sent again after a lost answer or a temporary refusal.
        abandoned: Webhooks without a definite answer. They may have been stored.
        cut_short: Scenarios of which a part was not sent.
    """

    source: str
    started_at: int
    finished_at: int = 0
    messages: int = 0
    incoming: int = 0
    malformed: int = 0
    sent: int = 0
    accepted: int = 0
    refused: dict[int, int] = field(default_factory=dict)
    retried: int = 0
    abandoned: int = 0
    cut_short: int = 0


@dataclass(slots=True)
class Simulation:
    """The sending of scenarios to a webhook.

    Args:
        url: `http://HOST:PORT/webhooks/SOURCE/TOKEN`.
        scenarios: Read as needed; may be endless.
        rate: Scenarios started per second, evenly; above 0.
        truth: File for the truth about the accepted webhooks; `smspulse.simulator.ground_truth` has its format.
        time_scale: Factor for every delay: with 0.1, everything is ten times faster.
        max_delay_s: Maximum of a delay, after scaling.
        max_open: Maximum of concurrent scenarios; more wait for their start.
        stop: Set it to end the simulation early.
        grace_s: Seconds for started scenarios after the stop.
        deadline_s: Seconds after which a webhook without a definite answer is abandoned, with the rest of its scenario.
        timeout_s: Seconds to wait for an answer.
        on_progress: Called with the totals after every answer.
    """

    url: str
    scenarios: Iterable[MessageScenario]
    _: KW_ONLY
    rate: float
    truth: Path | None = None
    time_scale: float = 1.0
    max_delay_s: float = 60.0
    max_open: int = 20_000
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    grace_s: float = 10.0
    deadline_s: float = 120.0
    timeout_s: float = 10.0
    on_progress: Callable[[SimulationTotals], None] = lambda _: None
    _totals: SimulationTotals = field(init=False)
    _post: Callable[..., Any] = field(init=False)  # aiohttp's request context
    _file: BinaryIO = field(init=False)
    # No request is under way any more, and the lines of all scenarios are written.
    _is_done: bool = False
    _abandon_requested: asyncio.Event = field(default_factory=asyncio.Event)
    _open_tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _error: BaseException | None = None
    _is_unavailable: bool = False

    async def run(self) -> SimulationTotals:
        """Send the scenarios, and write the truth.

        Ends after all scenarios. Once `stop` is set, it starts no more scenarios, and gives the started ones `grace_s`
        to end. A cancelled simulation does the same before it raises `CancelledError`. Cancelled again, it ends at once
        without a truth. It never interrupts a request, so it can take `timeout_s` more.

        Raises:
            SimulationError: The URL is not a webhook of smspulse, or it answers 401, 403, 404 or 405.
            OSError: The truth file cannot be written.
        """
        self._totals = SimulationTotals(_parse_source_name(self.url), _now_ms())
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self.timeout_s, sock_read=self.timeout_s)
        # It is moved to its path when it is complete, so that no reader sees a part of it.
        part = self.truth.with_name(f"{self.truth.name}.part") if self.truth else Path(os.devnull)
        with part.open("wb") as self._file:
            connector = aiohttp.TCPConnector(limit=_CONNECTIONS)
            async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
                self._post = partial(session.post, self.url, allow_redirects=False)
                try:
                    await self._send_scenarios()
                finally:
                    self._totals.finished_at = _now_ms()
                    if self.truth and self._is_done:
                        self._file.write(orjson.dumps({"totals": self._totals}, option=_LINE))
                        self._file.flush()
                        os.fsync(self._file.fileno())
                        part.replace(self.truth)
                    elif self.truth:
                        part.unlink()
        return self._totals

    async def _send_scenarios(self) -> None:
        slots = asyncio.Semaphore(self.max_open)

        async def abandon_after_stop() -> None:
            await self.stop.wait()
            # Without it, a stop would wait for the end of a scenario.
            slots.release()
            await asyncio.sleep(self.grace_s)
            self._abandon_requested.set()

        stopping = asyncio.create_task(abandon_after_stop())
        try:
            await self._start_scenarios(slots)
            await self._finish_scenarios()
        except asyncio.CancelledError:
            self.stop.set()
            await self._finish_scenarios()
            raise
        finally:
            # Scenarios are left only after a second cancellation.
            for task in (stopping, *self._open_tasks):
                task.cancel()
        if self._error:
            raise self._error

    async def _start_scenarios(self, slots: asyncio.Semaphore) -> None:
        loop = asyncio.get_running_loop()

        def on_scenario_ended(task: asyncio.Task[None]) -> None:
            self._open_tasks.discard(task)
            slots.release()
            if not task.cancelled() and task.exception():
                self._error = self._error or task.exception()
                self.stop.set()

        due = loop.time()
        for scenario in self.scenarios:
            await slots.acquire()
            if await _is_set_within(self.stop, due - loop.time()):
                return
            task = loop.create_task(self._send_scenario(scenario))
            self._open_tasks.add(task)
            task.add_done_callback(on_scenario_ended)
            # After a pause, catch up on one second at most.
            due = max(due + 1 / self.rate, loop.time() - 1)

    async def _finish_scenarios(self) -> None:
        if self._open_tasks:
            await asyncio.wait(self._open_tasks)
        self._is_done = True

    async def _send_scenario(self, scenario: MessageScenario) -> None:
        ingest_ids: list[str] = []
        perhaps: MessageTruth | bool = False
        try:
            for number, webhook in enumerate(scenario.webhooks):
                delay_s = min(webhook.delay_s * self.time_scale, self.max_delay_s)
                if await _is_set_within(self._abandon_requested, max(delay_s, _MIN_GAP_S) if number else delay_s):
                    return
                ingest_id = await self._send_webhook(webhook)
                if not ingest_id:
                    # A webhook without an answer may have arrived all the same.
                    perhaps = ingest_id is None and (webhook.truth or True)
                    return
                ingest_ids.append(ingest_id)
                if number == 0:
                    counted = "messages" if scenario.kind == "outgoing" else scenario.kind
                    setattr(self._totals, counted, getattr(self._totals, counted) + 1)
        finally:
            self._totals.cut_short += len(ingest_ids) < len(scenario.webhooks)
            if ingest_ids or perhaps:
                line = {"kind": scenario.kind, "source": self._totals.source, **_build_facts(scenario, len(ingest_ids))}
                line |= {"ingest_ids": ingest_ids} | ({"perhaps": perhaps} if perhaps else {})
                self._file.write(orjson.dumps(line, option=_LINE))

    async def _send_webhook(self, webhook: SimulatedWebhook) -> str | None:
        """Send until there is a definite answer; return the ingest id, empty if it is refused. None: no answer."""
        totals, loop = self._totals, asyncio.get_running_loop()
        deadline = loop.time() + self.deadline_s
        backoff_s = _FIRST_BACKOFF_S
        headers = {"Content-Type": webhook.content_type}
        while True:
            wait_s, ingest_id = backoff_s, ""
            try:
                async with self._post(data=webhook.body, headers=headers) as response:
                    body, status = await response.read(), response.status
                    if status in _STORED_STATUSES:
                        ingest_id = str(orjson.loads(body)["ingest_id"])
            except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError) as error:
                # The connection failed, or the answer was cut off.
                self._log_unavailable(type(error).__name__)
            else:
                if status in _STORED_STATUSES:
                    self._is_unavailable = False
                    totals.accepted += 1
                else:
                    totals.refused[status] = totals.refused.get(status, 0) + 1
                if status not in _RETRYABLE_STATUSES:
                    totals.sent += 1
                    self.on_progress(totals)
                    if status in _FATAL_STATUSES:
                        msg = f"the webhook answered {status} {response.reason}: check source and token in its URL"
                        raise SimulationError(msg)
                    return ingest_id
                self._log_unavailable(f"{status} {response.reason}")
                # The header may be missing, or a date instead of seconds.
                with suppress(KeyError, ValueError):
                    wait_s = max(0.0, float(response.headers["Retry-After"]))
            self.on_progress(totals)
            if loop.time() + wait_s > deadline or await _is_set_within(self._abandon_requested, wait_s):
                totals.abandoned += 1
                return None
            totals.retried += 1
            backoff_s = min(backoff_s * 2, _LAST_BACKOFF_S)

    def _log_unavailable(self, what: str) -> None:
        if not self._is_unavailable:
            _log.warning("webhooks of %s are not accepted (%s): sending them again", self._totals.source, what)
        self._is_unavailable = True


def _parse_source_name(url: str) -> str:
    parts = urlsplit(url)
    match parts.path.strip("/").split("/"):
        case [*_, "webhooks", source, _] if source and parts.scheme in {"http", "https"} and parts.hostname:
            return unquote(source)
    msg = "the URL is not a webhook of smspulse: use http://HOST:PORT/webhooks/SOURCE/TOKEN"
    raise SimulationError(msg)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _build_facts(scenario: MessageScenario, accepted: int) -> dict[str, Any]:
    """Return the facts of a scenario for the truth file, after a number of accepted webhooks."""
    role = scenario.webhooks[0].role
    match scenario.kind:
        case "outgoing":
            truth = scenario.webhooks[accepted - 1].truth if accepted else None
            facts = {name: getattr(truth, name, None) for name in MessageTruth.__slots__}
            return {"sms_id": scenario.sms_id, **facts, "reports": accepted}
        case "incoming":
            return {"sms_id": scenario.sms_id, "message_type": role}
        case "malformed":
            return {"flaw": role}


async def _is_set_within(event: asyncio.Event, seconds: float) -> bool:
    with suppress(TimeoutError):
        async with asyncio.timeout(max(0.0, seconds)):
            await event.wait()
    return event.is_set()
