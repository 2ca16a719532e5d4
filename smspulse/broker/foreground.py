"""`smspulse broker`: chooses the embedded broker and runs it in the foreground."""

import logging
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

from core.stop_request import StopRequest, StopRequested, run_until_stopped
from smspulse.broker.download import fetch_kafka, list_missing_programs
from smspulse.broker.embedded import EmbeddedBroker, MemoryBroker
from smspulse.broker.errors import BrokerError, KafkaMissingError
from smspulse.broker.kafka_broker import KafkaBroker
from smspulse.broker.lockfile import has_kafka_store

log = logging.getLogger(__name__)

Mode = Literal["auto", "kafka", "memory"]


def choose_broker(data: Path, mode: Mode, stop: StopRequest | None = None) -> EmbeddedBroker:
    """Return the broker to start: with `auto` a real Kafka where it can run, else the in-memory one with a warning.

    The jars are fetched here, so that a failed fetch counts as a missing program. A folder with a Kafka store gets the
    in-memory broker only by `memory`, because that broker would neither read the store nor add to it.

    Raises:
        KafkaMissingError: A program is missing, and the mode is `kafka` or the folder has a Kafka store.
    """
    has_store = has_kafka_store(data)
    if mode == "memory":
        if has_store:
            log.warning("the in-memory broker was chosen: the Kafka store in %s stays as it is, unread", data)
        return MemoryBroker(data, stop=stop)
    missing = "; ".join(list_missing_programs())
    if not missing:
        try:
            fetch_kafka()
            return KafkaBroker(data, stop=stop)
        except BrokerError as error:
            missing = str(error)
    if mode == "kafka":
        message = f"A real Kafka cannot be started. Missing: {missing}"
        raise KafkaMissingError(message)
    if has_store:
        message = (
            f"{data} holds a Kafka store, and Kafka cannot be started on it. Missing: {missing}. "
            "Only `--broker memory` runs the in-memory broker here instead"
        )
        raise KafkaMissingError(message)
    log.warning(
        "USING THE IN-MEMORY BROKER, for trying out only: nothing survives a restart, past 5 MiB a partition the "
        "oldest data is dropped silently, and every user of this machine can read and write it. For a real Kafka, "
        "provide what is missing: %s",
        missing,
    )
    return MemoryBroker(data, stop=stop)


def run_broker(data: Path, mode: Mode, *, on_ready: Callable[[], None] = lambda: None) -> None:
    """Run a broker in the foreground until SIGTERM or SIGINT; call it from the main thread.

    Args:
        data: The data folder.
        mode: Kind of the broker; see `choose_broker`.
        on_ready: Called once the broker answers.

    Raises:
        BrokerError: The broker could not be started, or has ended by itself.
    """
    stop = StopRequest()
    for number in (signal.SIGTERM, signal.SIGINT):
        # The handler must not raise: an exception in the middle of a client's clean-up is lost, or breaks it.
        signal.signal(number, lambda *_: stop.set())
    with suppress(StopRequested), run_until_stopped(lambda: choose_broker(data, mode, stop), stop) as broker:
        log.info("the %s broker is ready at %s", broker.kind, broker.address)
        run_until_stopped(on_ready, stop)
        broker.wait()
