"""kafka-python's admin client, with a complete clean-up."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kafka import KafkaAdminClient
from kafka.net.compat import KafkaNetClient

from core.kafka_settings import KafkaSettings


@contextmanager
def open_admin_client(kafka: KafkaSettings, **options: Any) -> Iterator[Any]:
    """Connect an admin client for a context.

    Its constructor starts a thread and then waits for a broker. If none answers, kafka-python 3.0 leaves the thread
    running, and it tries to connect until the process ends. Here the thread is ended.

    Args:
        kafka: Settings of the cluster.
        options: Further options of the client.

    Raises:
        kafka.errors.KafkaError: No broker answered in time, or it refused the login.
    """
    clients: list[KafkaNetClient] = []

    def make_client(**given: Any) -> KafkaNetClient:
        clients.append(KafkaNetClient(**given))
        return clients[-1]

    try:
        admin = KafkaAdminClient(kafka_client=make_client, **options, **kafka.kafka_python_options())
    except BaseException:
        for client in clients:
            client.close()
            # `KafkaAdminClient.close` does the same.
            client._net.stop()
        raise
    try:
        yield admin
    finally:
        admin.close()
