"""Events a second of the stream worker, on a real Kafka, as a ratio to a bare loop over the same records.

The records are status reports of interleaved messages with the delays of real ones. The worker is `smspulse stream`,
one process, exactly once, with RocksDB state and one version a changed message; the bare loop is an aiokafka consumer
that decodes the JSON and does nothing with it.

    python bench/streams.py [--quick]
"""

import argparse
import asyncio
import heapq
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import orjson
from aiokafka import AIOKafkaConsumer
from aiokafka.partitioner import murmur2
from confluent_kafka import Consumer, Producer, TopicPartition

from gateway.kafka import KafkaSettings
from gateway.records import message_key
from gateway.topics import RAW
from smspulse.broker import KafkaBroker
from smspulse.kafka_node import BrokerSettings
from smspulse.topics import ensure_topics

PARTITIONS = 4
START = 1_760_000_000_000
STEPS = ((1, 0.0), (3, 0.3), (2, 2.0), (6, 3.0), (7, 5.0))
RATE = 500.0  # messages a second in the simulated past


def reports(messages: int) -> Iterator[tuple[float, int, int]]:
    """Yield time, message and status, in the order of time."""
    rng = random.Random(1)  # noqa: S311 - repeatable on purpose
    pending: list[tuple[float, int, int]] = []
    for message in range(messages):
        at = message / RATE
        while pending and pending[0][0] <= at:
            yield heapq.heappop(pending)
        for status_id, mean in STEPS:
            at += rng.lognormvariate(0, 0.8) * mean
            heapq.heappush(pending, (at, message, status_id))
    while pending:
        yield heapq.heappop(pending)


def fill(kafka: KafkaSettings, messages: int) -> None:
    """Write the reports to `sms.raw`."""
    options = {"linger.ms": 50, "compression.type": "lz4", "queue.buffering.max.messages": 2_000_000}
    producer = Producer(kafka.confluent() | options)
    for at, message, status_id in reports(messages):
        key = message_key("bench", message)
        body = {
            "sms_id": message,
            "status_id": status_id,
            "status_message": "SMS gesendet",
            "sendto": f"+4915752{message % 10**6:06}",
            "senttime": "2026-07-11 12:59:26",
            "channel_id": message % 2,
            "device_id": 8000 + message % 50,
        }
        headers = [("source", b"bench"), ("received_at", b"%d" % (START + int(at * 1000)))]
        while True:
            try:
                producer.produce(
                    RAW, orjson.dumps(body), key, (murmur2(key) & 0x7FFFFFFF) % PARTITIONS, headers=headers
                )
                break
            except BufferError:
                producer.poll(0.1)
    producer.flush()


async def bare_loop(kafka: KafkaSettings, events: int) -> float:
    """Return the events a second of a loop that only decodes."""
    consumer = AIOKafkaConsumer(RAW, **kafka.aiokafka(), auto_offset_reset="earliest", max_poll_records=4000)
    await consumer.start()
    started, seen = time.perf_counter(), 0
    while seen < events:
        for records in (await consumer.getmany(timeout_ms=1000)).values():
            for record in records:
                orjson.loads(record.value)
            seen += len(records)
    took = time.perf_counter() - started
    await consumer.stop()
    return events / took


def committed(kafka: KafkaSettings, consumer: Consumer) -> int:
    """Return how many records the worker's group has behind it."""
    offsets = consumer.committed([TopicPartition(RAW, number) for number in range(PARTITIONS)], 10)
    return sum(max(each.offset, 0) for each in offsets)


def worker(kafka: KafkaSettings, data: Path, events: int) -> tuple[float, float]:
    """Return the events a second of `smspulse stream` from its first commit on, and its CPU an event in µs."""
    process = subprocess.Popen(
        [sys.executable, "-m", "smspulse", "stream", "--data", str(data), "--broker", kafka.bootstrap],
        stderr=subprocess.DEVNULL,
    )
    consumer = Consumer(kafka.confluent() | {"group.id": "smspulse-stream"})
    try:
        while not (first := committed(kafka, consumer)):
            time.sleep(0.02)
        started = time.perf_counter()
        cpu = cpu_s(process.pid)
        while committed(kafka, consumer) < events:
            time.sleep(0.02)
        took = time.perf_counter() - started
        cpu = cpu_s(process.pid) - cpu
    finally:
        consumer.close()
        process.send_signal(signal.SIGTERM)
        process.wait(20)
    return (events - first) / took, cpu / (events - first) * 1e6


def cpu_s(pid: int) -> float:
    """Return the CPU seconds of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Fill a Kafka of its own, run both, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="200,000 events in place of 1,000,000")
    events = 200_000 if parser.parse_args().quick else 1_000_000
    with (
        tempfile.TemporaryDirectory() as folder,
        KafkaBroker(Path(folder), BrokerSettings(port=0, controller_port=0)) as broker,
    ):
        kafka = KafkaSettings(bootstrap=broker.address)
        ensure_topics(kafka)
        fill(kafka, events // len(STEPS))
        bare = asyncio.run(bare_loop(kafka, events))
        ours, cpu = worker(kafka, Path(folder) / "worker", events)
    print(f"{events:,} events: bare loop {bare:,.0f}/s; worker {ours:,.0f}/s, {cpu:.1f} µs of CPU an event")
    print(f"figure stream_vs_bare_loop {ours / bare:.3f} goal >= 0.2")


if __name__ == "__main__":
    main()
