"""A real Kafka for tests, started with the code of the product."""

import os
from collections.abc import Iterator

import pytest
from formatted_store import copy_or_format_store

from core.kafka_settings import KafkaSettings
from smspulse.broker.download import list_missing_programs
from smspulse.broker.kafka_broker import KafkaBroker
from smspulse.broker.settings import BrokerSettings
from smspulse.broker.topic_admin import ensure_topics

KafkaBroker._format_store = copy_or_format_store  # type: ignore[method-assign]


@pytest.fixture(scope="session")
def real_kafka() -> None:
    """Skip the test without a real Kafka, or fail if one is required."""
    if missing := list_missing_programs():
        line = f"a real Kafka needs: {'; '.join(missing)}"
        if os.environ.get("SMSPULSE_REQUIRE_KAFKA") == "1":
            pytest.fail(line, pytrace=False)
        pytest.skip(line)


@pytest.fixture(scope="session")
def kafka(real_kafka: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaSettings]:
    """A running Kafka on free ports, with the topics of `core.topics`; its data is new in each test run.

    Tests share it: each uses its own sources, consumer groups and data folders.
    """
    # Tests pass only its address to programs. Tests of `smspulse up` and of the broker start one with a login.
    settings = BrokerSettings(port=0, controller_port=0, login=False)
    with KafkaBroker(tmp_path_factory.mktemp("broker"), settings) as broker:
        # All are set here, because the environment may name the developer's own cluster.
        running = KafkaSettings(
            bootstrap=broker.address,
            in_memory=False,
            partitions=4,
            replication=1,
            min_insync=1,
            security_protocol="PLAINTEXT",
        )
        ensure_topics(running, timeout_s=30)
        yield running


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """Return a name for a source or a group, made from that of the test."""
    return request.node.name.replace("_", "-")[:60]
