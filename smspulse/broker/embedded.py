"""The embedded broker: the base of the real Kafka and of the one in memory."""

import json
import os
import uuid
from abc import ABC, abstractmethod
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar, Self

from core.stop_request import StopRequest, StopRequested
from smspulse.broker.config import BrokerSettings
from smspulse.broker.download import BrokerError
from smspulse.broker.lockfile import BrokerFile, Kind, acquire_broker_lock, write_file_atomically


class EmbeddedBroker(ABC):
    """A broker that lives as long as this process. A lock allows one for each data folder.

    Call `start` from a thread that lives as long as the process; see `smspulse.processes.children.die_with_parent`.
    `start` and `wait` raise `StopRequested` when a stop is requested.
    """

    kind: ClassVar[Kind]

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
            write_file_atomically(self.data / "broker.json", json.dumps(asdict(file)))
        # A failed start must not leave a lock or a process.
        except BaseException as error:
            self.stop()
            if isinstance(error, OSError):
                message = f"The data folder {self.data} cannot be used: {error.strerror}; fix it or choose another"
                raise BrokerError(message) from error
            raise

    @property
    def has_login(self) -> bool:
        """Whether clients must log in."""
        return False

    @abstractmethod
    def poll(self) -> str | None:
        """Return None while the broker runs, else the reason for its end in one line."""

    def wait(self) -> None:
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
