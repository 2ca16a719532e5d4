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
    `smspulse alerts list` has it. The order in which the two fire makes no difference; see
    `AlertState.is_explained_by_cause`. An Alertmanager that knew it takes it as ended.
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
from smspulse.alerting.alert_state import AlertState
from smspulse.alerting.alert_topic import AlertTopicReader, AlertTopicWriter
from smspulse.alerting.evaluator import RuleEvaluator, run_evaluator
from smspulse.alerting.receivers import (
    AlertmanagerClient,
    AlertWebhookClient,
    AppriseClient,
    ReceiverError,
    ReceiverGoneError,
)
from smspulse.alerting.settings import AlertSettings
from smspulse.alerting.silences import SilenceStore

_log = logging.getLogger(__name__)

_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 300.0
_POLL_S: Final = 0.5  # how late the end of a silence can be noticed


@dataclass(frozen=True, slots=True)
class ClockReading:
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


def read_clock() -> ClockReading:
    """Read the clocks."""
    return ClockReading(time.monotonic(), time.time())


Clock = Callable[[], ClockReading]
SilencedIds = Callable[[float], frozenset[str]]
"""Returns the ids of alerts that are silenced at a time in seconds since 1970."""


def no_silenced_ids(_: float) -> frozenset[str]:
    """Return no id."""
    return frozenset()


class DispatcherError(SmspulseError):
    """Alerts cannot be told as long as Kafka is as it is. What was not told is told after the next start."""


class NoReceiverError(SmspulseError):
    """No way out is set."""


class WebhookState:
    """What the webhook has been told, and what it is to be told next.

    Args:
        alert_state: How alerts stand.
        silenced: Says which alerts it is not to be told.
    """

    def __init__(self, alert_state: AlertState, silenced: SilencedIds = no_silenced_ids) -> None:
        self._alert_state, self._silenced_at = alert_state, silenced
        self._sent_alerts: dict[str, Alert] = {}
        self._unmatched_resolutions: dict[str, Alert] = {}

    def update_alert(self, alert: Alert) -> None:
        """Take what is told of an alert."""
        known = self._alert_state.alerts.get(alert.id)
        if alert.phase == "resolved" and alert.fired_at and known is None:
            self._unmatched_resolutions[alert.id] = (
                alert  # what Kafka has compacted away was told before we were started anew
            )
        self._alert_state.update_alert(alert)

    def mark_past_sent(self, moment: ClockReading, *, including_firing: bool) -> None:
        """Take it as told what was resolved, and where asked, what fires."""
        self._unmatched_resolutions.clear()
        for alert in self.next_alerts(moment) if including_firing else []:
            self.mark_sent(alert)

    def next_alerts(self, moment: ClockReading) -> list[Alert]:
        """Return what is to be told, in its order."""
        firing = {alert.id: alert for alert in self._alert_state.firing_alerts()}
        ended = [
            self._as_resolved(sent)
            for id_, sent in self._sent_alerts.items()
            if not self._is_same_episode(firing.get(id_), sent)
        ]
        fresh = [
            alert
            for id_, alert in firing.items()
            if not self._is_same_episode(self._sent_alerts.get(id_), alert)
            and not self._alert_state.is_inhibited(alert, moment.now_ms)
        ]
        if fresh:
            silenced = self._silenced_at(moment.now_s)
            fresh = [alert for alert in fresh if alert.id not in silenced]
        return sorted(
            [*self._unmatched_resolutions.values(), *ended, *fresh], key=lambda alert: (alert.changed_at, alert.id)
        )

    def mark_sent(self, alert: Alert) -> None:
        """Note that it was told."""
        self._unmatched_resolutions.pop(alert.id, None)
        if alert.phase == "firing":
            self._sent_alerts[alert.id] = alert
        else:
            self._sent_alerts.pop(alert.id, None)

    def _as_resolved(self, sent: Alert) -> Alert:
        now = self._alert_state.alerts[sent.id]
        if now.phase == "resolved" and now.fired_at == sent.fired_at:
            return now
        # It fires again, or is about to: that it was resolved between was told in a record that is gone.
        return msgspec.structs.replace(sent, phase="resolved", resolved_at=now.changed_at, changed_at=now.changed_at)

    @staticmethod
    def _is_same_episode(one: Alert | None, other: Alert) -> bool:
        return one is not None and one.fired_at == other.fired_at


@dataclass(frozen=True, slots=True)
class AlertBatch:
    """Alerts for one request to an Alertmanager: those that fire, and those that are resolved."""

    firing_alerts: Sequence[Alert]
    resolved_alerts: Sequence[Alert]


class AlertmanagerState:
    """Delivery state of one Alertmanager: what it knows, what it is sent next, and when.

    Args:
        repeat_s: Seconds after which it is sent again what fires.
        alert_state: How alerts stand.
        silenced: Says which alerts it is not sent.
    """

    def __init__(self, repeat_s: float, alert_state: AlertState, silenced: SilencedIds = no_silenced_ids) -> None:
        self._repeat_s, self._alert_state, self._silenced_at = repeat_s, alert_state, silenced
        self._sent_episodes: dict[str, int | None] = {}
        self._unsent_resolutions: dict[str, tuple[Alert, Alert]] = {}
        self._due_at_s = float("-inf")
        self._pause_s = 0.0  # 0 while it takes what it is sent

    def load_alerts(self, alerts: Iterable[Alert]) -> None:
        """Take how alerts stood before: their ends are not sent."""
        for alert in alerts:
            self._alert_state.update_alert(alert)

    def update_alert(self, alert: Alert) -> None:
        """Take what is told of an alert."""
        was = self._alert_state.alerts.get(alert.id)
        self._alert_state.update_alert(alert)
        self._unsent_resolutions.pop(alert.id, None)
        if alert.phase == "resolved" and was is not None and was.phase == "firing":
            self._unsent_resolutions[alert.id] = was, alert

    def next_alerts(self, moment: ClockReading) -> AlertBatch | None:
        """Return what to send now; None if there is nothing, or its time has not come.

        What it does not know yet is sent at once, the rest every `repeat_s`, and after a failure all after a pause.
        """
        silenced = self._silenced_at(moment.now_s)

        def is_explained(alert: Alert) -> bool:
            return self._alert_state.is_explained_by_cause(alert, moment.now_ms)

        audible = [alert for alert in self._alert_state.firing_alerts() if alert.id not in silenced]
        firing = [alert for alert in audible if not is_explained(alert)]
        # As long as it fires there, it would inhibit the alert of the phone that explains it.
        replaced = [
            msgspec.structs.replace(alert, phase="resolved", resolved_at=moment.now_ms)
            for alert in audible
            if self._has_sent(alert) and is_explained(alert)
        ]
        self._unsent_resolutions = {
            id_: (was, alert)
            for id_, (was, alert) in self._unsent_resolutions.items()
            if self._has_sent(was) or not (id_ in silenced or is_explained(was))
        }
        resolved = [alert for _, alert in self._unsent_resolutions.values()] + replaced
        if not firing and not resolved:
            return None
        is_news = bool(resolved) or not all(map(self._has_sent, firing))
        if moment.elapsed_s >= self._due_at_s or (is_news and not self._pause_s):
            return AlertBatch(firing, resolved)
        return None

    def mark_sent(self, batch: AlertBatch, moment: ClockReading) -> None:
        """Note that it took a batch, which was sent at that moment."""
        self._sent_episodes = {alert.id: alert.fired_at for alert in batch.firing_alerts}
        self._unsent_resolutions.clear()
        self._due_at_s, self._pause_s = moment.elapsed_s + self._repeat_s, 0.0

    def mark_failed(self, moment: ClockReading) -> float:
        """Note that it did not take a batch, which was sent at that moment; return the pause until the next one."""
        self._pause_s = min(max(self._pause_s * 2, _FIRST_PAUSE_S), self._repeat_s)
        self._due_at_s = moment.elapsed_s + self._pause_s
        return self._pause_s

    def poll_timeout_s(self, moment: ClockReading) -> float:
        """Return how long to wait for changes of alerts before the next look."""
        left_s = self._due_at_s - moment.elapsed_s
        return min(left_s, _POLL_S) if left_s > 0 else _POLL_S

    def _has_sent(self, alert: Alert) -> bool:
        return self._sent_episodes.get(alert.id, -1) == alert.fired_at


async def send_to_alertmanager(
    log: AlertTopicReader,
    client: AlertmanagerClient,
    state: AlertmanagerState,
    ready: Callable[[], None] = lambda: None,
    clock: Clock = read_clock,
) -> None:
    """Send one Alertmanager for ever how alerts stand."""
    state.load_alerts(await log.read_existing_alerts(whole=True))
    ready()
    while True:
        moment = clock()
        batch = state.next_alerts(moment)
        if batch is not None:
            try:
                await client.send(batch.firing_alerts, batch.resolved_alerts, moment.now_s)
            except ReceiverError as error:
                _log.warning("%s; it is sent all again in %.0f s", error, state.mark_failed(moment))
            else:
                state.mark_sent(batch, moment)
        for alert in await log.read_new_alerts(state.poll_timeout_s(moment)):
            state.update_alert(alert)


async def send_to_webhook(
    log: AlertTopicReader,
    client: AlertWebhookClient | AppriseClient,
    state: WebhookState,
    ready: Callable[[], None] = lambda: None,
    clock: Clock = read_clock,
) -> None:
    """Send the webhook, or a service of Apprise, what it was not sent yet, until it wants nothing any more."""
    for alert in await log.read_existing_alerts(whole=not log.has_committed_offsets):
        state.update_alert(alert)
    # Where nothing was ever told, what was resolved long ago is no news, and what fires is.
    state.mark_past_sent(clock(), including_firing=log.has_committed_offsets)
    ready()
    news = not log.has_committed_offsets  # else what comes next may be read already, and is not to be committed yet
    while True:
        try:
            while following := state.next_alerts(clock())[:1]:
                await _send_until_accepted(client, following[0])
                state.mark_sent(following[0])
        except ReceiverGoneError as error:
            _log.error("%s: it wants nothing any more, and is sent nothing until this process starts again", error)
            return
        if news:
            await log.commit()
        found = await log.read_new_alerts(_POLL_S)
        news = bool(found)
        for alert in found:
            state.update_alert(alert)


async def _send_until_accepted(client: AlertWebhookClient | AppriseClient, alert: Alert) -> None:
    pause = _FIRST_PAUSE_S
    while True:
        try:
            await client.send(alert)
        except ReceiverGoneError:
            raise
        except ReceiverError as error:
            wait = max(pause, error.retry_after_s)
            _log.warning("%s; it is sent again in %.0f s", error, wait)
            await asyncio.sleep(wait)
            pause = min(pause * 2, _LONGEST_PAUSE_S)
        else:
            return


def require_receiver(settings: AlertSettings) -> None:
    """Raise if no way out is set.

    Raises:
        NoWayOutError: None is.
    """
    if not settings.has_receiver:
        msg = "no way out of alerts is set: set SMSPULSE_ALERTS_ALERTMANAGER, _WEBHOOK or _APPRISE"
        raise NoReceiverError(msg)


def check_receivers(settings: AlertSettings) -> None:
    """Raise if a receiver cannot be made of its settings. Sends nothing.

    Raises:
        WayOutError: Apprise does not know one of its URLs, or is not installed.
    """
    for number in range(1, len(settings.apprise_urls) + 1):
        AppriseClient(settings, number)


def run_dispatcher(
    settings: AlertSettings, kafka: KafkaSettings, data: Path, ready: Callable[[], None] = lambda: None
) -> None:
    """Find and tell alerts until SIGTERM or SIGINT. Without a way out they are listed only.

    Raises:
        WayOutError: Apprise does not know one of its URLs, or is not installed.
        SenderError: Kafka cannot be used.
    """
    try:
        asyncio.run(_run_tasks(settings, kafka, data, ready))
    except KafkaException as error:
        msg = f"Kafka at {kafka.bootstrap} does not serve {ALERTS}: {error.args[0].str()}"
        raise DispatcherError(msg) from error


ReceiverTask = Callable[[AlertTopicReader, Callable[[], None]], Coroutine[Any, Any, None]]


def build_receiver_tasks(
    settings: AlertSettings, session: aiohttp.ClientSession, silenced: SilencedIds
) -> dict[str, ReceiverTask]:
    """Return a task for each receiver that is set, by the end of the name of its consumer group.

    What was sent is committed for a group, so a service of Apprise keeps its name when others are added or removed.

    Raises:
        WayOutError: Apprise does not know one of its URLs, or is not installed.
    """
    tasks: dict[str, ReceiverTask] = {}

    def add_alertmanager(name: str, url: str) -> None:
        client = AlertmanagerClient(session, settings, url)
        state = AlertmanagerState(settings.repeat_s, AlertState(settings.cause_wait_s), silenced)
        tasks[name] = lambda log, ready: send_to_alertmanager(log, client, state, ready)

    def add_webhook(name: str, client: AlertWebhookClient | AppriseClient) -> None:
        state = WebhookState(AlertState(settings.cause_wait_s), silenced)
        tasks[name] = lambda log, ready: send_to_webhook(log, client, state, ready)

    for number, url in enumerate(settings.alertmanager_urls, 1):
        add_alertmanager(f"alertmanager-{number}", url)
    if settings.webhook:
        add_webhook("webhook", AlertWebhookClient(session, settings))
    for number, url in enumerate(settings.apprise_urls, 1):
        add_webhook(f"apprise-{hashlib.sha256(url.encode()).hexdigest()[:12]}", AppriseClient(settings, number))
    return tasks


async def _run_tasks(settings: AlertSettings, kafka: KafkaSettings, data: Path, ready: Callable[[], None]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        # A look, or a Kafka that does not answer, can take longer than there is time to stop, and their threads would
        # be waited for. What is cut off is as after a kill: done again.
        asyncio.get_running_loop().add_signal_handler(number, os._exit, 0)
    async with aiohttp.ClientSession() as session:
        tasks: dict[str, ReceiverTask] = {
            "watch": lambda log, ready: run_evaluator(
                log, RuleEvaluator(data, kafka), AlertTopicWriter(kafka), settings.watch_s, ready=ready
            )
        }
        tasks |= build_receiver_tasks(settings, session, SilenceStore(data).silenced_ids)
        waiting = set(tasks)

        def mark_ready(name: str) -> None:
            waiting.discard(name)
            if not waiting:
                ready()

        async def run_task(name: str) -> None:
            log = await asyncio.to_thread(AlertTopicReader, kafka, f"{settings.group}-{name}")
            await tasks[name](log, lambda: mark_ready(name))

        await asyncio.gather(*map(run_task, tasks))
