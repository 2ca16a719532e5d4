"""Retry of Kafka calls that fail with a transient error."""

import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

from confluent_kafka import KafkaError, KafkaException

TRIES: Final = 5
# A group coordinator answers with these after a start or a move. librdkafka does not mark them as retriable.
COORDINATOR_IS_STARTING: Final = {
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
}

T = TypeVar("T")


def retry_kafka_call(call: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """Call, and repeat the call on transient errors: up to five calls within two seconds.

    Raises:
        KafkaException: The error is not transient, or the last call failed.
    """
    for attempt in range(TRIES - 1):
        try:
            return call(*arguments, **options)
        except KafkaException as error:
            if not error.args[0].retriable() and error.args[0].code() not in COORDINATOR_IS_STARTING:
                raise
            time.sleep(0.1 * 2**attempt)
    return call(*arguments, **options)
