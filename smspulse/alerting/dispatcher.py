"""The alert process: evaluates the rules, reads `sms.alerts`, and sends changes to each receiver.

A receiver is one Alertmanager, the webhook, or one service of Apprise. Each has its own task, consumer and delivery
state. A receiver that is down delays neither another receiver nor the stream.

Guarantees
    An Alertmanager is sent the state of all alerts at once and every `repeat_s`. After an outage of its own or of this
    process it gets the present state. An alert that was resolved meanwhile ends at the time that it was sent last.
    The webhook and each service of Apprise are sent every alert that fires or is resolved at least once, in order. The
    offset is committed to Kafka after the answer. After a kill between the two, the same `webhook-id` is sent again.
    A silenced alert is not sent. An Alertmanager that has it takes it as ended. The webhook is still sent the
    resolution of an alert that it has. An alert that fires when its silence ends is sent then.
    An alert that a wider one explains is not sent to the webhook until the wider one is resolved. Alertmanager inhibits
    by itself; see `examples/alertmanager.yml`.
    A wider alert that one phone or SIM card explains is sent to no receiver while the alert of that phone fires. It is
    in `smspulse alerts list`. The order in which the two fire makes no difference; see
    `AlertState.is_explained_by_cause`. An Alertmanager that has it takes it as ended.
    The clock is read once for each request to an Alertmanager, and once for each alert to the webhook, so that all
    decisions about it use the same time.
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
# A webhook that is down for long is tried every five minutes.
_LONGEST_PAUSE_S: Final = 300.0


class DispatcherError(SmspulseError):
    """Kafka does not serve the topic of alerts. Unsent alerts are sent after the next start."""


class NoReceiverError(SmspulseError):
    """No receiver is set."""


async def send_to_alertmanager(
    log: AlertTopicReader,
    client: AlertmanagerClient,
    state: AlertmanagerState,
    ready: Callable[[], None] = lambda: None,
    clock: Clock = read_clock,
) -> None:
    """Send the state of alerts to one Alertmanager, without end."""
    state.load_alerts(await log.read_existing_alerts(whole=True))
    ready()
    while True:
        moment = clock()
        batch = state.next_alerts(moment)
        if batch is not None:
            try:
                await client.send(batch.firing_alerts, batch.resolved_alerts, moment.now_s)
            except ReceiverError as error:
                _log.warning("%s; all alerts are sent again in %.0f s", error, state.mark_failed(moment))
            else:
                state.mark_sent(batch, moment)
        for alert in await log.read_new_alerts(state.poll_timeout_s(moment)):
            state.update_alert(alert)


async def send_to_webhook(
    log: AlertTopicReader,
    client: AlertWebhookClient | AppriseClient,
    state: WebhookState,
    ready: Callable[[], None] = lambda: None,
) -> None:
    """Send unsent alerts to the webhook or a service of Apprise, until it answers 410."""
    for alert in await log.read_existing_alerts(whole=not log.has_committed_offsets):
        state.update_alert(alert)
    # On the first start, old resolutions are no news, but alerts that fire are.
    state.mark_past_sent(read_clock(), including_firing=log.has_committed_offsets)
    ready()
    # After a restart, records behind the committed offset may have been read already. They are not committed yet.
    news = not log.has_committed_offsets
    while True:
        try:
            # The clock is read again for each alert.
            while alerts := state.next_alerts(read_clock()):
                await _send_until_accepted(client, alerts[0])
                state.mark_sent(alerts[0])
        except ReceiverGoneError as error:
            _log.error("%s: the receiver refuses all alerts, and is sent none until this process starts again", error)
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
    """Require at least one receiver in the settings.

    Raises:
        NoReceiverError: None is set.
    """
    if not settings.has_receiver:
        msg = "no receiver of alerts is set: set SMSPULSE_ALERTS_ALERTMANAGER, _WEBHOOK or _APPRISE"
        raise NoReceiverError(msg)


def check_receivers(settings: AlertSettings) -> None:
    """Check the settings of every receiver. Sends nothing.

    Raises:
        ReceiverError: Apprise does not support one of its URLs, or is not installed.
    """
    for number in range(1, len(settings.apprise_urls) + 1):
        AppriseClient(settings, number)


def run_dispatcher(
    settings: AlertSettings, kafka: KafkaSettings, data: Path, ready: Callable[[], None] = lambda: None
) -> None:
    """Evaluate the rules and send alerts until SIGTERM or SIGINT. Without a receiver, alerts are only listed.

    Raises:
        ReceiverError: Apprise does not support one of its URLs, or is not installed.
        DispatcherError: Kafka cannot be used.
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
    """Return a task for each receiver in the settings, by the suffix of its consumer group.

    Offsets are committed for a group, so a service of Apprise keeps its name when others are added or removed.

    Raises:
        ReceiverError: Apprise does not support one of its URLs, or is not installed.
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
        # An evaluation, or a Kafka that does not answer, can take longer than the time to stop, and Python waits for
        # their threads. Work that is cut off is repeated, as after a kill.
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
