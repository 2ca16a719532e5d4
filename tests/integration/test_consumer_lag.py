"""Lag is 0 once all records are read, on a real Kafka, also of topics that end in markers or aborted records."""

import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from stream_topics import Raw, partitions_of

from core.consumer_lag import read_group_lag
from core.kafka_settings import KafkaSettings
from core.topics import MESSAGES, OUTCOMES, RAW
from smspulse.processes.children import find_free_port
from warehouse import metrics
from warehouse.datasets import DATASET_BY_TOPIC
from warehouse.settings import LanderSettings
from warehouse.sink.consumer import ParquetLander

WORKER = """
import sys
from pathlib import Path
from prometheus_client import start_http_server
from core.kafka_settings import KafkaSettings
from streams.metrics import REGISTRY
from streams.settings import StreamSettings
from streams.app import run_worker
start_http_server(int(sys.argv[4]), "127.0.0.1", REGISTRY)
kafka = KafkaSettings(bootstrap=sys.argv[3])
run_worker(StreamSettings(state=Path(sys.argv[1]), group=sys.argv[2]), kafka, lambda: None)
"""


def until(condition: Callable[[], bool], within_s: float = 120) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.1)  # metrics and offsets raise no event


def new_topic(kafka: KafkaSettings, name: str) -> str:
    admin = AdminClient(kafka.confluent_options())  # its futures need it
    for created in admin.create_topics([NewTopic(name, 2, 1)]).values():
        created.result(30)
    return name


def write_transaction(kafka: KafkaSettings, topic: str, records: int, *, commit: bool = True) -> None:
    """Write records to partition 0 in one transaction, whose end marker takes an offset too."""
    producer = Producer(kafka.confluent_options() | {"transactional.id": f"{topic}-{time.time_ns()}"})
    producer.init_transactions(30)
    producer.begin_transaction()
    for number in range(records):
        producer.produce(topic, b"{}", f"source:{number}".encode(), 0)
    producer.flush(30)
    (producer.commit_transaction if commit else producer.abort_transaction)(30)


def commit_offset(kafka: KafkaSettings, group: str, topic: str, offset: int) -> None:
    consumer = Consumer(kafka.confluent_options() | {"group.id": group})
    consumer.commit(offsets=[TopicPartition(topic, 0, offset)], asynchronous=False)
    consumer.close()


def lag_metrics(text: str) -> dict[tuple[str, str], float]:
    """Return the lag by topic and partition from a `/metrics` page."""
    return {
        (sample.labels["topic"], sample.labels["partition"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.endswith("_lag_records")
    }


def test_a_group_that_has_read_all_records_has_no_lag_before_markers_and_aborted_records(
    kafka: KafkaSettings, name: str
) -> None:
    topic = new_topic(kafka, name)
    write_transaction(kafka, topic, 5)
    commit_offset(kafka, name, topic, 5)  # after the last record, before its transaction's marker
    assert read_group_lag(kafka, {name: [topic]}) == {name: 0}
    write_transaction(kafka, topic, 3, commit=False)
    assert read_group_lag(kafka, {name: [topic]}) == {name: 0}
    write_transaction(kafka, topic, 1)
    found = read_group_lag(kafka, {name: [topic]})
    assert found is not None
    assert found[name] > 0
    commit_offset(kafka, name, topic, 11)
    assert read_group_lag(kafka, {name: [topic]}) == {name: 0}


def test_a_group_that_has_read_nothing_has_a_lag_of_all_records(kafka: KafkaSettings, name: str) -> None:
    topic = new_topic(kafka, name)
    producer = Producer(kafka.confluent_options())
    for number in range(7):
        producer.produce(topic, b"{}", b"key", number % 2)
    assert producer.flush(30) == 0
    assert read_group_lag(kafka, {name: [topic], f"{name}-other": ["no-such-topic"]}) == {name: 7, f"{name}-other": 0}


def test_without_kafka_the_lag_is_unknown() -> None:
    nowhere = KafkaSettings(bootstrap=f"127.0.0.1:{find_free_port()}", security_protocol="PLAINTEXT")
    assert read_group_lag(nowhere, {"group": [RAW]}) is None


@contextmanager
def landing(settings: LanderSettings, kafka: KafkaSettings) -> Iterator[None]:
    """Run a lander in a thread."""
    stop = threading.Event()
    thread = threading.Thread(target=ParquetLander(settings, kafka, stop).run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(60)
    assert not thread.is_alive()


def exposed(registry: CollectorRegistry) -> dict[tuple[str, str], float]:
    return lag_metrics(generate_latest(registry).decode())


def test_a_lander_without_open_records_has_no_lag_in_its_metrics_and_in_kafka(
    kafka: KafkaSettings, name: str, tmp_path: Path
) -> None:
    settings = LanderSettings(data=tmp_path, group=name, flush_interval_s=0.3)
    write_transaction(kafka, MESSAGES, 5)
    partitions = {(topic, str(number)) for topic in DATASET_BY_TOPIC for number in _partitions(kafka, topic)}
    with landing(settings, kafka):
        until(lambda: exposed(metrics.REGISTRY) == dict.fromkeys(partitions, 0))
        write_transaction(kafka, MESSAGES, 2, commit=False)
        write_transaction(kafka, MESSAGES, 2)
        until(lambda: read_group_lag(kafka, {name: list(DATASET_BY_TOPIC)}) == {name: 0})
        until(lambda: exposed(metrics.REGISTRY) == dict.fromkeys(partitions, 0))
        # Its committed offset is after the markers, for other tools that compute its lag.
        until(lambda: _committed(kafka, name, MESSAGES) == _end(kafka, MESSAGES))


def test_a_worker_without_open_records_has_no_lag_in_its_metrics(
    kafka: KafkaSettings, name: str, tmp_path: Path
) -> None:
    consumer = Consumer(kafka.confluent_options() | {"group.id": name})
    ends = [TopicPartition(topic, number) for topic in (RAW, OUTCOMES) for number in partitions_of(consumer, topic)]
    for end in ends:  # other tests share the topics
        end.offset = consumer.get_watermark_offsets(end, 30)[1]
    consumer.commit(offsets=ends, asynchronous=False)
    consumer.close()
    port = find_free_port()
    arguments = [sys.executable, "-c", WORKER, str(tmp_path), name, kafka.bootstrap, str(port)]
    process = subprocess.Popen(arguments, env=os.environ)

    def served() -> str:
        assert process.poll() is None
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                return str(answer.read(), "utf-8")
        except OSError:
            return ""

    def ended() -> float:
        return sum(
            sample.value
            for family in text_string_to_metric_families(served())
            for sample in family.samples
            if sample.name == "smspulse_stream_records_total" and sample.labels["topic"] == OUTCOMES
        )

    try:
        now = int(time.time() * 1000)
        producer = Producer(kafka.confluent_options())
        for sms_id in range(20):
            raw = Raw(name, sms_id, 7, 0, timestamp=now)
            producer.produce(RAW, raw.value, raw.key, sms_id % 4, headers=raw.headers)
        assert producer.flush(30) == 0
        until(lambda: ended() > 0)
        wanted = {(end.topic, str(end.partition)): 0.0 for end in ends}
        until(lambda: lag_metrics(served()) == wanted)
    finally:
        process.terminate()
        process.wait(30)


def _partitions(kafka: KafkaSettings, topic: str) -> list[int]:
    consumer = Consumer(kafka.confluent_options() | {"group.id": "partitions"})
    try:
        return list(partitions_of(consumer, topic))
    finally:
        consumer.close()


def _committed(kafka: KafkaSettings, group: str, topic: str) -> int:
    consumer = Consumer(kafka.confluent_options() | {"group.id": group})
    try:
        return int(consumer.committed([TopicPartition(topic, 0)], 30)[0].offset)
    finally:
        consumer.close()


def _end(kafka: KafkaSettings, topic: str) -> int:
    consumer = Consumer(kafka.confluent_options() | {"group.id": "ends"})
    try:
        return int(consumer.get_watermark_offsets(TopicPartition(topic, 0), 30)[1])
    finally:
        consumer.close()
