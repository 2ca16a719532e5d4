"""The Faust worker: consumer group, assignment, agents and shutdown are Faust's; what a run means is `Partition`'s."""

import asyncio
import logging
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import faust
from confluent_kafka import KafkaException
from faust.types import TP
from mode.loop import use as use_loop

from gateway.kafka import KafkaSettings
from gateway.topics import RAW
from streams.errors import StateError, StreamError
from streams.partition import Partition
from streams.settings import StreamSettings
from streams.transport import BatchTransport, RunSchema

_log = logging.getLogger(__name__)

_FAILED = 2


class Partitions:
    """Processes runs: those of one partition in their order, those of several side by side.

    While one partition waits for Kafka to commit, another uses the processor.
    """

    def __init__(self, app: faust.App, settings: StreamSettings, kafka: KafkaSettings) -> None:
        self._app = app
        self._settings = settings
        self._kafka = kafka
        self._closing = False
        self._partitions: dict[int, Partition] = {}
        self._under_way: dict[int, asyncio.Task[None]] = {}

    async def run(self, number: int, generation: int, records: list[Any]) -> None:
        """Start on a run once the partition's previous one is committed."""
        await self.settle(number)
        if generation == self._app.consumer_generation_id and not self._closing:
            self._start(number, generation, records)

    async def own(self, numbers: Iterable[int]) -> None:
        """Take over the given partitions for the present generation, side by side."""
        generation = self._app.consumer_generation_id
        for number in numbers:
            await self.settle(number)
            self._start(number, generation, [])
        for number in numbers:
            await self.settle(number)

    def _start(self, number: int, generation: int, records: list[Any]) -> None:
        if number not in self._partitions:
            self._partitions[number] = Partition(number, self._settings, self._kafka)
        self._under_way[number] = asyncio.create_task(self._process(self._partitions[number], generation, records))

    async def _process(self, partition: Partition, generation: int, records: list[Any]) -> None:
        try:
            await partition.own(generation)
            await partition.process(records)
        except Exception as error:
            # Faust would acknowledge the run and go on behind it. Nothing may follow a run that failed, and what is
            # uncommitted belongs to the next owner: so the process ends here and now, whatever else is under way.
            _end_process(error)

    async def settle(self, number: int) -> None:
        """Wait until what is under way for a partition is done."""
        task = self._under_way.get(number)
        if task is not None:
            await asyncio.wait([task])

    async def close(self) -> None:
        """Let runs under way commit, start no others, close the local state."""
        self._closing = True
        for number, partition in self._partitions.items():
            await self.settle(number)
            partition.close()


def _end_process(error: BaseException) -> None:
    if isinstance(error, StreamError | KafkaException):
        _log.critical("the worker stops: %s", error)
    else:
        _log.critical("the worker stops: %r", error, exc_info=error)
    logging.shutdown()
    os._exit(_FAILED)


def build_app(settings: StreamSettings, kafka: KafkaSettings, ready: Callable[[], None]) -> faust.App:
    """Return the Faust app with its agent; see `run`."""
    app = faust.App(
        settings.group,
        broker="kafka://" + ";".join(kafka.servers),
        datadir=settings.state,
        web_enabled=False,
        topic_allow_declare=False,
        topic_disable_leader=True,
        topic_partitions=kafka.partitions,
        table_standby_replicas=0,
        consumer_auto_offset_reset="earliest",
        consumer_group_instance_id=(settings.instance or None) if not kafka.in_memory else None,
        broker_max_poll_records=settings.max_batch,
        broker_session_timeout=settings.session_timeout_s,
        broker_heartbeat_interval=settings.session_timeout_s / 5,
        stream_wait_empty=False,
        stream_buffer_maxsize=16,
    )
    app.transport = BatchTransport(app.conf.broker_consumer, app, loop=app.loop)
    partitions = Partitions(app, settings, kafka)

    @app.agent(app.topic(RAW, schema=RunSchema()))
    async def runs(stream: faust.Stream[Any]) -> None:
        async for event in stream.events():
            message = event.message
            await partitions.run(message.partition, message.generation_id, message.value)

    @app.on_partitions_assigned.connect
    async def own(_: faust.App, assigned: set[TP], **__: Any) -> None:
        async def take_over() -> None:
            await partitions.own({tp.partition for tp in assigned if tp.topic == RAW})
            ready()

        # Not awaited: Faust goes on with the rebalance, and runs wait for their partition anyway.
        app.add_future(take_over())

    @app.on_before_shutdown.connect
    async def close(*_: Any, **__: Any) -> None:
        await partitions.close()

    return app


def run(settings: StreamSettings, kafka: KafkaSettings, ready: Callable[[], None]) -> None:
    """Run a worker until SIGTERM or SIGINT; ends the process with 0, or with 2 when it cannot go on.

    Args:
        settings: The worker's.
        kafka: How to reach Kafka; its topics must exist.
        ready: Called each time that the worker owns the partitions assigned to it.

    Raises:
        StateError: The state's folder cannot be made.
    """
    try:
        settings.state.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        msg = f"cannot make the folder {settings.state}: {error.strerror}. Name one that is writable"
        raise StateError(msg) from error
    with suppress(ImportError):
        use_loop("uvloop")
    worker = faust.Worker(build_app(settings, kafka, ready), quiet=True, redirect_stdouts=False, override_logging=False)
    worker.spinner = None
    worker.execute_from_commandline()
