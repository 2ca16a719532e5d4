"""Receivers are served side by side, each with its own state, and each cycle of one is of one time."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from alertmanager import Receiver, receiving
from warehouse_records import NOON, alert, at

from core.alerts import Alert, decode_alert
from smspulse.alerting.alert_state import AlertState
from smspulse.alerting.delivery_state import AlertmanagerState, ClockReading, SilencedIds, no_silenced_ids
from smspulse.alerting.dispatcher import build_receiver_tasks, send_to_alertmanager
from smspulse.alerting.receivers import AlertmanagerClient
from smspulse.alerting.rendering import try_receivers
from smspulse.alerting.settings import AlertSettings
from smspulse.processes.children import find_free_port

WITHIN_S = 10  # less than a request to a receiver that never answers takes


def firing(device: int = 1, **fields: Any) -> Alert:
    given = {"id": f"failure_ratio:acme:{device}:1", "device_id": device} | fields
    return decode_alert(alert(0, "firing", **given).value or b"")


def resolved(device: int = 1, seconds: float = 60) -> Alert:
    return decode_alert(
        alert(0, "resolved", seconds=seconds, id=f"failure_ratio:acme:{device}:1", device_id=device).value or b""
    )


class Log:
    """Stands for `sms.alerts`; `on_news` is called for each cycle."""

    has_committed_offsets = False

    def __init__(self, past: list[Alert], on_news: Callable[[], list[Alert]] = list) -> None:
        self._past, self._on_news, self.commits = past, on_news, 0

    async def read_existing_alerts(self, *, whole: bool) -> list[Alert]:
        return self._past

    async def read_new_alerts(self, seconds: float) -> list[Alert]:
        await asyncio.sleep(0)
        return self._on_news() or await asyncio.sleep(min(seconds, 0.02), [])

    async def commit(self) -> None:
        self.commits += 1


@asynccontextmanager
async def never_answering() -> AsyncIterator[str]:
    """Give the URL of a server that takes connections and answers nothing, as behind a broken load balancer."""
    over = asyncio.Event()

    async def hold(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await over.wait()
        writer.close()

    server = await asyncio.start_server(hold, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        over.set()
        server.close()
        await server.wait_closed()


@asynccontextmanager
async def dispatching(settings: AlertSettings, make_log: Callable[[], Log]) -> AsyncIterator[None]:
    """Serve all receivers in a context."""
    async with aiohttp.ClientSession() as session:
        tasks = build_receiver_tasks(settings, session, no_silenced_ids)
        running = [asyncio.ensure_future(task(make_log(), lambda: None)) for task in tasks.values()]  # type: ignore[arg-type]
        try:
            yield
        finally:
            for each in running:
                each.cancel()
            await asyncio.gather(*running, return_exceptions=True)


async def test_an_alertmanager_that_never_answers_delays_no_other() -> None:
    coming: list[Alert] = []
    async with never_answering() as dead, receiving() as alive:
        settings = AlertSettings(alertmanager=f"{dead},{alive.url}", repeat_s=0.2)
        async with dispatching(settings, lambda: Log([firing()], lambda: [coming.pop()] if coming else [])):
            for _ in range(3):
                assert [each["labels"]["device"] for each in await alive.next(WITHIN_S)] == ["1"]


async def test_an_alertmanager_that_refuses_all_is_sent_it_later_and_no_other_is_sent_it_more_often() -> None:
    async with receiving() as broken, receiving() as alive:
        broken.answers = [web.Response(status=500) for _ in range(100)]
        settings = AlertSettings(alertmanager=f"{broken.url},{alive.url}", repeat_s=86_400)
        async with dispatching(settings, lambda: Log([firing()])):
            await alive.next(WITHIN_S)
            for _ in range(2):
                await broken.next(WITHIN_S)
        assert alive.requests.empty()


async def test_a_service_of_apprise_that_is_down_delays_no_other_which_is_sent_each_alert_once() -> None:
    pytest.importorskip("apprise")
    async with receiving() as broken, receiving() as alive:
        broken.answers = [web.Response(status=500) for _ in range(100)]
        urls = f"{broken.url.replace('http', 'json')} {alive.url.replace('http', 'json')}"
        async with dispatching(AlertSettings(apprise=urls), lambda: Log([firing()])):  # type: ignore[arg-type]
            await alive.next(WITHIN_S)
            for _ in range(2):
                await broken.next(WITHIN_S)
        assert alive.requests.empty()


async def test_a_service_of_apprise_keeps_its_position_when_others_are_added() -> None:
    pytest.importorskip("apprise")
    async with aiohttp.ClientSession() as session:
        one = build_receiver_tasks(AlertSettings(apprise="json://a.example.org"), session, no_silenced_ids)  # type: ignore[arg-type]
        two = AlertSettings(apprise="json://b.example.org json://a.example.org")  # type: ignore[arg-type]
        names = list(build_receiver_tasks(two, session, no_silenced_ids))
    assert len(set(names)) == 2
    assert [*one] == names[1:]
    assert "example" not in "".join(names)


async def test_all_receivers_are_tried_though_one_never_answers_and_those_that_failed_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("smspulse.alerting.receivers._TIMEOUT", aiohttp.ClientTimeout(total=1))
    async with never_answering() as dead, receiving() as alive:
        refused = f"http://127.0.0.1:{find_free_port()}"
        settings = AlertSettings(alertmanager=f"{dead},{refused},{alive.url}", webhook=f"{alive.url}/hook")
        assert await try_receivers(settings, NOON / 1000) == [
            f"{dead} cannot be reached: TimeoutError",
            f"{refused} cannot be reached: ClientConnectorError",
        ]
        assert sorted([(await alive.requests.get())[0] for _ in range(4)]) == [*["/api/v2/alerts"] * 2, *["/hook"] * 2]


async def cycles(
    receiver: Receiver, log: Log, clock: Callable[[], ClockReading], silenced: SilencedIds = no_silenced_ids
) -> asyncio.Task[None]:
    """Serve an Alertmanager that is sent again what fires every ten seconds of a clock, in a task."""
    settings = AlertSettings(alertmanager=receiver.url, repeat_s=10)

    async def run() -> None:
        async with aiohttp.ClientSession() as session:
            state = AlertmanagerState(settings.repeat_s, AlertState(), silenced)
            await send_to_alertmanager(log, AlertmanagerClient(session, settings, receiver.url), state, clock=clock)  # type: ignore[arg-type]

    return asyncio.create_task(run())


class JumpingClock:
    """A clock that jumps with each reading, as on a machine that does other things in between."""

    def __init__(self, step_s: float) -> None:
        self.readings, self._step_s = 0, step_s

    def __call__(self) -> ClockReading:
        self.readings += 1
        return ClockReading(self.readings * self._step_s, NOON / 1000 + self.readings * self._step_s)


@pytest.mark.parametrize("step_s", [1, 3, 4, 4.9, 7, 9.9])
async def test_no_clock_drops_an_end_or_sends_what_is_silenced(step_s: float) -> None:
    clock, muted = JumpingClock(step_s), firing(2)
    waiting = [resolved(device) for device in range(20, 10, -1)]
    seen: set[str] = set()
    async with receiving() as receiver:

        def coming() -> list[Alert]:
            return [waiting.pop()] if waiting and clock.readings % 5 == 0 else []

        log = Log([muted, firing(3), *(firing(device) for device in range(11, 21))], coming)
        running = await cycles(receiver, log, clock, lambda _: frozenset({muted.id}))
        while len(seen) < 10:
            for each in await receiver.next(WITHIN_S):
                assert each["labels"]["device"] != "2"
                if each["endsAt"] == "2026-11-24T12:01:00.000Z":
                    seen.add(each["labels"]["device"])
        running.cancel()


async def test_each_cycle_reads_the_clock_once() -> None:
    clock = JumpingClock(4)
    looks: list[int] = []

    def look() -> list[Alert]:
        looks.append(clock.readings)
        return []

    async with receiving() as receiver:
        receiver.answers = [web.Response(status=500)]
        running = await cycles(receiver, Log([firing()], look), clock)
        for _ in range(4):
            await receiver.next(WITHIN_S)
        running.cancel()
    assert looks == list(range(1, len(looks) + 1))
    assert len(looks) > 4


def test_the_end_of_a_silence_is_no_matter_of_the_next_repetition() -> None:
    silenced = {firing().id}
    state = AlertmanagerState(60, AlertState(), lambda _: frozenset(silenced))
    state.load_alerts([firing()])
    assert state.next_alerts(moment(0)) is None
    silenced.clear()
    batch = state.next_alerts(moment(1))
    assert batch is not None
    assert [each.id for each in batch.firing_alerts] == [firing().id]


def test_what_failed_is_sent_again_after_a_pause_that_grows_and_nothing_is_sent_before() -> None:
    state = AlertmanagerState(60, AlertState())
    state.load_alerts([firing()])
    assert state.next_alerts(moment(0)) is not None
    assert state.mark_failed(moment(0)) == 1
    state.update_alert(firing(2))
    assert state.next_alerts(moment(0.9)) is None
    assert state.next_alerts(moment(1)) is not None
    assert [state.mark_failed(moment(1)) for _ in range(7)] == [2, 4, 8, 16, 32, 60, 60]


def test_an_alert_that_was_never_sent_has_no_end_to_send() -> None:
    state = AlertmanagerState(60, AlertState(), lambda _: frozenset({firing().id}))
    state.load_alerts([firing()])
    assert state.next_alerts(moment(0)) is None
    state.update_alert(resolved())
    assert state.next_alerts(moment(1)) is None


def moment(seconds: float) -> ClockReading:
    return ClockReading(elapsed_s=seconds, now_s=at(seconds) / 1000)
