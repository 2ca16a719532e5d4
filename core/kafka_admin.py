"""kafka-python's admin client, with a complete clean-up."""

from contextlib import suppress
from typing import Any

from kafka import KafkaAdminClient

from core.kafka_settings import KafkaSettings


class KafkaPythonAdmin(KafkaAdminClient):  # type: ignore[misc] # untyped
    """An admin client whose thread ends, too, if no broker answers.

    The constructor starts a thread and then waits for a broker. If none answers, kafka-python 3.0 leaves the thread
    running, and it tries to connect until the process ends.

    Args:
        kafka: Settings of the cluster.
        options: Further options of the client.

    Raises:
        kafka.errors.KafkaError: No broker answered in time, or it refused the login.
    """

    # The base class sets it only when a broker has answered, and does not close a client without it.
    _closed = False

    def __init__(self, kafka: KafkaSettings, **options: Any) -> None:
        options |= kafka.kafka_python_options()
        try:
            super().__init__(**options)
        except BaseException:
            # Without the client, there is no thread yet.
            with suppress(AttributeError):
                self.close()
            raise
