"""The records of the benchmark: status reports of interleaved messages, with the delays of real ones."""

import heapq
import random
import time
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import orjson
from aiokafka.partitioner import murmur2
from confluent_kafka import Producer

from core.kafka_settings import KafkaSettings
from core.records import message_key
from core.topics import RAW

PARTITIONS = 4
SOURCE = "bench"
STEPS = ((1, 0.0), (3, 0.3), (2, 2.0), (6, 3.0), (7, 5.0))
"""Each status of a message and its mean delay after the previous one, in seconds."""
RATE = 500.0  # messages a second in the simulated past

Report = tuple[float, int, int]
"""Receipt in seconds after the first report; message; status."""


def interleaved(messages: int) -> Iterator[Report]:
    """Yield the reports of concurrent messages, in the order of time."""
    rng = random.Random(1)  # noqa: S311 - repeatable on purpose
    pending: list[Report] = []
    for message in range(messages):
        at = message / RATE
        while pending and pending[0][0] <= at:
            yield heapq.heappop(pending)
        for status_id, mean in STEPS:
            at += rng.lognormvariate(0, 0.8) * mean
            heapq.heappush(pending, (at, message, status_id))
    while pending:
        yield heapq.heappop(pending)


def opened(messages: int) -> Iterator[Report]:
    """Yield only the first report of each message, so all messages stay open."""
    return ((message / 10_000, message, STEPS[0][0]) for message in range(messages))


def webhook(message: int, status_id: int) -> bytes:
    """Return the body of a status report."""
    return orjson.dumps(
        {
            "sms_id": message,
            "status_id": status_id,
            "status_message": "SMS gesendet",
            "sendto": f"+4915752{message % 10**6:06}",
            "senttime": "2026-07-11 12:59:26",
            "channel_id": message % 2,
            "device_id": 8000 + message % 50,
        }
    )


class TooFewError(Exception):
    """Too few messages are complete for a comparison."""


@dataclass(frozen=True, slots=True)
class Filled:
    """Records written to `sms.raw`: their number, and the partition and offset of each message's last report."""

    events: int
    partitions: "array[int]"
    offsets: "array[int]"

    def sample(self, positions: Sequence[int], size: int) -> list[bytes]:
        """Return the keys of messages, spread evenly, whose every report lies before the positions of partitions.

        Raises:
            TooFewError: There are fewer.
        """
        whole = [
            message
            for message, (partition, offset) in enumerate(zip(self.partitions, self.offsets, strict=True))
            if offset < positions[partition]
        ]
        if len(whole) < size:
            msg = f"only {len(whole)} messages are whole, {size} are to be compared"
            raise TooFewError(msg)
        return [message_key(SOURCE, message) for message in whole[:: len(whole) // size][:size]]


def fill(
    kafka: KafkaSettings, messages: int, reports: Iterable[Report], further: Sequence[tuple[str, bytes]] = ()
) -> Filled:
    """Write reports to `sms.raw`, the first as if received as long ago as they span, so that none is old.

    Args:
        kafka: How to reach Kafka.
        messages: How many there are.
        reports: In the order of time.
        further: Headers of each record in addition to source and time.
    """
    options = {"linger.ms": 50, "compression.type": "lz4", "queue.buffering.max.messages": 1_000_000}
    producer = Producer(kafka.confluent_options() | options | {"enable.idempotence": True, "log_level": 3})
    start = int((time.time() - messages / RATE - 60) * 1000)
    partitions, offsets = array("b", bytes(messages)), array("q", bytes(8 * messages))
    ends = [0] * PARTITIONS
    for at, message, status_id in reports:
        key = message_key(SOURCE, message)
        partition = (murmur2(key) & 0x7FFFFFFF) % PARTITIONS
        headers = [("source", SOURCE.encode()), ("received_at", b"%d" % (start + int(at * 1000))), *further]
        while True:
            try:
                producer.produce(RAW, webhook(message, status_id), key, partition, headers=headers)
                break
            except BufferError:
                producer.poll(0.1)
        partitions[message], offsets[message] = partition, ends[partition]
        ends[partition] += 1
    if left := producer.flush(60):
        msg = f"Kafka did not take {left} records"
        raise RuntimeError(msg)
    return Filled(sum(ends), partitions, offsets)
