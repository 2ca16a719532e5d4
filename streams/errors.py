"""Errors of the stream worker. Each ends the worker: what it holds uncommitted is read again by its successor."""

from gateway.errors import SmspulseError


class StreamError(SmspulseError):
    """The worker cannot go on."""


class OwnershipLostError(StreamError):
    """Another worker has taken the partition over: Kafka fenced this one's producer."""


class LostRecordsError(StreamError):
    """Records that Kafka still has were not handed to us. A restart reads them from the committed offset."""


class StateError(StreamError):
    """The local state cannot be opened or written."""
