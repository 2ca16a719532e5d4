"""The embedded broker in memory, where there is no Java."""

import threading
from pathlib import Path
from typing import Any

from core.stop_request import StopRequest
from smspulse.broker.config import BrokerSettings
from smspulse.broker.embedded import EmbeddedBroker


class MemoryBroker(EmbeddedBroker):
    """librdkafka's mock cluster: the Kafka protocol on a real socket, in this process. For machines without Java.

    Nothing survives a restart. Beyond 5 MiB or 100,000 batches a partition silently drops its oldest data. Topics have
    no configuration, so no compaction and no retention. Each topic has 4 partitions and appears on first use. There are
    no logins: every user of this machine reads and writes all records.
    """

    kind = "memory"

    def __init__(self, data: Path, settings: BrokerSettings | None = None, stop: StopRequest | None = None) -> None:
        super().__init__(data, settings, stop)
        self._cluster: Any = None

    def _start_server(self) -> None:
        from confluent_kafka import Producer  # noqa: PLC0415 - heavy

        # The producer only owns the cluster. The system chooses the address, which replaces the configured one.
        self._cluster = Producer({"bootstrap.servers": "replaced", "test.mock.num.brokers": 1, "log_level": 0})
        (broker,) = self._cluster.list_topics(timeout=10).brokers.values()
        self.address = f"{broker.host}:{broker.port}"

    def poll(self) -> str | None:
        """Return None: the broker is in this process, so it cannot end before it."""
        return None

    def _stop_server(self) -> None:
        # The end of librdkafka hangs one time in thirty (2.16, on a busy machine), so a thread of its own runs it.
        clusters, self._cluster = [self._cluster], None
        ending = threading.Thread(target=clusters.clear, daemon=True)
        ending.start()
        ending.join(1)
