"""Sends scenarios over HTTP: the reports of one message strictly one after another, many messages at once."""

import asyncio
import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from http import HTTPStatus
from typing import Any, Final

import aiohttp
import orjson

from core.errors import SmspulseError
from smspulse.simulator.ground_truth import TruthFile, build_message_facts
from smspulse.simulator.scenario_writer import MessageScenario, SimulatedWebhook

_log = logging.getLogger(__name__)

# The receiver's clock has milliseconds, and must show the order of the scenario. A timer may be early by one of them.
_MIN_GAP_S: Final = 0.003
# Pauses before retries double from the first to the last.
_FIRST_BACKOFF_S: Final = 0.1
_LAST_BACKOFF_S: Final = 5.0
# Answers to a stored webhook. Ingest has a setting for it.
_STORED_STATUSES: Final = frozenset({HTTPStatus.OK, HTTPStatus.ACCEPTED})
# Answers after which the same request may succeed.
_RETRYABLE_STATUSES: Final = frozenset(
    {
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.INTERNAL_SERVER_ERROR,
        HTTPStatus.BAD_GATEWAY,
        HTTPStatus.SERVICE_UNAVAILABLE,
        HTTPStatus.GATEWAY_TIMEOUT,
    }
)
# Answers that every further webhook would get, too.
_FATAL_STATUSES: Final = frozenset(
    {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED}
)


class SimulationError(SmspulseError):
    """The simulation could not go on. The truth file has the webhooks accepted until then."""


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


class _NoAnswerError(Exception):
    """A webhook was abandoned. It may have arrived."""


class _RefusedError(Exception):
    """A webhook was permanently refused."""


@dataclass(slots=True)
class ScenarioSender:
    """Sends the scenarios of one simulation.

    Attributes:
        is_done: No request is under way any more, and the lines of all scenarios are written.
    """

    post: Callable[..., Any]  # aiohttp's request context
    totals: SimulationTotals
    file: TruthFile | None
    stop: asyncio.Event
    time_scale: float
    max_delay_s: float
    deadline_s: float
    on_progress: Callable[[SimulationTotals], None] | None
    is_done: bool = False
    _abandon_requested: asyncio.Event = field(default_factory=asyncio.Event)
    _open_tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _error: BaseException | None = None
    _is_unavailable: bool = False

    async def run(self, scenarios: Iterable[MessageScenario], rate: float, max_open: int, grace_s: float) -> None:
        """Send the scenarios; see `smspulse.simulator.client.run_simulation`."""
        try:
            await self._start_scenarios(scenarios, rate, max_open)
            await self._finish_scenarios(grace_s)
        except asyncio.CancelledError:
            self.stop.set()
            await self._finish_scenarios(grace_s)
            raise
        finally:
            # Tasks are left only after a second cancellation.
            for task in self._open_tasks:
                task.cancel()
        if self._error:
            raise self._error

    async def _start_scenarios(self, scenarios: Iterable[MessageScenario], rate: float, max_open: int) -> None:
        loop = asyncio.get_running_loop()
        slots = asyncio.Semaphore(max_open)

        def on_scenario_ended(task: asyncio.Task[None]) -> None:
            self._open_tasks.discard(task)
            slots.release()
            if not task.cancelled() and task.exception():
                self._error = self._error or task.exception()
                self.stop.set()

        stopped = loop.create_task(self.stop.wait())
        # Without it, a stop would wait for the end of a scenario.
        stopped.add_done_callback(lambda _: slots.release())
        try:
            due = loop.time()
            for scenario in scenarios:
                await slots.acquire()
                if await _is_set_within(self.stop, due - loop.time()):
                    return
                task = loop.create_task(self._send_scenario(scenario))
                self._open_tasks.add(task)
                task.add_done_callback(on_scenario_ended)
                # After a pause, catch up on one second at most.
                due = max(due + 1 / rate, loop.time() - 1)
        finally:
            stopped.cancel()

    async def _finish_scenarios(self, grace_s: float) -> None:
        if self._open_tasks:
            all_sent = asyncio.ensure_future(asyncio.wait(self._open_tasks))
            stopped = asyncio.ensure_future(self.stop.wait())
            try:
                await asyncio.wait({all_sent, stopped}, return_when=asyncio.FIRST_COMPLETED)
                await asyncio.wait({all_sent}, timeout=grace_s)
                self._abandon_requested.set()
                await all_sent
            finally:
                all_sent.cancel()
                stopped.cancel()
        self.is_done = True

    async def _send_scenario(self, scenario: MessageScenario) -> None:
        ingest_ids: list[str] = []
        perhaps: Any = None
        try:
            for number, webhook in enumerate(scenario.webhooks):
                delay_s = min(webhook.delay_s * self.time_scale, self.max_delay_s)
                if not await self._wait_unless_abandoned(max(delay_s, _MIN_GAP_S) if number else delay_s):
                    return
                try:
                    ingest_ids.append(await self._send_webhook(webhook))
                except _NoAnswerError:
                    # It may have arrived all the same.
                    perhaps = asdict(webhook.truth) if webhook.truth else True
                    return
                except _RefusedError:
                    return
                if number == 0:
                    self._count_scenario(scenario)
        finally:
            self.totals.cut_short += len(ingest_ids) < len(scenario.webhooks)
            if self.file and (ingest_ids or perhaps):
                self.file.write_line(
                    scenario.kind, self.totals.source, _build_line_facts(scenario, len(ingest_ids)), ingest_ids, perhaps
                )

    async def _send_webhook(self, webhook: SimulatedWebhook) -> str:
        """Send until there is a definite answer; return the ingest id."""
        totals, loop = self.totals, asyncio.get_running_loop()
        deadline = loop.time() + self.deadline_s
        backoff_s = _FIRST_BACKOFF_S
        headers = {"Content-Type": webhook.content_type}
        while True:
            wait_s = backoff_s
            try:
                async with self.post(data=webhook.body, headers=headers) as response:
                    body, status = await response.read(), response.status
                    if status in _STORED_STATUSES:
                        ingest_id = str(orjson.loads(body)["ingest_id"])
            except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError) as error:
                # The connection failed, or the answer was cut off.
                self._log_unavailable(type(error).__name__)
            else:
                if status in _STORED_STATUSES:
                    self._is_unavailable = False
                    totals.sent += 1
                    totals.accepted += 1
                    self._report_progress()
                    return ingest_id
                totals.refused[status] = totals.refused.get(status, 0) + 1
                if status not in _RETRYABLE_STATUSES:
                    totals.sent += 1
                    self._report_progress()
                    # Further webhooks would fail, too.
                    if status in _FATAL_STATUSES:
                        msg = f"the webhook answered {status} {response.reason}: check source and token in its URL"
                        raise SimulationError(msg)
                    raise _RefusedError
                self._log_unavailable(f"{status} {response.reason}")
                # The header may be missing, or a date instead of seconds.
                with suppress(KeyError, ValueError):
                    wait_s = max(0.0, float(response.headers["Retry-After"]))
            self._report_progress()
            if loop.time() + wait_s > deadline or not await self._wait_unless_abandoned(wait_s):
                totals.abandoned += 1
                raise _NoAnswerError
            totals.retried += 1
            backoff_s = min(backoff_s * 2, _LAST_BACKOFF_S)

    async def _wait_unless_abandoned(self, seconds: float) -> bool:
        """Wait; return False, at once, when the rest of the scenarios is abandoned."""
        return not await _is_set_within(self._abandon_requested, seconds)

    def _count_scenario(self, scenario: MessageScenario) -> None:
        match scenario.kind:
            case "outgoing":
                self.totals.messages += 1
            case "incoming":
                self.totals.incoming += 1
            case "malformed":
                self.totals.malformed += 1

    def _report_progress(self) -> None:
        if self.on_progress:
            self.on_progress(self.totals)

    def _log_unavailable(self, what: str) -> None:
        if not self._is_unavailable:
            _log.warning("webhooks of %s are not accepted (%s): sending them again", self.totals.source, what)
        self._is_unavailable = True


def _build_line_facts(scenario: MessageScenario, accepted: int) -> dict[str, Any]:
    """Return the facts of a scenario for the truth file, after a number of accepted webhooks."""
    match scenario.kind:
        case "outgoing":
            return {
                "sms_id": scenario.sms_id,
                **build_message_facts(scenario.webhooks[accepted - 1].truth if accepted else None, accepted),
            }
        case "incoming":
            return {"sms_id": scenario.sms_id, "message_type": scenario.webhooks[0].role}
        case "malformed":
            return {"flaw": scenario.webhooks[0].role}


async def _is_set_within(event: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(max(0.0, seconds)):
            await event.wait()
    except TimeoutError:
        return False
    return True
