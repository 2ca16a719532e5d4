"""The topic `sms.alerts`: its reader for the dispatcher, and its writer for the rules outside the stream."""

import asyncio
import logging
import threading
from collections.abc import Sequence
from functools import partial
from typing import Final

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from core.alerts import Alert, decode_alert, encode_alert
from core.errors import where_raised
from core.kafka_retry import retry_kafka_call
from core.kafka_settings import KafkaSettings
from core.topics import ALERTS
from smspulse.alerting.alert_state import require_showable

_log = logging.getLogger(__name__)

# The end of a process waits so long for a reader.
_POLL_S: Final = 0.5
# A poll returns at most so many records, to keep the pauses between cycles short.
_BATCH: Final = 500
_BROKER_TIMEOUT_S: Final = 10.0
# Less than the timeout of `flush`, so that each record is delivered or has failed then.
_DELIVERY_TIMEOUT_MS: Final = 8_000
# The client logs these errors, and recovers by itself when Kafka is back.
_TRANSIENT_ERRORS: Final = {
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._TRANSPORT,
    KafkaError._RESOLVE,
    KafkaError._TIMED_OUT,
}


class AlertTopicReader:
    """A reader of `sms.alerts`, from its beginning.

    Args:
        kafka: How to reach Kafka.
        group: The consumer group that offsets are committed for.

    Raises:
        KafkaException: Kafka does not answer.
    """

    def __init__(self, kafka: KafkaSettings, group: str) -> None:
        options = {"group.id": group, "enable.auto.commit": False, "isolation.level": "read_committed"}
        self._consumer = Consumer(kafka.confluent_options() | options | {"enable.partition.eof": True, "log_level": 2})
        numbers = self._consumer.list_topics(ALERTS, _BROKER_TIMEOUT_S).topics[ALERTS].partitions
        found = retry_kafka_call(
            self._consumer.committed, [TopicPartition(ALERTS, number) for number in numbers], _BROKER_TIMEOUT_S
        )
        self._committed_offsets = {each.partition: max(each.offset, 0) for each in found}
        self._next_offsets = dict(self._committed_offsets)
        self._unfinished_partitions = set(numbers)
        self._read_ahead: list[Alert] = []
        self._lock = threading.Lock()
        self.has_committed_offsets = any(each.offset >= 0 for each in found)
        # From the beginning, because only all records together give the state of alerts.
        self._consumer.assign([TopicPartition(ALERTS, number, OFFSET_BEGINNING) for number in numbers])

    async def read_existing_alerts(self, *, whole: bool) -> list[Alert]:
        """Return the alerts that are in the topic already: those before the committed offsets, or all of them."""
        found: list[Alert] = []
        while self._unfinished_partitions:
            for partition, offset, alert in await asyncio.to_thread(self._poll_alerts, _POLL_S):
                if whole or offset < self._committed_offsets[partition]:
                    found.append(alert)
                else:
                    self._read_ahead.append(alert)
        return found

    async def read_new_alerts(self, seconds: float) -> list[Alert]:
        """Return the next alerts; none if no record arrives for so many seconds."""
        read_ahead, self._read_ahead = self._read_ahead, []
        return read_ahead or [
            alert for _, _, alert in await asyncio.to_thread(self._poll_alerts, min(seconds, _POLL_S))
        ]

    async def commit(self) -> None:
        """Commit the offsets behind all returned alerts."""
        offsets = [TopicPartition(ALERTS, number, offset) for number, offset in self._next_offsets.items()]
        await asyncio.to_thread(retry_kafka_call, self._consumer.commit, offsets=offsets, asynchronous=False)

    def close(self) -> None:
        """Leave Kafka."""
        with self._lock:
            self._consumer.close()

    def _poll_alerts(self, seconds: float) -> list[tuple[int, int, Alert]]:
        # A cancelled reader leaves its thread in here.
        with self._lock:
            first = self._consumer.poll(seconds)
            messages = [] if first is None else [first, *self._consumer.consume(_BATCH, 0)]
        found = []
        for message in messages:
            partition, error = message.partition(), message.error()
            if error is not None:
                if error.code() == KafkaError._PARTITION_EOF:
                    self._unfinished_partitions.discard(partition)
                elif error.code() not in _TRANSIENT_ERRORS:
                    raise KafkaException(error)
                continue
            self._next_offsets[partition] = message.offset() + 1
            # The in-memory broker shows records of aborted transactions, without a value.
            if (value := message.value()) and (alert := _decode_record(message, value)) is not None:
                found.append((partition, message.offset(), alert))
        return found


def _decode_record(message: Message, value: bytes) -> Alert | None:
    """Return the alert in a record; None, with a line in the log, if it is no alert that can be shown."""
    try:
        alert = decode_alert(value)
        require_showable(alert)
    # Mostly a DecodeError. Any other error must cost this one alert only, too.
    except Exception as error:
        _log.error(
            "%s, partition %d, offset %d is no alert (%s), and is skipped",
            *(ALERTS, message.partition(), message.offset(), where_raised(error)),
        )
        return None
    return alert


class AlertTopicWriter:
    """An idempotent writer of `sms.alerts`.

    Args:
        kafka: How to reach Kafka.
    """

    def __init__(self, kafka: KafkaSettings) -> None:
        options = {"enable.idempotence": True, "message.timeout.ms": _DELIVERY_TIMEOUT_MS, "log_level": 2}
        self._producer = Producer(kafka.confluent_options() | options)

    def __call__(self, alerts: Sequence[Alert]) -> list[Alert]:
        """Write changes of alerts; return those that are on all in-sync replicas."""
        written: list[Alert] = []

        def on_delivery(alert: Alert, error: KafkaError | None, _: Message) -> None:
            if error is None:
                written.append(alert)
            else:
                _log.warning("alert %s could not be written, and is written again later: %s", alert.id, error.str())

        for alert in alerts:
            callback = partial(on_delivery, alert)
            self._producer.produce(ALERTS, encode_alert(alert), alert.id.encode(), on_delivery=callback)
        # Longer than the delivery timeout, so that every callback has run.
        self._producer.flush(_BROKER_TIMEOUT_S)
        return written
