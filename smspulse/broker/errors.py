"""Errors of the embedded broker, its topics, and the search for a broker."""

from pathlib import Path

from core.errors import SmspulseError


class BrokerError(SmspulseError):
    """The embedded broker could not be started, or has ended. The text is one line: the problem and its fix."""


class KafkaMissingError(BrokerError):
    """A real Kafka cannot run on this machine, and the in-memory broker may not replace it."""

    is_permanent = True


class FileLimitError(BrokerError):
    """The system allows this process too few open files."""

    is_permanent = True


class KafkaAccessError(SmspulseError):
    """A command has no Kafka cluster that it can use."""


class NoBrokerError(KafkaAccessError):
    """No broker runs on the data folder, and none is named."""


class LoginUnreadableError(KafkaAccessError):
    """The broker of the data folder needs its login, which this user cannot read.

    Attributes:
        bootstrap: Address of the broker.
    """

    def __init__(self, bootstrap: str, path: Path) -> None:
        super().__init__(
            f"Kafka at {bootstrap} needs the login in {path}, which this user may not read: "
            "run it as the user who runs the pipeline"
        )
        self.bootstrap = bootstrap


class TopicError(SmspulseError):
    """The topics cannot be used. The text is one line: the problem and its fix."""


class TopicMisfitError(TopicError):
    """The partitions of the topics do not match the settings."""

    is_permanent = True
