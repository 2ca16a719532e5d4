"""The embedded Kafka refuses users of the machine who cannot read the data folder."""

import re
import socket
import struct
import subprocess
from contextlib import closing
from pathlib import Path

from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition
from pydantic import SecretStr

from core.kafka_settings import KafkaSettings
from core.topics import RAW
from smspulse.broker.download import find_kafka_cache
from smspulse.broker.kafka_broker import KafkaBroker
from smspulse.broker.locate import find_kafka_settings
from smspulse.broker.login import read_login
from smspulse.broker.settings import BrokerSettings
from smspulse.broker.topic_admin import ensure_topics

LIMIT_S = 60
REFUSED_AFTER_S = 5
"""A refused client retries until this timeout. An accepted client has its answer much earlier."""


def broker_settings(*, login: bool) -> BrokerSettings:
    return BrokerSettings(port=0, controller_port=0, login=login)


def read(kafka: KafkaSettings) -> list[bytes | None]:
    options = {"group.id": "test", "enable.partition.eof": True, "enable.auto.commit": False}
    found = []
    with closing(Consumer(kafka.confluent_options() | options)) as consumer:
        consumer.assign([TopicPartition(RAW, 0, 0)])
        while (message := consumer.poll(LIMIT_S)) is not None:
            if message.error() is not None:
                assert message.error().code() == KafkaError._PARTITION_EOF, message.error()
                return found
            found.append(message.value())
    raise AssertionError(found)


def was_written(kafka: KafkaSettings, value: bytes, within_s: float) -> bool:
    producer = Producer(kafka.confluent_options() | {"log_level": 0})
    producer.produce(RAW, value, partition=0)
    left = producer.flush(within_s)
    producer.purge()
    return left == 0


def listeners(data: Path) -> list[str]:
    """Return the addresses of Kafka's listeners: for clients, and of its controller, which controls everything."""
    lines = (data / "kafka" / "server.properties").read_text().splitlines()
    (named,) = (line for line in lines if line.startswith("listeners="))
    return re.findall(r"://([^,]+)", named)


def answers_without_login(address: str) -> bool:
    """Return whether a listener answers a DescribeCluster request of a client without a login."""
    host, _, port = address.rpartition(":")
    header = struct.pack(">hhihb", 60, 1, 1, -1, 0)  # key and version, number of the request, no client, no tags
    request = header + bytes([0, 2, 0])  # no authorized operations, endpoints of controllers, no tags
    with socket.create_connection((host, int(port)), timeout=LIMIT_S) as connection:
        connection.sendall(struct.pack(">i", len(request)) + request)
        try:
            return connection.recv(4) != b""
        except ConnectionResetError:
            return False


def describe_with_kafkas_own_tool(address: str, properties: Path) -> str:
    """Return the description of a topic by Kafka's own command line tool."""
    tool = ["java", "-cp", f"{find_kafka_cache()}/*", "kafka.admin.ConfigCommand", "--bootstrap-server", address]
    asked = ["--command-config", str(properties), "--describe", "--all", "--topic", RAW]
    done = subprocess.run([*tool, *asked], capture_output=True, text=True, check=False, timeout=2 * LIMIT_S)
    return done.stdout + done.stderr


def test_a_store_without_logins_is_continued_and_accepts_only_readers_of_the_data_folder(
    real_kafka: None, tmp_path: Path
) -> None:
    with KafkaBroker(tmp_path, broker_settings(login=False)):
        before = find_kafka_settings(tmp_path, "auto")
        ensure_topics(before)
        assert all(answers_without_login(address) for address in listeners(tmp_path))
        assert was_written(before, b"of an earlier version", LIMIT_S)

    with KafkaBroker(tmp_path, broker_settings(login=True)) as broker:
        kafka = find_kafka_settings(tmp_path, "auto")
        assert kafka == find_kafka_settings(tmp_path, broker.address)
        assert was_written(kafka, b"of this one", LIMIT_S)

        without = KafkaSettings(bootstrap=broker.address, security_protocol="PLAINTEXT")
        guessed = kafka.model_copy(update={"sasl_password": SecretStr("guessed")})
        assert not was_written(without, b"forged", REFUSED_AFTER_S)
        assert not was_written(guessed, b"forged", REFUSED_AFTER_S)
        assert not any(answers_without_login(address) for address in listeners(tmp_path))
        assert read(kafka) == [b"of an earlier version", b"of this one"]

        login = read_login(tmp_path)
        assert login is not None
        listed = subprocess.run(["ps", "-eww", "-o", "args="], capture_output=True, text=True, check=True).stdout
        assert login.password not in listed
        description = describe_with_kafkas_own_tool(broker.address, tmp_path / "kafka" / "client.properties")
        assert "flush.messages=1" in description, description
        for name in ("login.json", "client.properties", "server.properties"):
            assert (tmp_path / "kafka" / name).stat().st_mode & 0o777 == 0o600, name
    assert login.password not in (tmp_path / "logs" / "kafka.log").read_text()
