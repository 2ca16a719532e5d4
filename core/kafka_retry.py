"""Calls to Kafka that are made again while what they fail of will pass."""

import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

from confluent_kafka import KafkaError, KafkaException

TRIES: Final = 5
# A group's coordinator that has just started, or moved, says these; the client calls them final.
COORDINATOR_IS_STARTING: Final = {
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
}

T = TypeVar("T")


def retry_kafka_call(call: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """Call, and call again while the error is one that will pass; five times within two seconds.

    Raises:
        KafkaException: It did not pass, or is of another kind.
    """
    for attempt in range(TRIES):
        try:
            return call(*arguments, **options)
        except KafkaException as error:
            passes = error.args[0].retriable() or error.args[0].code() in COORDINATOR_IS_STARTING
            if attempt == TRIES - 1 or not passes:
                raise
            time.sleep(0.1 * 2**attempt)
    raise AssertionError
