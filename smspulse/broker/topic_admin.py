"""Creation and check of the topics of `core.topics`."""

import logging
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from kafka import KafkaProducer
from kafka.errors import KafkaError, KafkaTimeoutError, TopicAlreadyExistsError, for_code

from core.kafka_admin import KafkaPythonAdmin
from core.kafka_settings import KafkaSettings
from core.topics import TOPICS, find_partition_mismatch
from smspulse.broker.errors import TopicError, TopicMisfitError
from smspulse.broker.locate import find_kafka_settings

log = logging.getLogger(__name__)


def connect_with_topics(data: Path, broker: str) -> KafkaSettings:
    """Return the settings of the broker of a command, which has every topic from now on.

    Raises:
        KafkaAccessError: The command has no broker.
        TopicError: The topics cannot be created.
    """
    kafka = find_kafka_settings(data, broker)
    ensure_topics(kafka)
    return kafka


def ensure_topics(kafka: KafkaSettings, timeout_s: float = 30) -> None:
    """Create every topic of `core.topics` that is missing. Calling it again, or twice at once, changes nothing.

    The configuration of an existing topic is not changed, because its owner may have tuned it.

    Args:
        kafka: The cluster, with the number of partitions and replicas.
        timeout_s: Seconds to try to reach a broker, and then seconds that the broker may take.

    Raises:
        TopicMisfitError: A topic has the wrong number of partitions.
        TopicError: No broker answered in time, or the cluster refused a topic.
    """
    try:
        # A longest pause of 30 s, the default, would make the client wait as long after the start of a broker.
        options = {"bootstrap_timeout_ms": int(timeout_s * 1000), "reconnect_backoff_max_ms": 500}
        with closing(KafkaPythonAdmin(kafka, **options)) as admin:
            _create_missing_topics(kafka, admin, timeout_s)
            _check_topics(kafka, admin.describe_topics([topic.name for topic in TOPICS]))
    except KafkaTimeoutError as error:
        protocol = kafka.security_protocol
        # The client writes a refused login to the log only.
        refused = "" if protocol == "PLAINTEXT" else f", or let us in as {protocol},"
        message = (
            f"No Kafka broker answered{refused} at {kafka.bootstrap} within {timeout_s:g} s; "
            "start one (`smspulse broker`) or set SMSPULSE_KAFKA_BOOTSTRAP" + (refused and " and the login next to it")
        )
        raise TopicError(message) from error
    except (KafkaError, OSError) as error:
        message = f"Kafka at {kafka.bootstrap} cannot be used: {type(error).__name__}: {error}"
        raise TopicError(message) from error


def _create_missing_topics(kafka: KafkaSettings, admin: Any, timeout_s: float) -> None:
    if kafka.in_memory:
        # It has no CreateTopics: a topic appears when a producer requests its metadata. It has no configuration either.
        producer = KafkaProducer(**kafka.kafka_python_options())
        for topic in TOPICS:
            producer.partitions_for(topic.name)
        producer.close()
        return
    existing = set(admin.list_topics())
    for topic in (each for each in TOPICS if each.name not in existing):
        options = {
            "num_partitions": topic.partition_count(kafka.partitions),
            "replication_factor": kafka.replication,
            "configs": topic.kafka_config() | {"min.insync.replicas": str(kafka.min_insync)},
        }
        # Another process may be faster.
        with suppress(TopicAlreadyExistsError):
            admin.create_topics({topic.name: options}, timeout_ms=int(timeout_s * 1000))
            log.info("Created topic %s with %d partitions", topic.name, options["num_partitions"])
    admin.wait_for_topics([topic.name for topic in TOPICS], timeout_ms=int(timeout_s * 1000))


def _check_topics(kafka: KafkaSettings, described: list[dict[str, Any]]) -> None:
    for topic in described:
        # The client does not raise errors of single topics.
        if topic["error_code"]:
            raise for_code(topic["error_code"])(topic["name"])
    wrong = find_partition_mismatch({topic["name"]: len(topic["partitions"]) for topic in described}, kafka.partitions)
    if wrong:
        message = f"The topics of smspulse do not fit together: {wrong[0]}; {wrong[1]}"
        raise TopicMisfitError(message)
