"""The Faust worker: consumer group, assignment, agents and shutdown are Faust's; what a run means is `Partition`'s."""

import asyncio
import gc
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any

import faust
from confluent_kafka import KafkaException
from faust.types import TP
from mode.loop import use as use_loop

from gateway.kafka import KafkaSettings
from streams.errors import StateError, StreamError
from streams.partition import STAGES, Partition
from streams.settings import StreamSettings
from streams.transport import BatchTransport, RunSchema

_log = logging.getLogger(__name__)

_FAILED = 2
_UNHURRIED_S = 1.0


class Partitions:
    """Processes runs and the passing of time: for one partition one after the other, for several side by side.

    While one partition waits for Kafka to commit, another uses the processor.

    Args:
        app: Knows the generation of the consumer group.
        settings: The worker's.
        kafka: How to reach Kafka.
        clock: Returns the seconds since 1970.
    """

    def __init__(
        self,
        app: faust.App,
        settings: StreamSettings,
        kafka: KafkaSettings,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._app = app
        self._settings = settings
        self._kafka = kafka
        self._clock = clock
        self._closing = False
        self._partitions: dict[TP, Partition] = {}
        self._under_way: dict[TP, asyncio.Task[None]] = {}

    async def run(self, message: Any) -> None:
        """Start on a run once what is under way for its partition is done."""
        await self._start(message.tp, message.generation_id, lambda partition: partition.process(message.value))
        if not STAGES[message.tp.topic].is_hurried:
            self._app.consumer.pause_partitions({message.tp})

    def resume(self) -> None:
        """Let the partitions of unhurried stages go on."""
        consumer = self._app.consumer
        consumer.resume_partitions(
            {tp for tp in consumer.assignment() if tp.topic in STAGES and not STAGES[tp.topic].is_hurried}
        )

    async def own(self, tps: Iterable[TP]) -> None:
        """Take over the given partitions for the present generation, side by side."""
        tps, generation = list(tps), self._app.consumer_generation_id
        for tp in tps:
            await self._start(tp, generation, lambda partition: partition.process([]))
        for tp in tps:
            await self._settle(tp)

    async def pass_time(self) -> None:
        """Do what is due in every partition that is ours."""
        consumer = self._app.consumer
        for tp in consumer.assignment() & self._partitions.keys():
            end = consumer.highwater(tp)
            if end is not None:  # known from the first answer on
                work = partial(Partition.pass_time, clock=int(self._clock() * 1000), end=end)
                await self._start(tp, self._app.consumer_generation_id, work)

    async def _start(self, tp: TP, generation: int, work: Callable[[Partition], Awaitable[None]]) -> None:
        await self._settle(tp)
        if self._closing or generation != self._app.consumer_generation_id or tp not in self._app.consumer.assignment():
            return
        if tp not in self._partitions:
            self._partitions[tp] = Partition(STAGES[tp.topic], tp.partition, self._settings, self._kafka)
        self._under_way[tp] = asyncio.create_task(self._work(self._partitions[tp], generation, work))

    async def _work(self, partition: Partition, generation: int, work: Callable[[Partition], Awaitable[None]]) -> None:
        try:
            await partition.own(generation)
            await work(partition)
        except Exception as error:
            # Faust would acknowledge the run and go on behind it. Nothing may follow a run that failed, and what is
            # uncommitted belongs to the next owner: so the process ends here and now, whatever else is under way.
            _end_process(error)

    async def _settle(self, tp: TP) -> None:
        """Wait until nothing is under way for a partition."""
        while (task := self._under_way.get(tp)) is not None and not task.done():
            await asyncio.wait([task])

    async def close(self) -> None:
        """Let runs under way commit, start no others, close the local state."""
        self._closing = True
        for tp, partition in self._partitions.items():
            await self._settle(tp)
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
        broker_check_crcs=not kafka.in_memory,  # it changes transactional batches and keeps their checksum
        broker_max_poll_records=settings.max_batch,
        broker_session_timeout=settings.session_timeout_s,
        broker_heartbeat_interval=settings.session_timeout_s / 5,
        stream_wait_empty=False,
        stream_buffer_maxsize=16,
    )
    app.transport = BatchTransport(app.conf.broker_consumer, app, loop=app.loop)
    partitions = Partitions(app, settings, kafka)

    @app.agent(app.topic(*STAGES, schema=RunSchema()))
    async def runs(stream: faust.Stream[Any]) -> None:
        async for event in stream.events():
            await partitions.run(event.message)

    @app.timer(settings.clock_interval_s)
    async def pass_time() -> None:
        await partitions.pass_time()

    @app.timer(_UNHURRIED_S)
    async def resume() -> None:
        partitions.resume()

    @app.on_partitions_assigned.connect
    async def own(_: faust.App, assigned: set[TP], **__: Any) -> None:
        async def take_over() -> None:
            await partitions.own(tp for tp in assigned if tp.topic in STAGES)
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
    # Messages and runs make no cycles, and to walk over them again and again takes a tenth of the time.
    gc.set_threshold(1_000_000, 50, 100)
    worker = faust.Worker(build_app(settings, kafka, ready), quiet=True, redirect_stdouts=False, override_logging=False)
    worker.spinner = None
    worker.execute_from_commandline()
