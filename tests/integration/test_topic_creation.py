import threading
import time

import pytest
from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient

from core.kafka_settings import KafkaSettings
from core.topics import TOPICS
from smspulse.broker.errors import TopicError
from smspulse.broker.topic_admin import ensure_topics
from smspulse.processes.children import find_free_port


def test_topics_exist_with_their_configuration_and_a_second_call_changes_nothing(kafka: KafkaSettings) -> None:
    ensure_topics(kafka)
    admin = KafkaAdminClient(**kafka.kafka_python_options())
    names = [ConfigResource(ConfigResourceType.TOPIC, topic.name) for topic in TOPICS]
    described = admin.describe_configs(names, config_filter="all")["topic"]
    for topic in TOPICS:
        expected = topic.kafka_config() | {"min.insync.replicas": "1"}
        assert {name: described[topic.name][name]["value"] for name in expected} == expected
    counts = {each["name"]: len(each["partitions"]) for each in admin.describe_topics([t.name for t in TOPICS])}
    assert counts == {t.name: 4 if t.partitioned_by == "message" else 1 for t in TOPICS}
    admin.close()


def test_another_number_of_partitions_is_refused_with_both_numbers_and_the_remedy(kafka: KafkaSettings) -> None:
    with pytest.raises(TopicError, match=r"has 4 partitions and SMSPULSE_KAFKA_PARTITIONS is 3; set it to 4"):
        ensure_topics(kafka.model_copy(update={"partitions": 3}))


def test_an_unreachable_broker_is_retried_until_the_timeout() -> None:
    address = f"127.0.0.1:{find_free_port()}"
    begun = time.monotonic()
    with pytest.raises(TopicError, match=rf"No Kafka broker answered at {address} within 1\.5 s; start one"):
        ensure_topics(KafkaSettings(bootstrap=address), timeout_s=1.5)
    assert time.monotonic() - begun > 1.4


def test_a_failed_connection_leaves_no_thread() -> None:
    before = threading.active_count()
    with pytest.raises(TopicError, match="No Kafka broker answered"):
        ensure_topics(KafkaSettings(bootstrap=f"127.0.0.1:{find_free_port()}"), timeout_s=0.5)
    assert threading.active_count() == before
