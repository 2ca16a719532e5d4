"""The process of alerts: watches what no fold can see, reads `sms.alerts` and sends what changes to each receiver.

A receiver is one Alertmanager, the webhook, or one service of Apprise. Each has a task, a consumer and a state of its
own: one that is down delays itself, and neither another one nor the stream.

Guarantees
    An Alertmanager is told how alerts stand, now and every `repeat_s`; what it missed while it, or we, were away it
    learns then, and what was resolved meanwhile ends with the time that it was told last.
    The webhook, and Apprise in the same way, is sent each alert that fires, or is resolved, at least once, in their
    order: what it took is committed to Kafka behind it. After a kill between the two, the same `webhook-id` comes
    again.
    What is silenced is not told: an Alertmanager that knew it takes it as ended. What was told to the webhook is
    still resolved there, and what fires when its silence ends is told then.
    What a wider alert explains is not sent to the webhook, until that is resolved. Alertmanager inhibits by itself; see
    `examples/alertmanager.yml`.
    A wider alert that one phone or SIM card explains is sent to nobody as long as the alert of that phone fires:
    `smspulse alerts list` has it. In which order the two fire makes no difference; see `Book.is_explained_by_cause`. An
    Alertmanager that knew it takes it as ended.
    All decisions of one cycle are made at one time: the clock is read once for all that an Alertmanager is sent, and
    once for each alert that the webhook is sent.
"""

import asyncio
import hashlib
import logging
import os
import signal
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec
from confluent_kafka import KafkaException

from core.alerts import Alert
from core.errors import SmspulseError
from core.kafka_settings import KafkaSettings
from core.topics import ALERTS
from smspulse.alerting.alert_state import Book
from smspulse.alerting.alert_topic import AlertLog, AlertWriter
from smspulse.alerting.evaluator import Look, watch
from smspulse.alerting.receivers import Alertmanager, Apprise, WayOutError, WayOutGone, Webhook
from smspulse.alerting.settings import AlertSettings
from smspulse.alerting.silences import Silences

_log = logging.getLogger(__name__)

_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 300.0
_POLL_S: Final = 0.5  # how late the end of a silence can be noticed


@dataclass(frozen=True, slots=True)
class Moment:
    """One reading of the clocks.

    Args:
        elapsed_s: Of the monotonic clock, for pauses.
        now_s: Seconds since 1970.
    """

    elapsed_s: float
    now_s: float

    @property
    def now_ms(self) -> int:
        """Milliseconds since 1970."""
        return int(self.now_s * 1000)


def read_clock() -> Moment:
    """Read the clocks."""
    return Moment(time.monotonic(), time.time())


Clock = Callable[[], Moment]
Silenced = Callable[[float], frozenset[str]]
"""Returns the ids of alerts that are silenced at a time in seconds since 1970."""


def nothing_silenced(_: float) -> frozenset[str]:
    """Return no id."""
    return frozenset()


class SenderError(SmspulseError):
    """Alerts cannot be told as long as Kafka is as it is. What was not told is told after the next start."""


class NoWayOutError(SmspulseError):
    """No way out is set."""


class Told:
    """What the webhook has been told, and what it is to be told next.

    Args:
        book: How alerts stand.
        silenced: Says which alerts it is not to be told.
    """

    def __init__(self, book: Book, silenced: Silenced = nothing_silenced) -> None:
        self._book, self._silenced = book, silenced
        self._told: dict[str, Alert] = {}
        self._unknown: dict[str, Alert] = {}

    def take(self, alert: Alert) -> None:
        """Take what is told of an alert."""
        known = self._book.alerts.get(alert.id)
        if alert.phase == "resolved" and alert.fired_at and known is None:
            self._unknown[alert.id] = alert  # what Kafka has compacted away was told before we were started anew
        self._book.take(alert)

    def skip(self, moment: Moment, *, firing: bool) -> None:
        """Take it as told what was resolved, and where asked, what fires."""
        self._unknown.clear()
        for alert in self.next(moment) if firing else []:
            self.done(alert)

    def next(self, moment: Moment) -> list[Alert]:
        """Return what is to be told, in its order."""
        firing = {alert.id: alert for alert in self._book.firing()}
        gone = [self._ended(told) for id_, told in self._told.items() if not self._is_on(firing.get(id_), told)]
        fresh = [
            alert
            for id_, alert in firing.items()
            if not self._is_on(self._told.get(id_), alert) and not self._book.is_inhibited(alert, moment.now_ms)
        ]
        if fresh:
            silenced = self._silenced(moment.now_s)
            fresh = [alert for alert in fresh if alert.id not in silenced]
        return sorted([*self._unknown.values(), *gone, *fresh], key=lambda alert: (alert.changed_at, alert.id))

    def done(self, alert: Alert) -> None:
        """Note that it was told."""
        self._unknown.pop(alert.id, None)
        if alert.phase == "firing":
            self._told[alert.id] = alert
        else:
            self._told.pop(alert.id, None)

    def _ended(self, told: Alert) -> Alert:
        now = self._book.alerts[told.id]
        if now.phase == "resolved" and now.fired_at == told.fired_at:
            return now
        # It fires again, or is about to: that it was resolved between was told in a record that is gone.
        return msgspec.structs.replace(told, phase="resolved", resolved_at=now.changed_at, changed_at=now.changed_at)

    @staticmethod
    def _is_on(one: Alert | None, other: Alert) -> bool:
        return one is not None and one.fired_at == other.fired_at


@dataclass(frozen=True, slots=True)
class Batch:
    """Alerts for one request to an Alertmanager: those that fire, and those that are resolved."""

    firing: Sequence[Alert]
    resolved: Sequence[Alert]


class AlertmanagerState:
    """Delivery state of one Alertmanager: what it knows, what it is sent next, and when.

    Args:
        repeat_s: Seconds after which it is sent again what fires.
        book: How alerts stand.
        silenced: Says which alerts it is not sent.
    """

    def __init__(self, repeat_s: float, book: Book, silenced: Silenced = nothing_silenced) -> None:
        self._repeat_s, self._book, self._silenced = repeat_s, book, silenced
        self._sent: dict[str, int | None] = {}
        self._ended: dict[str, tuple[Alert, Alert]] = {}
        self._due_at_s = float("-inf")
        self._pause_s = 0.0  # 0 while it takes what it is sent

    def load(self, alerts: Iterable[Alert]) -> None:
        """Take how alerts stood before: their ends are not sent."""
        for alert in alerts:
            self._book.take(alert)

    def take(self, alert: Alert) -> None:
        """Take what is told of an alert."""
        was = self._book.alerts.get(alert.id)
        self._book.take(alert)
        self._ended.pop(alert.id, None)
        if alert.phase == "resolved" and was is not None and was.phase == "firing":
            self._ended[alert.id] = was, alert

    def next(self, moment: Moment) -> Batch | None:
        """Return what to send now; None if there is nothing, or its time has not come.

        What it does not know yet is sent at once, the rest every `repeat_s`, and after a failure all after a pause.
        """
        silenced = self._silenced(moment.now_s)

        def is_explained(alert: Alert) -> bool:
            return self._book.is_explained_by_cause(alert, moment.now_ms)

        audible = [alert for alert in self._book.firing() if alert.id not in silenced]
        firing = [alert for alert in audible if not is_explained(alert)]
        # As long as it fires there, it would inhibit the alert of the phone that explains it.
        replaced = [
            msgspec.structs.replace(alert, phase="resolved", resolved_at=moment.now_ms)
            for alert in audible
            if self._knows(alert) and is_explained(alert)
        ]
        self._ended = {
            id_: (was, alert)
            for id_, (was, alert) in self._ended.items()
            if self._knows(was) or not (id_ in silenced or is_explained(was))
        }
        resolved = [alert for _, alert in self._ended.values()] + replaced
        if not firing and not resolved:
            return None
        is_news = bool(resolved) or not all(map(self._knows, firing))
        if moment.elapsed_s >= self._due_at_s or (is_news and not self._pause_s):
            return Batch(firing, resolved)
        return None

    def succeeded(self, batch: Batch, moment: Moment) -> None:
        """Note that it took a batch, which was sent at that moment."""
        self._sent = {alert.id: alert.fired_at for alert in batch.firing}
        self._ended.clear()
        self._due_at_s, self._pause_s = moment.elapsed_s + self._repeat_s, 0.0

    def failed(self, moment: Moment) -> float:
        """Note that it did not take a batch, which was sent at that moment; return the pause until the next one."""
        self._pause_s = min(max(self._pause_s * 2, _FIRST_PAUSE_S), self._repeat_s)
        self._due_at_s = moment.elapsed_s + self._pause_s
        return self._pause_s

    def poll_s(self, moment: Moment) -> float:
        """Return how long to wait for changes of alerts before the next look."""
        left_s = self._due_at_s - moment.elapsed_s
        return min(left_s, _POLL_S) if left_s > 0 else _POLL_S

    def _knows(self, alert: Alert) -> bool:
        return self._sent.get(alert.id, -1) == alert.fired_at


async def to_alertmanager(
    log: AlertLog,
    way: Alertmanager,
    state: AlertmanagerState,
    ready: Callable[[], None] = lambda: None,
    clock: Clock = read_clock,
) -> None:
    """Send one Alertmanager for ever how alerts stand."""
    state.load(await log.past(whole=True))
    ready()
    while True:
        moment = clock()
        batch = state.next(moment)
        if batch is not None:
            try:
                await way.send(batch.firing, batch.resolved, moment.now_s)
            except WayOutError as error:
                _log.warning("%s; it is sent all again in %.0f s", error, state.failed(moment))
            else:
                state.succeeded(batch, moment)
        for alert in await log.news(state.poll_s(moment)):
            state.take(alert)


async def to_webhook(
    log: AlertLog,
    way: Webhook | Apprise,
    told: Told,
    ready: Callable[[], None] = lambda: None,
    clock: Clock = read_clock,
) -> None:
    """Send the webhook, or a service of Apprise, what it was not sent yet, until it wants nothing any more."""
    for alert in await log.past(whole=not log.was_committed):
        told.take(alert)
    # Where nothing was ever told, what was resolved long ago is no news, and what fires is.
    told.skip(clock(), firing=log.was_committed)
    ready()
    news = not log.was_committed  # else what comes next may be read already, and is not to be committed yet
    while True:
        try:
            while following := told.next(clock())[:1]:
                await _insist(way, following[0])
                told.done(following[0])
        except WayOutGone as error:
            _log.error("%s: it wants nothing any more, and is sent nothing until this process starts again", error)
            return
        if news:
            await log.commit()
        found = await log.news(_POLL_S)
        news = bool(found)
        for alert in found:
            told.take(alert)


async def _insist(way: Webhook | Apprise, alert: Alert) -> None:
    pause = _FIRST_PAUSE_S
    while True:
        try:
            await way.send(alert)
        except WayOutGone:
            raise
        except WayOutError as error:
            wait = max(pause, error.retry_after_s)
            _log.warning("%s; it is sent again in %.0f s", error, wait)
            await asyncio.sleep(wait)
            pause = min(pause * 2, _LONGEST_PAUSE_S)
        else:
            return


def require_way_out(settings: AlertSettings) -> None:
    """Raise if no way out is set.

    Raises:
        NoWayOutError: None is.
    """
    if not settings.is_set:
        msg = "no way out of alerts is set: set SMSPULSE_ALERTS_ALERTMANAGER, _WEBHOOK or _APPRISE"
        raise NoWayOutError(msg)


def check_receivers(settings: AlertSettings) -> None:
    """Raise if a receiver cannot be made of its settings. Sends nothing.

    Raises:
        WayOutError: Apprise does not know one of its URLs, or is not installed.
    """
    for number in range(1, len(settings.apprise_urls) + 1):
        Apprise(settings, number)


def run(settings: AlertSettings, kafka: KafkaSettings, data: Path, ready: Callable[[], None] = lambda: None) -> None:
    """Find and tell alerts until SIGTERM or SIGINT. Without a way out they are listed only.

    Raises:
        WayOutError: Apprise does not know one of its URLs, or is not installed.
        SenderError: Kafka cannot be used.
    """
    try:
        asyncio.run(_run(settings, kafka, data, ready))
    except KafkaException as error:
        msg = f"Kafka at {kafka.bootstrap} does not serve {ALERTS}: {error.args[0].str()}"
        raise SenderError(msg) from error


Task = Callable[[AlertLog, Callable[[], None]], Coroutine[Any, Any, None]]


def receiver_tasks(settings: AlertSettings, session: aiohttp.ClientSession, silenced: Silenced) -> dict[str, Task]:
    """Return a task for each receiver that is set, by the end of the name of its consumer group.

    What was sent is committed for a group, so a service of Apprise keeps its name when others are added or removed.

    Raises:
        WayOutError: Apprise does not know one of its URLs, or is not installed.
    """
    tasks: dict[str, Task] = {}

    def add_alertmanager(name: str, url: str) -> None:
        way = Alertmanager(session, settings, url)
        state = AlertmanagerState(settings.repeat_s, Book(settings.cause_wait_s), silenced)
        tasks[name] = lambda log, ready: to_alertmanager(log, way, state, ready)

    def add_webhook(name: str, way: Webhook | Apprise) -> None:
        told = Told(Book(settings.cause_wait_s), silenced)
        tasks[name] = lambda log, ready: to_webhook(log, way, told, ready)

    for number, url in enumerate(settings.alertmanagers, 1):
        add_alertmanager(f"alertmanager-{number}", url)
    if settings.webhook:
        add_webhook("webhook", Webhook(session, settings))
    for number, url in enumerate(settings.apprise_urls, 1):
        add_webhook(f"apprise-{hashlib.sha256(url.encode()).hexdigest()[:12]}", Apprise(settings, number))
    return tasks


async def _run(settings: AlertSettings, kafka: KafkaSettings, data: Path, ready: Callable[[], None]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        # A look, or a Kafka that does not answer, can take longer than there is time to stop, and their threads would
        # be waited for. What is cut off is as after a kill: done again.
        asyncio.get_running_loop().add_signal_handler(number, os._exit, 0)
    async with aiohttp.ClientSession() as session:
        tasks: dict[str, Task] = {
            "watch": lambda log, ready: watch(log, Look(data, kafka), AlertWriter(kafka), settings.watch_s, ready=ready)
        }
        tasks |= receiver_tasks(settings, session, Silences(data).at)
        waiting = set(tasks)

        def one_ready(name: str) -> None:
            waiting.discard(name)
            if not waiting:
                ready()

        async def run(name: str) -> None:
            log = await asyncio.to_thread(AlertLog, kafka, f"{settings.group}-{name}")
            await tasks[name](log, lambda: one_ready(name))

        await asyncio.gather(*map(run, tasks))
