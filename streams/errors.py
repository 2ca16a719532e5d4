"""Errors of the stream worker. Each ends the worker: what it holds uncommitted is read again by its successor."""

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
    """Another worker has taken the partition over: Kafka fenced this one's producer."""


class LostRecordsError(StreamError):
    """Records that Kafka still has were not handed to us. A restart reads them from the committed offset."""


class StateError(StreamError):
    """The local state cannot be opened or written."""


class GroupError(StreamError):
    """The consumer group does not take the worker, and waiting does not help."""


def end_process(error: BaseException) -> NoReturn:
    """Say why, and end the process here and now, whatever else is under way: it is started again."""
    if isinstance(error, StreamError | KafkaException):
        _log.critical("the worker stops: %s", error)
    else:
        _log.critical("the worker stops: %r", error, exc_info=error)
    logging.shutdown()
    os._exit(_FAILED)
