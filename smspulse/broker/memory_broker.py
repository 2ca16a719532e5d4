"""The embedded broker in memory, where there is no Java."""

import threading
from pathlib import Path
from typing import Any

from core.stop_request import StopRequest
from smspulse.broker.config import BrokerSettings
from smspulse.broker.embedded import EmbeddedBroker


class MemoryBroker(EmbeddedBroker):
    """librdkafka's mock cluster: the Kafka protocol on a real socket, in our own process. For machines without Java.

    Nothing survives a restart. Past 5 MiB or 100,000 batches a partition drops its oldest data without a word. It has
    no topic configuration, so no compaction and no retention; each topic has 4 partitions and appears on first use.
    It knows no logins: every user of this machine reads and writes all records.
    """

    kind = "memory"

    def __init__(self, data: Path, settings: BrokerSettings | None = None, stop: StopRequest | None = None) -> None:
        super().__init__(data, settings, stop)
        self._cluster: Any = None

    def _start_server(self) -> None:
        from confluent_kafka import Producer  # noqa: PLC0415 - heavy

        # The producer is there to own the cluster. Its address replaces ours, and is the system's choice.
        self._cluster = Producer({"bootstrap.servers": "replaced", "test.mock.num.brokers": 1, "log_level": 0})
        (broker,) = self._cluster.list_topics(timeout=10).brokers.values()
        self.address = f"{broker.host}:{broker.port}"

    def poll(self) -> str | None:
        """Return None: it is in our own process, so it cannot end before us."""
        return None

    def _stop_server(self) -> None:
        # librdkafka's end waits for itself for good one time in thirty (2.16, on a busy machine): it is not waited for.
        held, self._cluster = [self._cluster], None
        ending = threading.Thread(target=held.clear, daemon=True)
        ending.start()
        ending.join(1)
