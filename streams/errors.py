"""Errors of the stream worker, and the place where errors of Kafka's client become them.

A `StreamError` is terminal: it ends the worker, and its successor reads its uncommitted records again. After a
`TransientKafkaError` the worker tries again: it claims the partition again, or waits for the next check of the topics.
If that is not possible either, the worker ends.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from confluent_kafka import KafkaException

from core.errors import SmspulseError

WORKER_STOPS: Final = "the worker stops"


class StreamError(SmspulseError):
    """The worker cannot go on."""


class OwnershipLostError(StreamError):
    """Another worker owns the partition: Kafka fenced the producer of this one."""


class LostRecordsError(StreamError):
    """The client skipped records that Kafka still has. A restart reads them from the committed offset."""


class StateError(StreamError):
    """The local state cannot be opened or written."""


class TransientKafkaError(SmspulseError):
    """Kafka did not answer or refused, and the result of the call is not known. A later call can succeed."""


@contextmanager
def typed_kafka_errors(owned: object) -> Iterator[None]:
    """Raise errors of confluent-kafka by type.

    Args:
        owned: What the calls are about, for the text of the error.

    Raises:
        OwnershipLostError: The producer is useless from now on: it was fenced.
        TransientKafkaError: Any other error. What it stopped can be repeated with a new client.
    """
    try:
        yield
    except KafkaException as error:
        reason = error.args[0]
        if reason.fatal():
            msg = f"{owned} belongs to another worker: {reason.str()}"
            raise OwnershipLostError(msg) from error
        raise TransientKafkaError(reason.str()) from error
