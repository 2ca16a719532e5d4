"""`sms.alerts`, as those read it who tell alerts, and as those write it who find some outside of the stream."""

import asyncio
import logging
import threading
from collections.abc import Sequence
from typing import Final

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from core.alerts import Alert, decode, encode
from core.errors import where_raised
from core.kafka_retry import retried
from core.kafka_settings import KafkaSettings
from core.topics import ALERTS
from smspulse.alerting.alert_state import require_showable

_log = logging.getLogger(__name__)

_POLL_S: Final = 0.5  # how long the end of a process waits for a reader
_BATCH: Final = 500
_ANSWER_S: Final = 10.0
_GIVE_UP_MS: Final = 8_000  # before `flush` does, so each record has an end then
# The client says so, and goes on by itself when Kafka is back.
_PASSING: Final = {KafkaError._ALL_BROKERS_DOWN, KafkaError._TRANSPORT, KafkaError._RESOLVE, KafkaError._TIMED_OUT}


class AlertLog:
    """`sms.alerts`, read from its beginning by one reader.

    Args:
        kafka: How to reach Kafka.
        group: The consumer group that offsets are committed for.

    Raises:
        KafkaException: Kafka does not answer.
    """

    def __init__(self, kafka: KafkaSettings, group: str) -> None:
        options = {"group.id": group, "enable.auto.commit": False, "isolation.level": "read_committed"}
        self._consumer = Consumer(kafka.confluent() | options | {"enable.partition.eof": True, "log_level": 2})
        numbers = self._consumer.list_topics(ALERTS, _ANSWER_S).topics[ALERTS].partitions
        found = retried(self._consumer.committed, [TopicPartition(ALERTS, number) for number in numbers], _ANSWER_S)
        self._committed = {each.partition: max(each.offset, 0) for each in found}
        self._next = dict(self._committed)
        self._behind = set(numbers)
        self._held: list[Alert] = []
        self._lock = threading.Lock()
        self.was_committed = any(each.offset >= 0 for each in found)
        self._consumer.assign([TopicPartition(ALERTS, number, OFFSET_BEGINNING) for number in numbers])

    async def past(self, *, whole: bool) -> list[Alert]:
        """Return what is there already: what was committed, or the whole of it."""
        found: list[Alert] = []
        while self._behind:
            for partition, offset, alert in await asyncio.to_thread(self._poll, _POLL_S):
                if whole or offset < self._committed[partition]:
                    found.append(alert)
                else:
                    self._held.append(alert)
        return found

    async def news(self, seconds: float) -> list[Alert]:
        """Return what comes next; nothing if nothing comes for so long."""
        held, self._held = self._held, []
        return held or [alert for _, _, alert in await asyncio.to_thread(self._poll, min(seconds, _POLL_S))]

    async def commit(self) -> None:
        """Commit all that was returned."""
        offsets = [TopicPartition(ALERTS, number, offset) for number, offset in self._next.items()]
        await asyncio.to_thread(retried, self._consumer.commit, offsets=offsets, asynchronous=False)

    def close(self) -> None:
        """Leave Kafka."""
        with self._lock:
            self._consumer.close()

    def _poll(self, seconds: float) -> list[tuple[int, int, Alert]]:
        with self._lock:  # a reader that is cancelled leaves its thread here
            first = self._consumer.poll(seconds)
            messages = [] if first is None else [first, *self._consumer.consume(_BATCH, 0)]
        found = []
        for message in messages:
            partition, error = message.partition(), message.error()
            if error is not None:
                if error.code() == KafkaError._PARTITION_EOF:
                    self._behind.discard(partition)
                elif error.code() not in _PASSING:
                    raise KafkaException(error)
                continue
            self._next[partition] = message.offset() + 1
            if not (value := message.value()):
                continue  # of a transaction that was aborted, which the in-memory broker shows
            try:
                alert = decode(value)
                require_showable(alert)
            except Exception as fault:  # a DecodeError, as a rule; whatever it is, it costs this alert and no other
                _log.error(
                    "%s, partition %d, offset %d is no alert (%s), and is passed over",
                    *(ALERTS, partition, message.offset(), where_raised(fault)),
                )
                continue
            found.append((partition, message.offset(), alert))
        return found


class AlertWriter:
    """Writes to `sms.alerts`, idempotently.

    Args:
        kafka: How to reach Kafka.
    """

    def __init__(self, kafka: KafkaSettings) -> None:
        options = {"enable.idempotence": True, "message.timeout.ms": _GIVE_UP_MS, "log_level": 2}
        self._producer = Producer(kafka.confluent() | options)

    def __call__(self, alerts: Sequence[Alert]) -> list[Alert]:
        """Write changes of alerts, and return those that are on all in-sync replicas."""
        written: list[Alert] = []

        def done(alert: Alert, error: KafkaError | None) -> None:
            if error is None:
                written.append(alert)
            else:
                _log.warning("alert %s could not be written, and is again: %s", alert.id, error.str())

        for alert in alerts:

            def said(error: KafkaError | None, _: Message, alert: Alert = alert) -> None:
                done(alert, error)

            self._producer.produce(ALERTS, encode(alert), alert.id.encode(), on_delivery=said)
        self._producer.flush(_ANSWER_S)
        return written
