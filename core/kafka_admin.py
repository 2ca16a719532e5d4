"""kafka-python's admin client, of which nothing is left behind."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kafka import KafkaAdminClient
from kafka.net.compat import KafkaNetClient

from core.kafka_settings import KafkaSettings


@contextmanager
def open_admin_client(kafka: KafkaSettings, **options: Any) -> Iterator[Any]:
    """Connect an admin client for a context.

    Its constructor starts a thread and then waits for a broker. Where none answers, kafka-python (3.0) leaves the
    thread behind, which goes on trying to connect as long as the process lives. Here it is ended.

    Args:
        kafka: Which cluster.
        options: Further ones of the client.

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
            client._net.stop()  # as the admin client's own `close` does
        raise
    try:
        yield admin
    finally:
        admin.close()
