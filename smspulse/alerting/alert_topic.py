"""The topic `sms.alerts`: its reader and writer, the offsets of receivers in it, and the alerts that it feeds."""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    ConsumerGroupTopicPartitions,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient

from core.alerts import EVALUATED_KINDS, Alert, decode_alert, encode_alert
from core.errors import where_raised
from core.kafka_retry import retry_kafka_call
from core.kafka_settings import KafkaSettings
from core.topics import ALERTS
from smspulse.alerting.alert_state import AlertState, require_showable

_log = logging.getLogger(__name__)

# The in-process wait for records. A record is read as soon as it is in Kafka.
_POLL_S: Final = 0.5
# A poll returns at most so many records, so that receivers are not kept waiting for the rest.
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


class AlertRecord(NamedTuple):
    """An alert of the topic, and its place there."""

    partition: int
    offset: int
    alert: Alert


class AlertTopicReader:
    """A reader of `sms.alerts`, from its beginning: only all records together give the state of alerts.

    Args:
        kafka: How to reach Kafka.
        group: Name of the consumer group. Nothing is committed for it.

    Attributes:
        next_offsets: The offset behind the last record that was read, by partition.

    Raises:
        KafkaException: Kafka does not answer.
    """

    def __init__(self, kafka: KafkaSettings, group: str) -> None:
        # The stream writes alerts in transactions. Nobody may be notified of an alert of an aborted one.
        options = {"group.id": group, "enable.auto.commit": False, "isolation.level": "read_committed"}
        self._consumer = Consumer(kafka.confluent_options() | options | {"enable.partition.eof": True, "log_level": 2})
        numbers = self._consumer.list_topics(ALERTS, _BROKER_TIMEOUT_S).topics[ALERTS].partitions
        self.next_offsets: dict[int, int] = dict.fromkeys(numbers, 0)
        self._unfinished_partitions = set(numbers)
        self._consumer.assign([TopicPartition(ALERTS, number, OFFSET_BEGINNING) for number in numbers])

    def read_existing(self) -> list[AlertRecord]:
        """Return the records that are in the topic already."""
        found: list[AlertRecord] = []
        while self._unfinished_partitions:
            found += self.read_new()
        return found

    def read_new(self) -> list[AlertRecord]:
        """Return the next records; none if there is none for half a second.

        Raises:
            KafkaException: An error that does not pass by itself.
        """
        first = self._consumer.poll(_POLL_S)
        found = []
        for message in [] if first is None else [first, *self._consumer.consume(_BATCH, 0)]:
            partition, error = message.partition(), message.error()
            if error is not None:
                if error.code() == KafkaError._PARTITION_EOF:
                    self._unfinished_partitions.discard(partition)
                elif error.code() not in _TRANSIENT_ERRORS:
                    raise KafkaException(error)
                continue
            self.next_offsets[partition] = message.offset() + 1
            # The in-memory broker shows records of aborted transactions, without a value.
            if (value := message.value()) and (alert := _decode_record(message, value)) is not None:
                found.append(AlertRecord(partition, message.offset(), alert))
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
        # Repeated requests after a timeout write no second record, and keep the order of an alert's changes.
        options = {"enable.idempotence": True, "message.timeout.ms": _DELIVERY_TIMEOUT_MS, "log_level": 2}
        self._producer = Producer(kafka.confluent_options() | options)

    def __call__(self, alerts: Iterable[Alert]) -> list[Alert]:
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


class ReceiverOffsets:
    """The committed offsets of one receiver: it was sent the alerts before them.

    Args:
        kafka: How to reach Kafka.
        group: The consumer group of the receiver. It has no members.
    """

    def __init__(self, kafka: KafkaSettings, group: str) -> None:
        self._admin, self._group = AdminClient(kafka.confluent_options() | {"log_level": 2}), group

    def read(self, partitions: Iterable[int]) -> dict[int, int]:
        """Return the committed offsets by partition; empty if there are none yet.

        Raises:
            KafkaException: Kafka does not answer.
        """
        asked = [TopicPartition(ALERTS, partition) for partition in partitions]
        found = retry_kafka_call(self._call, self._admin.list_consumer_group_offsets, asked)
        # Kafka answers with a negative offset where none is committed.
        return {each.partition: each.offset for each in found if each.offset >= 0}

    def commit(self, offsets: dict[int, int]) -> bool:
        """Commit offsets by partition; return False if Kafka is away.

        Raises:
            KafkaException: Kafka refuses it.
        """
        places = [TopicPartition(ALERTS, partition, offset) for partition, offset in offsets.items()]
        try:
            retry_kafka_call(self._call, self._admin.alter_consumer_group_offsets, places)
        except KafkaException as error:
            if error.args[0].code() in _TRANSIENT_ERRORS:
                return False
            raise
        return True

    def _call(self, request: Any, places: list[TopicPartition]) -> list[TopicPartition]:
        asked = ConsumerGroupTopicPartitions(self._group, places)
        answer = request([asked], request_timeout=_BROKER_TIMEOUT_S)[self._group].result().topic_partitions
        # The request as a whole succeeds even if a partition fails.
        for place in answer:
            if place.error is not None:
                raise KafkaException(place.error)
        return list(answer)


class AlertFeed:
    """The alerts of this process. The topic and the evaluator change them, and wake the tasks of receivers.

    Args:
        alert_state: The current state of all alerts.
        offsets: The offsets up to which it holds the topic, by partition.
    """

    def __init__(self, alert_state: AlertState, offsets: dict[int, int]) -> None:
        self.alert_state, self.offsets = alert_state, offsets
        self._changed = asyncio.Event()

    async def follow_topic(self, reader: AlertTopicReader) -> None:
        """Apply new records of the topic, without end."""
        while True:
            records = await asyncio.to_thread(reader.read_new)
            self.update_alerts([each.alert for each in records if not self._is_own_change(each.alert)])
            # After the alerts and without an await in between: a receiver commits these offsets.
            self.offsets = dict(reader.next_offsets)

    def _is_own_change(self, alert: Alert) -> bool:
        """Return whether a record is a change of the evaluator, or an older one, that was applied already."""
        was = self.alert_state.alerts.get(alert.id)
        return alert.kind in EVALUATED_KINDS and was is not None and alert.changed_at <= was.changed_at

    def update_alerts(self, alerts: Sequence[Alert]) -> None:
        """Apply changes of alerts, and wake the tasks that wait for changes."""
        for alert in alerts:
            self.alert_state.update_alert(alert)
        if alerts:
            # Tasks that wait hold this event. Those that come later wait for the next change.
            self._changed.set()
            self._changed = asyncio.Event()

    async def wait_for_change(self, seconds: float | None = None) -> None:
        """Return after the next change of an alert, or after so many seconds if they are given."""
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            return
