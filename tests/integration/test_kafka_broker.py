"""Starts, stops and kills of the embedded Kafka. Each test has its own data folder."""

import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient

from core.kafka_retry import retry_kafka_call
from core.kafka_settings import KafkaSettings
from core.topics import MESSAGES, RAW, TOPICS
from smspulse.broker.errors import BrokerError
from smspulse.broker.kafka_broker import KafkaBroker
from smspulse.broker.locate import find_kafka_settings
from smspulse.broker.lockfile import read_broker_file
from smspulse.broker.settings import BrokerSettings
from smspulse.broker.topic_admin import ensure_topics
from smspulse.processes.children import find_free_port

pytestmark = pytest.mark.usefixtures("real_kafka")

ANY = BrokerSettings(port=0, controller_port=0)
FOREGROUND = """
import logging, sys
from pathlib import Path
from smspulse.broker.errors import BrokerError
from smspulse.broker.foreground import run_broker
logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
try:
    run_broker(Path(sys.argv[1]), "kafka")
except BrokerError as error:
    print("ERROR", error, file=sys.stderr)
    sys.exit(2)
"""


@contextmanager
def started_in_foreground(data: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a broker in its own process, and yield it when it is ready."""
    environment = os.environ | {"SMSPULSE_BROKER_PORT": "0", "SMSPULSE_BROKER_CONTROLLER_PORT": "0"}
    command = [sys.executable, "-c", FOREGROUND, str(data)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "is ready at" in line:
                break
        try:
            assert "is ready at" in "".join(lines), lines
            yield process
        finally:
            process.kill()


def jvm_of(pid: int) -> int:
    """Return a process descriptor of the only child of a process."""
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return os.pidfd_open(int(child))


def ends(pidfd: int, within: float) -> bool:
    ended = bool(select.select([pidfd], [], [], within)[0])
    os.close(pidfd)
    return ended


def test_records_and_offsets_survive_a_restart_on_other_ports_and_a_failed_start_gives_its_reason_in_one_line(
    tmp_path: Path,
) -> None:
    preferred = BrokerSettings(port=find_free_port(), controller_port=find_free_port())
    offset = [TopicPartition(RAW, 0, 1)]
    with KafkaBroker(tmp_path, preferred) as broker:
        assert broker.address == f"127.0.0.1:{preferred.port}"
        kafka = find_kafka_settings(tmp_path, broker.address)
        ensure_topics(kafka)
        producer = Producer(kafka.confluent_options())
        for number in range(100):
            producer.produce(RAW, b"%d" % number, partition=0)
        assert producer.flush(10) == 0
        reader = Consumer(kafka.confluent_options() | {"group.id": "test"})
        reader.commit(offsets=offset, asynchronous=False)
        reader.close()
    with ExitStack() as stack:
        for port in (preferred.port, preferred.controller_port):
            stack.enter_context(socket.create_server(("127.0.0.1", port)))
        broker = stack.enter_context(KafkaBroker(tmp_path, preferred))
        assert broker.address != kafka.bootstrap
        moved = find_kafka_settings(tmp_path, "auto")
        ensure_topics(moved)
        reader = Consumer(moved.confluent_options() | {"group.id": "test"})
        assert reader.get_watermark_offsets(TopicPartition(RAW, 0), timeout=10) == (0, 100)
        assert retry_kafka_call(reader.committed, offset, timeout=10)[0].offset == 1  # the coordinator may be starting
        reader.close()
    meta = tmp_path / "kafka" / "store" / "meta.properties"
    meta.write_text(meta.read_text().replace("node.id=1", "node.id=7"))
    broker = KafkaBroker(tmp_path, ANY)
    with pytest.raises(BrokerError, match=r"^Kafka ended with code 1: .*node.*7.*; its log: .*kafka\.log$") as caught:
        broker.start()
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "broker.json").exists()


def test_concurrent_clients_create_the_topics_once_as_soon_as_kafka_answers(tmp_path: Path) -> None:
    # With a login, no client could try before the login exists.
    settings = BrokerSettings(port=find_free_port(), controller_port=0, login=False)
    kafka = KafkaSettings(bootstrap=f"127.0.0.1:{settings.port}")
    errors: list[BaseException] = []

    def create() -> None:
        try:
            ensure_topics(kafka, timeout_s=240)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=create) for _ in range(3)]
    for thread in threads:
        thread.start()
    with KafkaBroker(tmp_path, settings):
        for thread in threads:
            thread.join(240)
        assert errors == []
        admin = KafkaAdminClient(**kafka.kafka_python_options())
        assert set(admin.list_topics()) == {topic.name for topic in TOPICS}
        resource = ConfigResource(ConfigResourceType.TOPIC, MESSAGES)
        config = admin.describe_configs([resource], config_filter="all")["topic"][MESSAGES]
        assert config["cleanup.policy"]["value"] == "compact"
        assert config["flush.messages"]["value"] == "1", "each batch is fsynced before it is acknowledged"
        admin.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_start_on_the_same_data_is_refused_without_harm_and_a_signal_stops_all_processes(
    tmp_path: Path, number: signal.Signals
) -> None:
    with started_in_foreground(tmp_path) as foreground:
        running = read_broker_file(tmp_path)
        assert running is not None
        assert running.pid == foreground.pid
        with pytest.raises(BrokerError, match=f"process {foreground.pid}, at {running.bootstrap}; use it, stop it"):
            KafkaBroker(tmp_path, ANY).start()
        assert read_broker_file(tmp_path) == running
        ensure_topics(find_kafka_settings(tmp_path, "auto"))

        jvm = jvm_of(foreground.pid)
        foreground.send_signal(number)
        assert foreground.wait(120) == 0
        assert ends(jvm, within=0)
        assert not (tmp_path / "broker.json").exists()


def test_a_killed_broker_ends_its_jvm_the_next_start_works_and_a_killed_kafka_is_reported_in_one_line(
    tmp_path: Path,
) -> None:
    with started_in_foreground(tmp_path) as killed:
        assert read_broker_file(tmp_path) is not None
        ensure_topics(find_kafka_settings(tmp_path, "auto"))
        jvm = jvm_of(killed.pid)
        killed.kill()
        killed.wait()
    with started_in_foreground(tmp_path) as foreground:  # at once: it waits for the lock of the JVM that is ending
        assert ends(jvm, within=0)
        admin = KafkaAdminClient(**find_kafka_settings(tmp_path, "auto").kafka_python_options())
        assert set(admin.list_topics()) == {topic.name for topic in TOPICS}
        admin.close()

        jvm = jvm_of(foreground.pid)
        signal.pidfd_send_signal(jvm, signal.SIGKILL)
        assert foreground.stderr is not None
        assert foreground.wait(120) == 2
        assert ends(jvm, within=0)
        (line,) = foreground.stderr.read().splitlines()
        assert line.startswith("ERROR Kafka was killed by SIGKILL: ")
        assert line.endswith(f"its log: {tmp_path}/logs/kafka.log")
        assert read_broker_file(tmp_path) is None


def test_an_unusable_data_folder_is_reported_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BrokerError, match=r"^The data folder .*/file/data cannot be used: Not a directory; "):
        KafkaBroker(tmp_path / "file" / "data", ANY).start()
