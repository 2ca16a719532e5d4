"""Errors of the stream worker. Each ends the worker, and its successor reads its uncommitted records again."""

import logging
import os
from typing import Final, NoReturn

from confluent_kafka import KafkaException

from core.errors import SmspulseError

_log = logging.getLogger(__name__)

_FAILED: Final = 2


class StreamError(SmspulseError):
    """The worker cannot go on."""


class OwnershipLostError(StreamError):
    """Another worker owns the partition: Kafka fenced the producer of this one."""


class LostRecordsError(StreamError):
    """The client skipped records that Kafka still has. A restart reads them from the committed offset."""


class StateError(StreamError):
    """The local state cannot be opened or written."""


class GroupError(StreamError):
    """The consumer group refuses the worker permanently."""


def end_process(error: BaseException) -> NoReturn:
    """Log the reason and end the process at once. Its supervisor starts it again."""
    if isinstance(error, StreamError | KafkaException):
        _log.critical("the worker stops: %s", error)
    else:
        _log.critical("the worker stops: %r", error, exc_info=error)
    logging.shutdown()
    os._exit(_FAILED)
