"""A cluster that requires TLS, a login, or both accepts every client of smspulse, and refuses all others."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme
from confluent_kafka.admin import AdminClient, ScramCredentialInfo, ScramMechanism, UserScramCredentialUpsertion
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from kafka import KafkaProducer
from running import post, start
from running_landers import landed, landing_from, settings, until

from core import topics
from core.consumer_lag import read_group_lag
from core.kafka_settings import KafkaSettings
from ingest.sources import add_source, webhook_url
from smspulse.alerting.alert_topic import AlertTopicReader, ReceiverOffsets
from smspulse.broker import kafka_broker
from smspulse.broker.errors import TopicError
from smspulse.broker.kafka_broker import KafkaBroker, build_server_properties
from smspulse.broker.settings import BrokerSettings
from smspulse.broker.topic_admin import ensure_topics
from smspulse.processes.children import LOOPBACK, die_with_parent, find_free_port
from warehouse.reader import query

EXAMPLES = Path(__file__).parents[2] / "examples" / "webhooks"
USER, PASSWORD = "smspulse", "correct horse"
LISTENERS = ("SASL_SSL", "SASL_PLAINTEXT", "SSL")


@dataclass
class Secured:
    """A broker with an open listener and one of each secured kind."""

    ports: dict[str, int]
    authority: Path
    client: Path

    def environment(self, protocol: str, mechanism: str) -> dict[str, str]:
        """Return settings that the broker accepts."""
        settings = {"SECURITY_PROTOCOL": protocol, "BOOTSTRAP": f"{LOOPBACK}:{self.ports[protocol]}"}
        if protocol.endswith("SSL"):
            settings["SSL_CAFILE"] = str(self.authority)
        if protocol == "SSL":
            settings |= {"SSL_CERTFILE": str(self.client), "SSL_KEYFILE": str(self.client)}
        else:
            settings |= {"SASL_MECHANISM": mechanism, "SASL_USERNAME": USER, "SASL_PASSWORD": PASSWORD}
        return {f"SMSPULSE_KAFKA_{name}": value for name, value in settings.items()}


@pytest.fixture(scope="module")
def secured(real_kafka: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("secured")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "authority.pem")
    for name in ("broker", "client"):
        issued = authority.issue_cert(LOOPBACK)
        key = load_pem_private_key(issued.private_key_pem.bytes(), None)  # Kafka reads keys in PKCS 8 only
        spelled = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (folder / f"{name}.pem").write_bytes(b"".join([spelled, *(each.bytes() for each in issued.cert_chain_pems)]))
    ports = {protocol: find_free_port() for protocol in LISTENERS}

    def with_listeners(port: int, controller: int, settings: BrokerSettings, password: str) -> str:
        more = ",".join(f"{protocol}://{LOOPBACK}:{number}" for protocol, number in ports.items())
        plain = "org.apache.kafka.common.security.plain.PlainLoginModule required"
        scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        kinds = ",".join(f"{protocol}:{protocol}" for protocol in LISTENERS)
        added = {"listeners": more, "listener.security.protocol.map": kinds}
        text = build_server_properties(port, controller, settings, password)
        named = [(line, added.get(line.partition("=")[0])) for line in text.splitlines()]
        lines = [f"{line},{further}" if further else line for line, further in named]
        lines += [
            "sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-512",
            "ssl.keystore.type=PEM",
            f"ssl.keystore.location={folder / 'broker.pem'}",
            "ssl.truststore.type=PEM",
            f"ssl.truststore.location={folder / 'authority.pem'}",
            "listener.name.ssl.ssl.client.auth=required",
        ]
        for listener in ("sasl_ssl", "sasl_plaintext"):
            lines += [
                f'listener.name.{listener}.plain.sasl.jaas.config={plain} user_{USER}="{PASSWORD}";',
                f"listener.name.{listener}.scram-sha-512.sasl.jaas.config={scram}",
            ]
        return "\n".join(lines) + "\n"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kafka_broker, "build_server_properties", with_listeners)
        with KafkaBroker(folder / "data", BrokerSettings(port=0, controller_port=0, login=False)) as broker:
            admin = AdminClient({"bootstrap.servers": broker.address})
            user = UserScramCredentialUpsertion(
                USER, ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096), PASSWORD.encode()
            )
            for done in admin.alter_user_scram_credentials([user]).values():
                done.result(30)
            yield Secured(ports, folder / "authority.pem", folder / "client.pem")


def settings_of(secured: Secured, protocol: str, mechanism: str = "PLAIN", **changes: str | None) -> KafkaSettings:
    names = {
        name.removeprefix("SMSPULSE_KAFKA_").lower(): value
        for name, value in secured.environment(protocol, mechanism).items()
    }
    return KafkaSettings.model_validate(names | changes)


def test_the_whole_pipeline_logs_in(secured: Secured, tmp_path: Path) -> None:
    environment = secured.environment("SASL_SSL", "SCRAM-SHA-512")
    running = start(tmp_path / "data", "--broker", environment["SMSPULSE_KAFKA_BOOTSTRAP"], environment=environment)
    try:
        assert post(running.source("whole"), (EXAMPLES / "status.json").read_bytes())[0] == 202
        (row,) = running.wait_for("SELECT outcome FROM messages WHERE source = 'whole'")
    finally:
        code = running.stop()
    assert (code, row.outcome) == (0, "delivered")
    assert PASSWORD not in running.log.read_text()


@contextmanager
def command(log: Path, environment: Mapping[str, str], *arguments: str) -> Iterator[None]:
    """Run a command of `smspulse`, and stop it at the end. Its output is in `log`."""
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "smspulse", *arguments],
            env=os.environ | environment,
            stdout=out,
            stderr=subprocess.STDOUT,
            preexec_fn=die_with_parent(signal.SIGTERM),  # noqa: PLW1509 - safe after a fork
        )
    try:
        yield
    finally:
        process.terminate()
        code = process.wait(120)
    assert code == 0, log.read_text()


@pytest.mark.parametrize("protocol", ["SASL_PLAINTEXT", "SSL"])
def test_every_kind_of_client_logs_in(secured: Secured, tmp_path: Path, protocol: str) -> None:
    """In separate processes if settings reach the client on another path, else in this process."""
    kafka, environment = settings_of(secured, protocol), secured.environment(protocol, "PLAIN")
    source, data, port = protocol.lower(), tmp_path / "data", find_free_port()
    url = webhook_url(f"http://{LOOPBACK}:{port}", source, add_source(data, source))
    where = ("--data", str(data), "--broker", kafka.bootstrap)
    logs = {name: tmp_path / f"{name}.log" for name in ("ingest", "stream")}
    ensure_topics(kafka)
    one = settings(data)
    with (
        command(logs["ingest"], environment, "ingest", *where, "--port", str(port)),
        command(logs["stream"], environment, "stream", *where),
        landing_from(kafka, one),
    ):
        until(lambda: "receiving webhooks at" in logs["ingest"].read_text())
        assert post(url, (EXAMPLES / "status.json").read_bytes())[0] == 202

        def outcomes() -> list[str]:
            if not landed(data, source):
                return []
            return list(query(data, "SELECT outcome FROM messages WHERE source = ?", [source])["outcome"])

        until(lambda: outcomes() == ["delivered"])
        behind = read_group_lag(kafka, {one.group: [topics.RAW]})
        assert behind is not None
        assert behind.keys() == {one.group}
    reader = AlertTopicReader(kafka, "alerts")
    reader.read_existing()
    receiver = ReceiverOffsets(kafka, "alerts-webhook")
    assert receiver.commit(reader.next_offsets)
    assert receiver.read(reader.next_offsets) == reader.next_offsets
    with closing(KafkaProducer(**kafka.kafka_python_options())) as producer:
        assert producer.partitions_for(topics.MESSAGES)
    for log in logs.values():
        assert PASSWORD not in log.read_text(), log


def test_a_refused_login_is_reported_in_one_line(secured: Secured) -> None:
    for protocol, changes in (("SASL_SSL", {"sasl_username": "another"}), ("SSL", {"ssl_certfile": None})):
        with pytest.raises(TopicError, match=rf"or let us in as {protocol}, at 127\.0\.0\.1:[0-9]+ within 2 s; start"):
            ensure_topics(settings_of(secured, protocol, **changes), timeout_s=2)
