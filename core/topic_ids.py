"""Identity of topics: a topic that is deleted and created again has the same name and another id."""

from collections.abc import Collection
from typing import Final

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient

from core.kafka_settings import KafkaSettings

_TIMEOUT_S: Final = 3.0
_URL_SAFE: Final = str.maketrans("+/", "-_")
_IN_MEMORY: Final = "memory-"


class TopicIds:
    """Reads the ids of topics from Kafka."""

    def __init__(self, kafka: KafkaSettings) -> None:
        self._kafka = kafka
        # One client for all calls: it keeps its connections, and its futures are lost when it is garbage collected.
        self._admin = None if kafka.in_memory else AdminClient(kafka.confluent_options() | {"log_level": 2})

    def read_ids(self, topics: Collection[str]) -> dict[str, str]:
        """Return the id of each topic: 22 characters of URL-safe base64, as Kafka's own tools show it.

        Topics that do not exist are left out. Topics of the in-memory broker have no id; the id of its run is used.

        Raises:
            KafkaException: Kafka does not answer.
        """
        if self._admin is None:
            return dict.fromkeys(topics, f"{_IN_MEMORY}{self._kafka.memory_run}")
        described = self._admin.describe_topics(TopicCollection(list(topics)), request_timeout=_TIMEOUT_S)
        found = {}
        for name, future in described.items():
            try:
                found[name] = to_url_safe_id(str(future.result(2 * _TIMEOUT_S).topic_id))
            except KafkaException as error:
                if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                    raise
            except TimeoutError as error:
                raise KafkaException(KafkaError(KafkaError._TIMED_OUT)) from error
        return found


def to_url_safe_id(topic_id: str) -> str:
    """Return a topic's id as Kafka's own tools show it. librdkafka writes `+` and `/` instead of `-` and `_`."""
    return topic_id.translate(_URL_SAFE)


def is_in_memory_id(topic_id: str) -> bool:
    """Return whether an id belongs to a run of the in-memory broker."""
    return topic_id.startswith(_IN_MEMORY)
