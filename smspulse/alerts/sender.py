"""The process of alerts: watches what no fold can see, reads `sms.alerts` and sends what changes to each way out.

Each way has a task and a consumer of its own: one that is down delays itself, and neither the other nor the stream.

Guarantees
    Alertmanager is told how alerts stand, now and every `repeat_s`; what it missed while it, or we, were away it learns
    then, and what was resolved meanwhile ends with the time that it was told last.
    The webhook, and Apprise in the same way, is sent each alert that fires, or is resolved, at least once, in their
    order: what it took is committed to Kafka behind it. After a kill between the two, the same `webhook-id` comes
    again.
    What is silenced is not told: an Alertmanager that knew it takes it as ended. What was told to the webhook is
    still resolved there, and what fires when its silence ends is told then.
    What a wider alert explains is not sent to the webhook, until that is resolved. Alertmanager inhibits by itself; see
    `examples/alertmanager.yml`.
"""

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec
from confluent_kafka import KafkaException

from gateway.alerts import Alert
from gateway.errors import SmspulseError
from gateway.kafka import KafkaSettings
from gateway.topics import ALERTS
from smspulse.alerts.book import Book
from smspulse.alerts.log import AlertLog, AlertWriter
from smspulse.alerts.settings import AlertSettings
from smspulse.alerts.silences import Silences
from smspulse.alerts.watch import Look, watch
from smspulse.alerts.ways import Alertmanager, Apprise, WayOutError, WayOutGone, Webhook

_log = logging.getLogger(__name__)

_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 300.0
_POLL_S: Final = 0.5  # how late the end of a silence can be noticed


Silenced = Callable[[], frozenset[str]]


class SenderError(SmspulseError):
    """Alerts cannot be told as long as Kafka is as it is. What was not told is told after the next start."""


class NoWayOutError(SmspulseError):
    """No way out is set."""


class Told:
    """What the webhook has been told, and what it is to be told next.

    Args:
        book: How alerts stand.
        silenced: Returns the ids of alerts that it is not to be told.
    """

    def __init__(self, book: Book, silenced: Silenced = frozenset) -> None:
        self._book, self._silenced = book, silenced
        self._told: dict[str, Alert] = {}
        self._unknown: dict[str, Alert] = {}

    def take(self, alert: Alert) -> None:
        """Take what is told of an alert."""
        known = self._book.alerts.get(alert.id)
        if alert.phase == "resolved" and alert.fired_at and known is None:
            self._unknown[alert.id] = alert  # what Kafka has compacted away was told before we were started anew
        self._book.take(alert)

    def skip(self, *, firing: bool) -> None:
        """Take it as told what was resolved, and where asked, what fires."""
        self._unknown.clear()
        for alert in self.next() if firing else []:
            self.done(alert)

    def next(self) -> list[Alert]:
        """Return what is to be told, in its order."""
        firing = {alert.id: alert for alert in self._book.firing()}
        gone = [self._ended(told) for id_, told in self._told.items() if not self._is_on(firing.get(id_), told)]
        fresh = [
            alert
            for id_, alert in firing.items()
            if not self._is_on(self._told.get(id_), alert) and not self._book.is_inhibited(alert)
        ]
        if fresh:
            silenced = self._silenced()
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


async def to_alertmanager(
    log: AlertLog,
    way: Alertmanager,
    settings: AlertSettings,
    ready: Callable[[], None] = lambda: None,
    silenced: Silenced = frozenset,
) -> None:
    """Tell Alertmanager for ever how alerts stand."""
    book, loop, pause = Book(), asyncio.get_running_loop(), _FIRST_PAUSE_S
    ended: dict[str, Alert] = {}
    for alert in await log.past(whole=True):
        book.take(alert)
    ready()
    due = loop.time()
    while True:
        quiet = silenced() if loop.time() >= due else frozenset()
        firing = [alert for alert in book.firing() if alert.id not in quiet]
        try:
            if loop.time() >= due and (firing or ended):
                await way.send(firing, list(ended.values()))
        except WayOutError as error:
            _log.warning("%s; all is told again in %.0f s", error, pause)
            due, pause = loop.time() + pause, min(pause * 2, settings.repeat_s)
        else:
            if loop.time() >= due:
                ended.clear()
                due, pause = loop.time() + settings.repeat_s, _FIRST_PAUSE_S
        for alert in await log.news(max(due - loop.time(), 0.0)):
            was = book.alerts.get(alert.id)
            book.take(alert)
            ended.pop(alert.id, None)
            if alert.phase == "resolved" and was is not None and was.phase == "firing":
                ended[alert.id] = alert
            if alert.fired_at and pause == _FIRST_PAUSE_S:  # else it is down, and asked when its time has come
                due = loop.time()


async def to_webhook(
    log: AlertLog, way: Webhook | Apprise, ready: Callable[[], None] = lambda: None, silenced: Silenced = frozenset
) -> None:
    """Send the webhook, or Apprise, what it was not sent yet, until it wants nothing any more."""
    told = Told(Book(), silenced)
    for alert in await log.past(whole=not log.was_committed):
        told.take(alert)
    # Where nothing was ever told, what was resolved long ago is no news, and what fires is.
    told.skip(firing=log.was_committed)
    ready()
    news = not log.was_committed  # else what comes next may be read already, and is not to be committed yet
    while True:
        try:
            while following := told.next()[:1]:
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


def run(settings: AlertSettings, kafka: KafkaSettings, data: Path, ready: Callable[[], None] = lambda: None) -> None:
    """Find and tell alerts until SIGTERM or SIGINT. Without a way out they are listed only.

    Raises:
        WayOutError: The webhook's secret is none, or a URL of Apprise is.
        SenderError: Kafka cannot be used.
    """
    try:
        asyncio.run(_run(settings, kafka, data, ready))
    except KafkaException as error:
        msg = f"Kafka at {kafka.bootstrap} does not serve {ALERTS}: {error.args[0].str()}"
        raise SenderError(msg) from error


async def _run(settings: AlertSettings, kafka: KafkaSettings, data: Path, ready: Callable[[], None]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        # A look, or a Kafka that does not answer, can take longer than there is time to stop, and their threads would
        # be waited for. What is cut off is as after a kill: done again.
        asyncio.get_running_loop().add_signal_handler(number, os._exit, 0)
    silenced = Silences(data).now
    async with aiohttp.ClientSession() as session:
        tasks: dict[str, Callable[[AlertLog, Callable[[], None]], Coroutine[Any, Any, None]]] = {
            "watch": lambda log, ready: watch(log, Look(data, kafka), AlertWriter(kafka), settings.watch_s, ready=ready)
        }
        if settings.alertmanagers:
            manager = Alertmanager(session, settings)
            tasks["alertmanager"] = lambda log, ready: to_alertmanager(log, manager, settings, ready, silenced)
        if settings.webhook:
            hook = Webhook(session, settings)
            tasks["webhook"] = lambda log, ready: to_webhook(log, hook, ready, silenced)
        if settings.apprise.get_secret_value():
            services = Apprise(settings)
            tasks["apprise"] = lambda log, ready: to_webhook(log, services, ready, silenced)
        waiting = set(tasks)

        def one_ready(name: str) -> None:
            waiting.discard(name)
            if not waiting:
                ready()

        async def run(name: str) -> None:
            log = await asyncio.to_thread(AlertLog, kafka, f"{settings.group}-{name}")
            await tasks[name](log, lambda: one_ready(name))

        await asyncio.gather(*map(run, tasks))
