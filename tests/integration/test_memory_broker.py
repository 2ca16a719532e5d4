import os
import subprocess
import sys
from pathlib import Path
from uuid import UUID

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from running import LAND_OFTEN, Pipeline, post, start
from running_landers import until

from core.kafka_settings import KafkaSettings
from core.topics import RAW, TOPICS
from smspulse.broker.embedded import MemoryBroker
from smspulse.broker.errors import BrokerError, TopicError
from smspulse.broker.foreground import choose_broker
from smspulse.broker.locate import find_kafka_settings
from smspulse.broker.lockfile import BrokerFile, read_broker_file
from smspulse.broker.topic_admin import ensure_topics


def test_without_java_on_path_webhooks_are_still_processed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with choose_broker(tmp_path, "auto") as broker:
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        kafka = KafkaSettings(bootstrap=broker.address, in_memory=True)
        ensure_topics(kafka, timeout_s=10)
        producer = Producer(kafka.confluent_options())
        producer.produce(RAW, b"body", b"key")
        assert producer.flush(10) == 0
        consumer = Consumer(kafka.confluent_options() | {"group.id": "test", "auto.offset.reset": "earliest"})
        assert set(consumer.list_topics(timeout=10).topics) >= {topic.name for topic in TOPICS}
        consumer.subscribe([RAW])
        message = consumer.poll(20)
        assert message is not None
        assert (message.key(), message.value()) == (b"key", b"body")
        consumer.close()


def test_its_file_exists_while_it_runs_and_a_second_start_is_refused(tmp_path: Path) -> None:
    with MemoryBroker(tmp_path) as broker:
        assert read_broker_file(tmp_path) == BrokerFile(broker.address, "memory", os.getpid(), broker.run_id)
        with pytest.raises(BrokerError, match=f"process {os.getpid()}, at {broker.address}"):
            MemoryBroker(tmp_path).start()
        assert read_broker_file(tmp_path) is not None, "the refused start took nothing from the running one"
    assert not (tmp_path / "broker.json").exists()
    broker.stop()


def test_another_number_of_partitions_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with MemoryBroker(tmp_path) as broker:
        kafka = KafkaSettings(bootstrap=broker.address, in_memory=True, partitions=6)
        with pytest.raises(TopicError, match=r"has 4 partitions and SMSPULSE_KAFKA_PARTITIONS is 6; set it to 4"):
            ensure_topics(kafka, timeout_s=10)


def test_all_clients_of_a_run_get_the_same_id_and_the_next_run_has_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMSPULSE_KAFKA_MEMORY_RUN", "of a run that ended")
    runs = []
    for _ in range(2):
        with MemoryBroker(tmp_path) as broker:
            port = broker.address.rpartition(":")[2]
            for address in ("auto", broker.address, f"localhost:{port}"):
                found = find_kafka_settings(tmp_path, address)
                assert (found.bootstrap, found.in_memory, found.memory_run) == (broker.address, True, broker.run_id)
            runs.append(broker.run_id)
    assert len({str(UUID(run)) for run in runs}) == 2


def test_a_client_without_the_data_folder_takes_the_run_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMSPULSE_KAFKA_IN_MEMORY", "true")
    monkeypatch.setenv("SMSPULSE_KAFKA_MEMORY_RUN", "3b2c")
    found = find_kafka_settings(tmp_path, "127.0.0.1:1")
    assert (found.bootstrap, found.in_memory, found.memory_run) == ("127.0.0.1:1", True, "3b2c")


EXAMPLE = (Path(__file__).parents[2] / "examples" / "webhooks" / "status.json").read_bytes()
_PARTITIONS = 8
"""Partitions that the stream reads: four of each stage."""


def records_by_topic(pipeline: Pipeline) -> dict[str, int]:
    """Return the topics that are not empty, with the number of offsets that are used in them."""
    kafka = find_kafka_settings(pipeline.data, "auto")
    consumer = Consumer(kafka.confluent_options() | {"group.id": "test"})
    found = {}
    for name, topic in consumer.list_topics(timeout=10).topics.items():
        ends = [consumer.get_watermark_offsets(TopicPartition(name, number), 10)[1] for number in topic.partitions]
        if sum(ends):
            found[name] = sum(ends)
    consumer.close()
    return found


def check(pipeline: Pipeline) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "smspulse", "check", "--data", str(pipeline.data)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_without_webhooks_it_has_no_records_and_all_checks_hold(tmp_path: Path) -> None:
    without = ("--without", "page", "--without", "alerts")
    pipeline = start(tmp_path / "data", "--broker", "memory", *without, environment=LAND_OFTEN)
    try:
        # It shows records of aborted transactions as data, so a new owner of a partition must write none.
        until(lambda: pipeline.log.read_text().count("owns partition") == _PARTITIONS)
        assert records_by_topic(pipeline) == {}
        checked = check(pipeline)
        assert checked.returncode == 0, checked.stdout
        assert post(pipeline.source("mine"), EXAMPLE)[0] == 202
        pipeline.wait_for("SELECT 1 FROM raw_webhooks JOIN messages USING (sms_id)")
        assert pipeline.rows("FROM deadletters") == []
        assert "are no states" not in pipeline.log.read_text()
    finally:
        assert pipeline.stop() == 0
