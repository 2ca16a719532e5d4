"""Landers in threads of a test, webhooks for them, and a wait for landed files."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from confluent_kafka import Producer

from core import topics
from core.kafka_settings import KafkaSettings
from core.stop_request import StopRequest
from core.topic_ids import TopicIds
from warehouse.reader import query
from warehouse.settings import LanderSettings
from warehouse.sink.consumer import ParquetLander
from warehouse.sink.range_metadata import read_landed_position


def settings(data: Path, **changes: Any) -> LanderSettings:
    options = {"group": f"lander-{uuid4().hex[:8]}", "flush_interval_s": 0.3, "session_timeout_s": 6, "retry_s": 0.1}
    return LanderSettings(data=data, **(options | changes))


def until(condition: Callable[[], bool], timeout_s: float = 240) -> None:
    deadline = time.monotonic() + timeout_s
    began = time.monotonic()
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        # Files and log lines of another thread or process raise no event.
        time.sleep(max(0.05, 2 * (time.monotonic() - began)))
        began = time.monotonic()


class Landers:
    """State of landers in threads: whether each has its partitions, and whether any failed."""

    def __init__(self, count: int) -> None:
        self.assigned = [threading.Event() for _ in range(count)]
        self.failed = threading.Event()


@contextmanager
def landing_from(kafka: KafkaSettings, *wanted: LanderSettings) -> Iterator[Landers]:
    """Run landers in threads. The error of a failed one is raised at the end."""
    stop, landers = StopRequest(), Landers(len(wanted))
    errors: list[BaseException] = []

    def work(one: LanderSettings, assigned: threading.Event) -> None:
        try:
            ParquetLander(one, kafka, stop, assigned.set).run()
        except BaseException as error:
            errors.append(error)
            landers.failed.set()

    threads = [threading.Thread(target=work, args=each) for each in zip(wanted, landers.assigned, strict=True)]
    for thread in threads:
        thread.start()
    try:
        yield landers
    finally:
        stop.set()
        for thread in threads:
            thread.join(120)
    assert not any(thread.is_alive() for thread in threads)
    if errors:
        raise errors[0]


def position(kafka: KafkaSettings, data: Path, topic: str, partition: int) -> int:
    """Return the offset up to which the present topic's partition is landed."""
    return read_landed_position(data, topic, partition, TopicIds(kafka).read_ids([topic])[topic])


def produce(
    kafka: KafkaSettings,
    source: str,
    count: int,
    *,
    topic: str = topics.RAW,
    partition: int | None = None,
    first: int = 0,
) -> None:
    producer = Producer(kafka.confluent_options() | {"linger.ms": 5})
    for number in range(first, first + count):
        producer.produce(
            topic,
            b'{"sms_id": %d, "status_id": 6}' % number,
            f"{source}:{number}".encode(),
            **({} if partition is None else {"partition": partition}),
            headers={"source": source.encode(), "received_at": b"1795521600000", "ingest_id": str(number).encode()},
        )
        producer.poll(0)
    assert producer.flush(30) == 0


def landed(data: Path, source: str) -> int:
    if not (data / "smspulse.duckdb").exists():
        return 0
    return int(query(data, "SELECT count(*) AS n FROM raw_webhooks WHERE source = ?", [source])["n"][0])
