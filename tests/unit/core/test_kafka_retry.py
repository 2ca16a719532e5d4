"""Calls to Kafka that are made again."""

import pytest
from confluent_kafka import KafkaError, KafkaException

from core import kafka_retry
from core.kafka_retry import TRIES, retry_kafka_call


class Kafka:
    """Fails with each of the errors, one after the other, and answers then."""

    def __init__(self, *errors: int) -> None:
        self.errors, self.asked = list(errors), 0

    def ask(self, question: str, *, loudly: bool) -> str:
        self.asked += 1
        if self.errors:
            raise KafkaException(KafkaError(self.errors.pop(0)))
        return question.upper() if loudly else question


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr(kafka_retry.time, "sleep", found.append)
    return found


def test_a_coordinator_that_is_starting_is_asked_again(waits: list[float]) -> None:
    kafka = Kafka(KafkaError.NOT_COORDINATOR, KafkaError.COORDINATOR_LOAD_IN_PROGRESS)
    assert retry_kafka_call(kafka.ask, "where", loudly=True) == "WHERE"
    assert waits == [0.1, 0.2]


def test_what_does_not_pass_is_raised(waits: list[float]) -> None:
    kafka = Kafka(*[KafkaError.COORDINATOR_NOT_AVAILABLE] * 9)
    with pytest.raises(KafkaException):
        retry_kafka_call(kafka.ask, "where", loudly=True)
    assert (kafka.asked, len(waits)) == (TRIES, TRIES - 1)


def test_what_will_not_pass_is_asked_once(waits: list[float]) -> None:
    kafka = Kafka(KafkaError.TOPIC_AUTHORIZATION_FAILED)
    with pytest.raises(KafkaException):
        retry_kafka_call(kafka.ask, "where", loudly=True)
    assert (kafka.asked, waits) == (1, [])
