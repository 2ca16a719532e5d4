"""How clients find the login of the embedded Kafka, and what those see who may not read it."""

import json
import os
import socket
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from privileges import run_unprivileged

from core.atomic_file import write_file_atomically
from core.kafka_settings import KafkaSettings
from smspulse.broker.errors import BrokerError
from smspulse.broker.kafka_broker import build_server_properties
from smspulse.broker.locate import find_kafka_settings
from smspulse.broker.lockfile import BrokerFile, acquire_broker_lock
from smspulse.broker.login import login_path, read_login, write_login
from smspulse.broker.settings import BrokerSettings
from smspulse.processes.children import find_free_port


@pytest.fixture(autouse=True)
def no_cluster_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SMSPULSE_KAFKA_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[str]:
    """The address of a listener, which the data folder says is its Kafka; nobody logs in to it here."""
    lock = acquire_broker_lock(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        write_login(tmp_path, address)
        file = BrokerFile(address, "kafka", os.getpid(), has_login=True)
        write_file_atomically(tmp_path / "broker.json", json.dumps(asdict(file)))
        yield address
    os.close(lock)


def is_let_in(data: Path, kafka: KafkaSettings) -> bool:
    login = read_login(data)
    assert login is not None
    return (kafka.security_protocol, kafka.sasl_username, kafka.sasl_password.get_secret_value()) == (
        "SASL_PLAINTEXT",
        login.username,
        login.password,
    )


def test_clients_take_the_login_from_the_data_folder_whatever_the_environment_says_of_another_cluster(
    running: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = running.rpartition(":")[2]
    for address in ("auto", running, f"localhost:{port}"):
        assert is_let_in(tmp_path, find_kafka_settings(tmp_path, address))
    assert find_kafka_settings(tmp_path, "kafka1:9092") == KafkaSettings(bootstrap="kafka1:9092")
    monkeypatch.setenv("SMSPULSE_KAFKA_SECURITY_PROTOCOL", "SSL")
    assert is_let_in(tmp_path, find_kafka_settings(tmp_path, "auto"))
    assert find_kafka_settings(tmp_path, "kafka1:9092").security_protocol == "SSL"


def test_a_client_that_starts_while_kafka_is_away_has_its_login(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kafka").mkdir()
    write_login(tmp_path, f"127.0.0.1:{find_free_port()}")
    login = read_login(tmp_path)
    assert login is not None
    assert is_let_in(tmp_path, find_kafka_settings(tmp_path, login.bootstrap))
    assert find_kafka_settings(tmp_path, "127.0.0.1:1").security_protocol == "PLAINTEXT"
    monkeypatch.setenv("SMSPULSE_KAFKA_SECURITY_PROTOCOL", "PLAINTEXT")
    assert find_kafka_settings(tmp_path, login.bootstrap).security_protocol == "PLAINTEXT"


def test_the_password_is_made_once_and_for_its_user_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    (tmp_path / "kafka").mkdir()
    first, second = (write_login(tmp_path, f"127.0.0.1:{port}") for port in (1, 2))
    os.umask(before)
    assert first.password == second.password
    assert len(first.password) >= 43, "256 random bits"
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "kafka").iterdir()}
    assert modes == {"login.json": 0o600, "client.properties": 0o600}
    assert first.password in (tmp_path / "kafka" / "client.properties").read_text()
    assert first.password not in str(find_kafka_settings(tmp_path, "127.0.0.1:2"))


def test_a_damaged_login_says_how_to_get_another(tmp_path: Path, running: str) -> None:
    login_path(tmp_path).write_text("{")
    with pytest.raises(BrokerError, match=r"login\.json is damaged: delete it, and start the broker again"):
        find_kafka_settings(tmp_path, "auto")
    login_path(tmp_path).unlink()
    with pytest.raises(BrokerError, match=r"login\.json is missing: start the broker again"):
        find_kafka_settings(tmp_path, running)


def test_the_node_alone_may_send_its_password_in_clear() -> None:
    text = build_server_properties(1, 2, BrokerSettings(), "s3cret")
    lines = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    assert lines["listener.security.protocol.map"] == "CLIENTS:SASL_PLAINTEXT,CONTROLLER:SASL_PLAINTEXT"
    assert "user_" not in lines["listener.name.clients.scram-sha-512.sasl.jaas.config"]
    assert lines["listener.name.clients.plain.sasl.jaas.config"].count("user_") == 1
    assert 'user_node="s3cret"' in lines["listener.name.clients.plain.sasl.jaas.config"]


def test_who_may_not_read_the_login_sees_that_kafka_runs(running: str, tmp_path: Path) -> None:
    login_path(tmp_path).chmod(0)
    environment = os.environ | {"COLUMNS": "300"}
    status = run_unprivileged("-m", "smspulse", "status", "--format", "json", "--data", str(tmp_path), env=environment)
    broker = json.loads(status.stdout)["processes"][0]
    what = f"at {running}; its lag is unknown: this user may not read its login"
    assert broker == {"name": "broker", "ok": True, "what": what}
    doctor = run_unprivileged("-m", "smspulse", "doctor", "--data", str(tmp_path), env=environment)
    assert (
        f"Kafka at {running} needs the login in {login_path(tmp_path)}, which this user may not read" in doctor.stdout
    )
    login_path(tmp_path).chmod(0o600)
