"""The embedded broker: the base of the real Kafka and of the one in memory."""

import os
import threading
import uuid
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Self

import msgspec
from confluent_kafka import Producer

from core.atomic_file import write_file_atomically
from core.stop_request import StopRequest, StopRequested
from smspulse.broker.errors import BrokerError
from smspulse.broker.lockfile import BrokerFile, Kind, acquire_broker_lock
from smspulse.broker.settings import BrokerSettings


class EmbeddedBroker(ABC):
    """A broker that lives as long as this process. A lock allows one for each data folder.

    Call `start` from a thread that lives as long as the process; see `smspulse.processes.children.die_with_parent`.
    `start` and `wait` raise `StopRequested` when a stop is requested.
    """

    kind: ClassVar[Kind]
    # Whether clients must log in.
    has_login = False

    def __init__(self, data: Path, settings: BrokerSettings | None = None, stop: StopRequest | None = None) -> None:
        self.data = data.absolute()
        self.settings = settings or BrokerSettings()
        self.stop_request = stop or StopRequest()
        self.address = ""
        self.run_id = ""
        self._lock_descriptor: int | None = None

    def start(self) -> None:
        """Start the broker, wait until it answers, and write `{data}/broker.json`.

        Raises:
            BrokerError: The broker cannot be started, or another one runs on the data folder.
        """
        try:
            self._lock_descriptor = acquire_broker_lock(self.data)
            # A crash may have left it.
            (self.data / "broker.json").unlink(missing_ok=True)
            (self.data / "logs").mkdir(exist_ok=True)
            self._start_server()
            self.run_id = str(uuid.uuid4())
            file = BrokerFile(self.address, self.kind, os.getpid(), self.run_id, self.has_login)
            write_file_atomically(self.data / "broker.json", msgspec.json.encode(file))
        # A failed start must not leave a lock or a process.
        except BaseException as error:
            self.stop()
            if isinstance(error, OSError):
                message = f"The data folder {self.data} cannot be used: {error.strerror}; fix it or choose another"
                raise BrokerError(message) from error
            raise

    @abstractmethod
    def poll(self) -> str | None:
        """Return None while the broker runs, else the reason for its end in one line."""

    def wait(self) -> NoReturn:
        """Block as long as the broker runs.

        Raises:
            BrokerError: The broker has ended by itself.
            StopRequested: A stop is requested.
        """
        while (why := self.poll()) is None:
            if self.stop_request.wait(0.5):
                raise StopRequested
        raise BrokerError(why)

    def stop(self) -> None:
        """Stop the broker within `STOP_TIMEOUT_S` and the time of a kill. A second call does nothing."""
        if self._lock_descriptor is None:
            return
        self._stop_server()
        (self.data / "broker.json").unlink(missing_ok=True)
        os.close(self._lock_descriptor)
        self._lock_descriptor = None

    @abstractmethod
    def _start_server(self) -> None:
        """Start the server and set `address`."""

    @abstractmethod
    def _stop_server(self) -> None:
        """End the server. It may never have started."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class MemoryBroker(EmbeddedBroker):
    """librdkafka's mock cluster: the Kafka protocol on a real socket, in this process. For machines without Java.

    Nothing survives a restart. Beyond 5 MiB or 100,000 batches a partition silently drops its oldest data. Topics have
    no configuration, so no compaction and no retention. Each topic has 4 partitions and appears on first use. There are
    no logins: every user of this machine reads and writes all records.
    """

    kind = "memory"
    _cluster: Any = None

    def _start_server(self) -> None:
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
