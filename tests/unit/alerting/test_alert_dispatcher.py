"""Receivers are served concurrently, each with its own state, and each cycle uses one reading of the clock."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from alertmanager import Receiver, receiving, unsilenced
from warehouse_records import NOON, alert, at

from core.alerts import Alert, decode_alert
from smspulse.alerting.alert_state import AlertState
from smspulse.alerting.alert_topic import AlertFeed
from smspulse.alerting.delivery_state import AlertmanagerState, ClockReading, SilencedIds, WebhookState
from smspulse.alerting.dispatcher import send_to_alertmanager, send_to_webhook
from smspulse.alerting.receivers import AlertmanagerClient, build_receivers, try_receivers
from smspulse.alerting.settings import AlertSettings
from smspulse.processes.children import find_free_port

WITHIN_S = 10  # below the timeout of a request to a receiver that never answers


def firing(device: int = 1, **fields: Any) -> Alert:
    given = {"id": f"failure_ratio:acme:{device}:1", "device_id": device} | fields
    return decode_alert(alert(0, "firing", **given).value or b"")


def resolved(device: int = 1, seconds: float = 60) -> Alert:
    return decode_alert(
        alert(0, "resolved", seconds=seconds, id=f"failure_ratio:acme:{device}:1", device_id=device).value or b""
    )


class Feed(AlertFeed):
    """The alerts of a test; `on_news` is called for each cycle of a receiver."""

    def __init__(self, past: list[Alert], on_news: Callable[[], list[Alert]] = list) -> None:
        super().__init__(AlertState(), {})
        self._on_news = on_news
        for each in past:
            self.alert_state.update_alert(each)

    async def wait_for_change(self, seconds: float) -> None:
        await asyncio.sleep(0)
        if news := self._on_news():
            self.update_alerts(news)
        else:
            await asyncio.sleep(min(seconds, 0.02))


@asynccontextmanager
async def never_answering() -> AsyncIterator[str]:
    """Yield the URL of a server that accepts connections and never answers, as behind a broken load balancer."""
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
async def dispatching(settings: AlertSettings, feed: Feed) -> AsyncIterator[None]:
    """Run the dispatcher for all receivers."""
    async with aiohttp.ClientSession() as session:
        running = [
            asyncio.ensure_future(
                send_to_alertmanager(feed, client, AlertmanagerState(settings.repeat_s, feed.alert_state, unsilenced))
                if isinstance(client, AlertmanagerClient)
                else send_to_webhook(feed, client, WebhookState(feed.alert_state, unsilenced), lambda _: True)
            )
            for client in build_receivers(settings, session).values()
        ]
        try:
            yield
        finally:
            for each in running:
                each.cancel()
            await asyncio.gather(*running, return_exceptions=True)


async def test_an_alertmanager_that_never_answers_does_not_delay_others() -> None:
    async with never_answering() as dead, receiving() as alive:
        settings = AlertSettings(alertmanager=f"{dead},{alive.url}", repeat_s=0.2)
        async with dispatching(settings, Feed([firing()])):
            for _ in range(3):
                assert [each["labels"]["device"] for each in await alive.next(WITHIN_S)] == ["1"]


async def test_an_alertmanager_that_refuses_is_retried_and_others_receive_no_more_requests() -> None:
    async with receiving() as broken, receiving() as alive:
        broken.answers = [web.Response(status=500) for _ in range(100)]
        settings = AlertSettings(alertmanager=f"{broken.url},{alive.url}", repeat_s=86_400)
        async with dispatching(settings, Feed([firing()])):
            await alive.next(WITHIN_S)
            for _ in range(2):
                await broken.next(WITHIN_S)
        assert alive.requests.empty()


async def test_an_apprise_service_that_is_down_does_not_delay_others_which_receive_each_alert_once() -> None:
    pytest.importorskip("apprise")
    async with receiving() as broken, receiving() as alive:
        broken.answers = [web.Response(status=500) for _ in range(100)]
        urls = f"{broken.url.replace('http', 'json')} {alive.url.replace('http', 'json')}"
        async with dispatching(AlertSettings(apprise=urls), Feed([firing()])):  # type: ignore[arg-type]
            await alive.next(WITHIN_S)
            for _ in range(2):
                await broken.next(WITHIN_S)
        assert alive.requests.empty()


async def test_an_apprise_service_keeps_its_offset_if_others_are_added() -> None:
    pytest.importorskip("apprise")
    async with aiohttp.ClientSession() as session:
        one = build_receivers(AlertSettings(apprise="json://a.example.org"), session)  # type: ignore[arg-type]
        two = AlertSettings(apprise="json://b.example.org json://a.example.org")  # type: ignore[arg-type]
        names = list(build_receivers(two, session))
    assert len(set(names)) == 2
    assert [*one] == names[1:]
    assert "example" not in "".join(names)


async def test_all_receivers_are_tested_if_one_never_answers_and_the_failed_ones_are_named(
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
    receiver: Receiver, feed: Feed, clock: Callable[[], ClockReading], silenced: SilencedIds = unsilenced
) -> asyncio.Task[None]:
    """Run the cycles of an Alertmanager whose alerts are repeated every ten seconds of a clock."""
    settings = AlertSettings(alertmanager=receiver.url, repeat_s=10)

    async def run() -> None:
        async with aiohttp.ClientSession() as session:
            state = AlertmanagerState(settings.repeat_s, feed.alert_state, silenced)
            await send_to_alertmanager(feed, AlertmanagerClient(session, settings, receiver.url), state, clock=clock)

    return asyncio.create_task(run())


class JumpingClock:
    """A clock that jumps at each reading, as on a busy machine."""

    def __init__(self, step_s: float) -> None:
        self.readings, self._step_s = 0, step_s

    def __call__(self) -> ClockReading:
        self.readings += 1
        return ClockReading(self.readings * self._step_s, NOON / 1000 + self.readings * self._step_s)


@pytest.mark.parametrize("step_s", [1, 3, 4, 4.9, 7, 9.9])
async def test_no_clock_drops_a_resolved_alert_or_sends_a_silenced_one(step_s: float) -> None:
    clock, muted = JumpingClock(step_s), firing(2)
    waiting = [resolved(device) for device in range(20, 10, -1)]
    seen: set[str] = set()
    async with receiving() as receiver:

        def coming() -> list[Alert]:
            return [waiting.pop()] if waiting and clock.readings % 5 == 0 else []

        feed = Feed([muted, firing(3), *(firing(device) for device in range(11, 21))], coming)
        running = await cycles(receiver, feed, clock, lambda _: frozenset({muted.id}))
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
        running = await cycles(receiver, Feed([firing()], look), clock)
        for _ in range(4):
            await receiver.next(WITHIN_S)
        running.cancel()
    assert looks == list(range(1, len(looks) + 1))
    assert len(looks) > 4


def alertmanager_state(*alerts: Alert, silenced: SilencedIds = unsilenced) -> tuple[AlertState, AlertmanagerState]:
    book = AlertState()
    for each in alerts:
        book.update_alert(each)
    return book, AlertmanagerState(60, book, silenced)


def test_the_end_of_a_silence_does_not_wait_for_the_next_repetition() -> None:
    silenced = {firing().id}
    _, state = alertmanager_state(firing(), silenced=lambda _: frozenset(silenced))
    assert state.next_alerts(moment(0)) == []
    silenced.clear()
    assert [each.id for each in state.next_alerts(moment(1))] == [firing().id]


def test_a_failed_request_is_repeated_after_increasing_pauses_and_not_before() -> None:
    book, state = alertmanager_state(firing())
    assert state.next_alerts(moment(0))
    assert state.mark_failed(moment(0)) == 1
    book.update_alert(firing(2))
    assert state.next_alerts(moment(0.9)) == []
    assert state.next_alerts(moment(1))
    assert [state.mark_failed(moment(1)) for _ in range(7)] == [2, 4, 8, 16, 32, 60, 60]


def test_the_end_of_an_alert_that_was_never_sent_is_not_sent() -> None:
    book, state = alertmanager_state(firing(), silenced=lambda _: frozenset({firing().id}))
    assert state.next_alerts(moment(0)) == []
    book.update_alert(resolved())
    assert state.next_alerts(moment(1)) == []


def test_an_alert_that_is_resolved_during_a_request_is_in_the_next_one() -> None:
    book, state = alertmanager_state(firing())
    sent = state.next_alerts(moment(0))
    book.update_alert(resolved())
    state.mark_sent(sent, moment(0))
    assert [each.phase for each in state.next_alerts(moment(1))] == ["resolved"]


def moment(seconds: float) -> ClockReading:
    return ClockReading(elapsed_s=seconds, now_s=at(seconds) / 1000)
