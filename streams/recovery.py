"""Recovery of one partition of a stage: earlier owners are fenced, and the local state is read up to its end.

The order gives the guarantee. `fence_earlier_owners` ends the transactions of earlier owners before the committed
offset and the changelog are read, so both are final.
"""

import logging
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from core.kafka_retry import retry_kafka_call
from core.kafka_settings import KafkaSettings
from core.topic_ids import TopicIds
from core.topics import DEADLETTERS
from streams.errors import StreamError
from streams.processor import ProcessorOutput
from streams.settings import StreamSettings
from streams.state_store import StateStore
from streams.topology import ProcessingStage

_log = logging.getLogger(__name__)

CALL_TIMEOUT_S = 10.0
_CLIENT = {
    # Everything that matters is raised.
    "log_level": 2,
    "reconnect.backoff.max.ms": 1000,
    # A small transaction waits for several of these: 28 ms each, not 110.
    "retry.backoff.ms": 10,
}
_RECOVERY_BATCH = 10_000
# The client waits this long for a full batch, also at the end of the partition.
_RECOVERY_WAIT_S = 0.05


NextTimer = Callable[[bytes | None, int], int | None]
"""`StreamProcessor.next_timer`."""


class SourceOffsets(NamedTuple):
    """Offsets of a partition of the source: committed by the group, the first and behind the last in Kafka.

    `group` is the metadata of the consumer group, which a transaction needs to commit an offset.
    """

    group: Any
    committed: TopicPartition
    low: int
    end: int


@dataclass(frozen=True, slots=True)
class PartitionRecovery:
    """Reads what a new owner of a partition needs from Kafka.

    Args:
        stage: The stage.
        number: The partition, the same in source and changelog.
        settings: Settings of the worker.
        kafka: Settings of the Kafka clients.
    """

    stage: ProcessingStage
    number: int
    settings: StreamSettings
    kafka: KafkaSettings

    def __str__(self) -> str:
        return f"partition {self.number} of {self.stage.source}"

    def _open_reader(self, **options: Any) -> "closing[Consumer]":
        group = {"group.id": self.settings.group, "enable.auto.commit": False}
        return closing(Consumer(self.kafka.confluent_options() | _CLIENT | group | options))

    def fence_earlier_owners(self) -> Producer:
        """Return a producer that has ended the transactions of all earlier ones, and made them useless.

        Raises:
            KafkaException: Kafka did not answer, or refused.
        """
        producer = Producer(
            self.kafka.confluent_options()
            | _CLIENT
            | {
                "transactional.id": f"{self.settings.group}-{self.stage.name}-{self.number}",
                "transaction.timeout.ms": int(self.settings.transaction_timeout_s * 1000),
                "compression.type": "lz4",
                # As Kafka's own clients do.
                "partitioner": "murmur2_random",
                "linger.ms": 5,
                "queue.buffering.max.messages": 1_000_000,
            }
        )
        producer.init_transactions(CALL_TIMEOUT_S)
        if not self.kafka.in_memory:
            # The in-memory broker shows aborted records to readers, and keeps nothing over a crash.
            self._abort_partial_commits(producer)
        return producer

    def _abort_partial_commits(self, producer: Producer) -> None:
        """Write to every partition that a transaction may have written to, and abort.

        A broker that crashed during a commit can count the transaction as complete although some partitions never got
        the marker. The next commit would make the records there visible. An abort that reaches them hides them.
        """
        producer.begin_transaction()
        for topic in (self.stage.changelog, DEADLETTERS):
            producer.produce(topic, b"", b"", self.number)
        other = self.stage.output_topic
        for number in producer.list_topics(other, CALL_TIMEOUT_S).topics[other].partitions:
            producer.produce(other, b"", b"", number)
        producer.flush(CALL_TIMEOUT_S)
        producer.abort_transaction(CALL_TIMEOUT_S)

    def read_topic_ids(self) -> dict[str, str]:
        """Return the ids of source and changelog.

        Raises:
            StreamError: One of them does not exist.
            KafkaException: Kafka does not answer.
        """
        names = (self.stage.source, self.stage.changelog)
        found = retry_kafka_call(TopicIds(self.kafka).read_ids, names)
        if missing := [name for name in names if name not in found]:
            msg = f"there is no topic {missing[0]} any more. Start `smspulse stream` again, which creates it"
            raise StreamError(msg)
        return found

    def read_source_offsets(self) -> SourceOffsets:
        """Return the offsets of the source.

        Raises:
            KafkaException: Kafka did not answer, after retries.
        """
        # Offsets whose transaction is open are not waited for: `fence_earlier_owners` ended those of earlier owners.
        # After a crash of the broker its group coordinator can miss that, and a stable offset never becomes available.
        source = TopicPartition(self.stage.source, self.number)
        with self._open_reader(**{"isolation.level": "read_uncommitted"}) as reader:
            (committed,) = retry_kafka_call(reader.committed, [source], CALL_TIMEOUT_S)
            low, end = retry_kafka_call(reader.get_watermark_offsets, source, CALL_TIMEOUT_S)
            return SourceOffsets(reader.consumer_group_metadata(), committed, low, end)

    def open_store(self, changelog_id: str) -> StateStore:
        """Return the local state of the partition, a copy of the changelog with that id.

        Raises:
            StateError: The folder cannot be used.
        """
        folder = self.settings.state / self.settings.group / self.stage.name / str(self.number)
        # The in-memory broker drops the oldest records of a long log, so a copy of an earlier run is never used.
        copied = f"{changelog_id}, {time.time_ns()}" if self.kafka.in_memory else changelog_id
        return StateStore(folder, copied)

    def recover_store(self, store: StateStore, next_timer: NextTimer) -> int:
        """Read the changelog from the store's offset to its end; return how many states were read.

        A store that copied other records than the changelog has now is cleared first.

        Raises:
            KafkaException: Kafka did not answer, or refused.
            StateError: The local state cannot be written.
        """
        options = {
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "fetch.queue.backoff.ms": 5,
            # The client reports the end of the partition no sooner.
            "fetch.wait.max.ms": 10,
        }
        with self._open_reader(**options) as reader:
            # The in-memory broker answers with timestamps that are not those of the records.
            if store.offset and not self.kafka.in_memory and not self._is_store_valid(reader, store):
                _log.warning(
                    "%s: the local state was copied from other records than %s has now: Kafka was restored from an "
                    "older copy, or has compacted what was copied last. It is read again from Kafka",
                    *(self, self.stage.changelog),
                )
                store.clear()
            return self._copy_changelog(reader, store, next_timer)

    def _is_store_valid(self, reader: Consumer, store: StateStore) -> bool:
        """Return whether the changelog has the last record of which the store holds the state."""
        last = store.offset - 1
        changelog = TopicPartition(self.stage.changelog, self.number, last)
        low, end = retry_kafka_call(reader.get_watermark_offsets, changelog, CALL_TIMEOUT_S)
        if not low <= last < end:
            return False
        reader.assign([changelog])
        found = reader.consume(1, CALL_TIMEOUT_S)
        reader.unassign()
        if not found:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
        if (error := found[0].error()) is not None:
            if error.code() == KafkaError._PARTITION_EOF:
                return False
            raise KafkaException(error)
        # Releases up to 0.1 kept no timestamp.
        return found[0].offset() == last and store.last_at in {None, found[0].timestamp()[1]}

    def _copy_changelog(self, reader: Consumer, store: StateStore, next_timer: NextTimer) -> int:
        position = store.offset
        reader.assign([TopicPartition(self.stage.changelog, self.number, position)])
        recovered = foreign = 0
        last_at = None
        has_ended = False
        while not has_ended:
            read = ProcessorOutput()
            for message in reader.consume(_RECOVERY_BATCH, _RECOVERY_WAIT_S):
                error = message.error()
                if error is None:
                    value, position, last_at = message.value(), message.offset() + 1, message.timestamp()[1]
                    try:
                        read.states.append((message.key(), value, next_timer(value, last_at)))
                    except Exception:
                        # A value of another program can raise anything. It is not a state of this stage.
                        foreign += 1
                elif error.code() == KafkaError._PARTITION_EOF:
                    has_ended = True
                else:
                    raise KafkaException(error)
            if read.states or foreign:
                store.write_states(read, position, last_at=last_at)
                recovered += len(read.states)
        if foreign:
            _log.error(
                "%d records of %s, partition %d, are no states of this stream and are passed over: find out "
                "who else writes there",
                *(foreign, self.stage.changelog, self.number),
            )
        return recovered
