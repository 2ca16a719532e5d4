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
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final

import aiohttp
from confluent_kafka import KafkaException

from core.alerts import Alert
from core.errors import SmspulseError
from core.kafka_settings import KafkaSettings
from core.topics import ALERTS
from smspulse.alerting.alert_state import AlertState
from smspulse.alerting.alert_topic import AlertTopicReader, AlertTopicWriter
from smspulse.alerting.delivery_state import (
    FIRST_PAUSE_S,
    POLL_S,
    AlertmanagerState,
    Clock,
    SilencedIds,
    WebhookState,
    read_clock,
)
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
_LONGEST_PAUSE_S: Final = 300.0


class DispatcherError(SmspulseError):
    """Alerts cannot be told as long as Kafka is as it is. What was not told is told after the next start."""


class NoReceiverError(SmspulseError):
    """No way out is set."""


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
        found = await log.read_new_alerts(POLL_S)
        news = bool(found)
        for alert in found:
            state.update_alert(alert)


async def _send_until_accepted(client: AlertWebhookClient | AppriseClient, alert: Alert) -> None:
    pause = FIRST_PAUSE_S
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
