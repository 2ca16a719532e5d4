"""The alert process: evaluates the rules, reads `sms.alerts`, and sends changes to each receiver.

A receiver is one Alertmanager, the webhook, or one service of Apprise. One reader of the topic feeds the state of all
alerts. The evaluator of the rules changes that state in process, and the topic keeps its history. Each receiver has its
own task and delivery state. A receiver that is down delays neither another receiver nor the stream.

Guarantees
    An Alertmanager is sent the state of all alerts at once and every `repeat_s`. After an outage of its own or of this
    process it gets the present state. An alert that was resolved meanwhile ends at the time that it was sent last.
    The webhook and each service of Apprise are sent every alert that fires or is resolved at least once, in order. What
    fires and ends while they do not answer is over, and is not sent. The offset is committed to Kafka, for the consumer
    group of the receiver, after the answer. After a kill between the two, the same `webhook-id` is sent again.
    A silenced alert is not sent. An Alertmanager that has it takes it as ended. The webhook is still sent the
    resolution of an alert that it has. An alert that fires when its silence ends is sent then.
    An alert that a wider one explains is not sent to the webhook until the wider one is resolved. Alertmanager inhibits
    by itself; see `examples/alertmanager.yml`.
    A wider alert that one phone or SIM card explains is sent to no receiver while the alert of that phone fires. It is
    in `smspulse alerts list`. The order in which the two fire makes no difference; see
    `AlertState.is_explained_by_cause`. An Alertmanager that has it takes it as ended.
    The clock is read once for each request to an Alertmanager, and once for each alert to the webhook, so that all
    decisions about it use the same time.
    The evaluator's changes are written before they are sent. While Kafka is away they are sent all the same, and
    written when it is back. After a kill in between, such an alert fires again.
"""

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import aiohttp
from confluent_kafka import KafkaException

from core.alerts import Alert
from core.kafka_settings import KafkaSettings
from core.memory import return_large_blocks_at_once
from core.topics import ALERTS
from smspulse.alerting.alert_state import AlertState
from smspulse.alerting.alert_topic import AlertFeed, AlertRecord, AlertTopicReader, AlertTopicWriter, ReceiverOffsets
from smspulse.alerting.delivery_state import FIRST_PAUSE_S, POLL_S, AlertmanagerState, Clock, WebhookState, read_clock
from smspulse.alerting.errors import DispatcherError, ReceiverError, ReceiverGoneError
from smspulse.alerting.evaluator import RuleEvaluator, run_evaluator
from smspulse.alerting.metrics import set_alert_metrics
from smspulse.alerting.receivers import AlertmanagerClient, AlertWebhookClient, AppriseClient, build_receivers
from smspulse.alerting.settings import AlertSettings
from smspulse.alerting.silences import SilenceStore

_log = logging.getLogger(__name__)
# A webhook that is down for long is tried every five minutes.
_LONGEST_PAUSE_S: Final = 300.0


async def publish_metrics(feed: AlertFeed, *, has_receivers: bool) -> None:
    """Keep the metrics at the present state of alerts, without end."""
    while True:
        set_alert_metrics(feed.alert_state.firing_alerts(), has_receivers=has_receivers)
        await feed.wait_for_change()


async def send_to_alertmanager(
    feed: AlertFeed, client: AlertmanagerClient, state: AlertmanagerState, clock: Clock = read_clock
) -> None:
    """Send the state of alerts to one Alertmanager, without end."""
    while True:
        moment = clock()
        if alerts := state.next_alerts(moment):
            try:
                await client.send(alerts, moment.now_s)
            except ReceiverError as error:
                _log.warning("%s; all alerts are sent again in %.0f s", error, state.mark_failed(moment))
            else:
                state.mark_sent(alerts, moment)
        await feed.wait_for_change(state.poll_timeout_s(moment))


async def send_to_webhook(
    feed: AlertFeed,
    client: AlertWebhookClient | AppriseClient,
    state: WebhookState,
    commit: Callable[[dict[int, int]], bool],
) -> None:
    """Send unsent alerts to the webhook or a service of Apprise, until it answers 410.

    Args:
        feed: The alerts.
        client: The receiver.
        state: What it was sent.
        commit: Commits the offsets of its consumer group; returns False if it could not.
    """
    committed: dict[int, int] = {}
    while True:
        try:
            # The clock is read again for each alert.
            while alerts := state.next_alerts(read_clock()):
                await _send_until_accepted(client, alerts[0])
                state.mark_sent(alerts[0])
        except ReceiverGoneError as error:
            _log.error("%s: the receiver refuses all alerts, and is sent none until this process starts again", error)
            return
        # Nothing has awaited since, so all changes before these offsets were sent.
        offsets = feed.offsets
        if offsets != committed and await asyncio.to_thread(commit, offsets):
            committed = offsets
        await feed.wait_for_change(POLL_S)


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


def resume_delivery(
    state: WebhookState, past: AlertState, records: Sequence[AlertRecord], committed: dict[int, int]
) -> None:
    """Restore a delivery state from the records of the topic and the committed offsets.

    On the first start, there are none: old resolutions are no news, but alerts that fire are.

    Args:
        state: The delivery state.
        past: An empty state, which gets the alerts as they were sent.
        records: All records of the topic.
        committed: The committed offsets by partition.
    """
    if not committed:
        return
    news = []
    for record in records:
        if record.offset < committed.get(record.partition, 0):
            past.update_alert(record.alert)
        else:
            news.append(record.alert)
    state.resume(past, news, read_clock())


def run_dispatcher(settings: AlertSettings, kafka: KafkaSettings, data: Path, ready: Callable[[], None]) -> None:
    """Evaluate the rules and send alerts until SIGTERM or SIGINT. Without a receiver, alerts are only listed.

    Args:
        settings: The receivers.
        kafka: How to reach Kafka.
        data: The data folder.
        ready: Called once the current state of alerts is read.

    Raises:
        ReceiverError: Apprise does not support one of its URLs, or is not installed.
        DispatcherError: Kafka cannot be used.
    """
    return_large_blocks_at_once()
    try:
        asyncio.run(_run_tasks(settings, kafka, data, ready))
    except KafkaException as error:
        msg = f"Kafka at {kafka.bootstrap} does not serve {ALERTS}: {error.args[0].str()}"
        raise DispatcherError(msg) from error


async def _run_tasks(settings: AlertSettings, kafka: KafkaSettings, data: Path, ready: Callable[[], None]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        # An evaluation, or a Kafka that does not answer, can take longer than the time to stop, and Python waits for
        # their threads. Work that is cut off is repeated, as after a kill.
        asyncio.get_running_loop().add_signal_handler(number, os._exit, 0)
    # The name that the reader of the evaluator has always had, so that access rules of a cluster stay valid.
    reader = await asyncio.to_thread(AlertTopicReader, kafka, f"{settings.group}-watch")
    records, alert_state = await asyncio.to_thread(reader.read_existing), AlertState(settings.cause_wait_s)
    for record in records:
        alert_state.update_alert(record.alert)
    feed, silenced = AlertFeed(alert_state, dict(reader.next_offsets)), SilenceStore(data).silenced_ids
    async with aiohttp.ClientSession() as session:
        clients = build_receivers(settings, session)
        tasks = [
            feed.follow_topic(reader),
            publish_metrics(feed, has_receivers=bool(clients)),
            run_evaluator(feed, RuleEvaluator(data, kafka), AlertTopicWriter(kafka), settings.watch_s),
        ]
        # Receivers begin with the state as it was read: what was resolved before is no news.
        for name, client in clients.items():
            if isinstance(client, AlertmanagerClient):
                batches = AlertmanagerState(settings.repeat_s, alert_state, silenced)
                tasks.append(send_to_alertmanager(feed, client, batches))
            else:
                changes = WebhookState(alert_state, silenced)
                offsets = ReceiverOffsets(kafka, f"{settings.group}-{name}")
                committed = await asyncio.to_thread(offsets.read, list(feed.offsets))
                resume_delivery(changes, AlertState(settings.cause_wait_s), records, committed)
                tasks.append(send_to_webhook(feed, client, changes, offsets.commit))
        ready()
        await asyncio.gather(*tasks)
