"""The Faust worker: consumer group, assignment, agents and shutdown are Faust's; what a run means is `Partition`'s."""

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import faust
from confluent_kafka import KafkaException
from faust.types import TP
from mode.loop import use as use_loop

from core.consumer_lag import records_behind
from core.kafka_settings import KafkaSettings
from core.topic_ids import TopicIds
from streams import metrics
from streams.batch_consumer import BatchTransport, RunSchema
from streams.errors import StateError, StreamError, end_process
from streams.group_membership import GroupMembership
from streams.partition_processor import PUBLISH_TIMEOUT_S, PartitionProcessor
from streams.processor import KafkaRecord
from streams.settings import StreamSettings
from streams.topology import STAGES

_MAX_QUEUED_RECORDS = 1000
"""Records that wait for a partition before it takes no more, and goes on at once."""
_MAX_TRANSACTIONS = 128
"""Transactions that can be under way at once, each in a thread that waits for Kafka."""
_METADATA_MAX_AGE_MS = 5_000
"""Whoever leads the group may assign before it knows the topics, as when Kafka is coming back: none of them, that is.
It assigns anew once it does. When asking failed, aiokafka does not ask again until what it knows is this old."""


_VERIFY_TOPICS_S = 5.0
"""Seconds between two looks at the ids of topics. Until then, what is read of a new topic is read again later."""


class PartitionQueue:
    """A partition, and the runs that wait for it.

    Args:
        partition: The partition.
    """

    def __init__(self, partition: PartitionProcessor) -> None:
        self.partition = partition
        self.lock = asyncio.Lock()
        self.task: asyncio.Task[None] | None = None
        self.generation = 0  # of what waits
        self._runs: list[Sequence[KafkaRecord]] = []
        self._waiting = 0
        self._space_available = asyncio.Event()
        self._space_available.set()
        self._crowding = asyncio.Event()

    async def add_records(self, generation: int, records: Sequence[KafkaRecord]) -> None:
        """Let a run wait, once there is room. Those of an earlier generation go, and those that were fetched again."""
        await self._space_available.wait()
        if generation != self.generation or (self._runs and records[0].offset <= self._runs[-1][-1].offset):
            self.generation, self._runs, self._waiting = generation, [], 0
        self._runs.append(records)
        self._waiting += len(records)
        if self._waiting >= _MAX_QUEUED_RECORDS:
            self._space_available.clear()
            self._crowding.set()

    def take_records(self, generation: int) -> Sequence[KafkaRecord]:
        """Return all records that wait, if they are of that generation."""
        if generation != self.generation:
            return []
        runs, self._runs, self._waiting = self._runs, [], 0
        self._space_available.set()
        self._crowding.clear()
        return runs[0] if len(runs) == 1 else list(chain.from_iterable(runs))

    async def wait_for_records(self, seconds: float) -> bool:
        """Wait so long, or until it is crowded; return whether any run waits."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._crowding.wait(), seconds)
        return bool(self._runs)


def _end_process_if_failed(task: "asyncio.Task[None]") -> None:
    """End the process if the task that processes a partition failed: nobody awaits it, and its records would wait."""
    if not task.cancelled() and (error := task.exception()) is not None:
        end_process(error)


class PartitionManager:
    """Processes runs and the passing of time: for one partition one after the other, for several side by side.

    While one partition waits for Kafka to commit, another uses the processor, and what comes for it meanwhile becomes
    one run.

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
        self._topic_ids = TopicIds(kafka)
        self._membership = GroupMembership(settings, kafka)
        self._unread: set[tuple[str, int]] = set()
        self._closing = False
        self._rebalance_done = asyncio.Event()  # not while partitions are given away and taken over
        self._rebalance_done.set()
        self._queues: dict[TP, PartitionQueue] = {}

    async def enqueue_records(self, message: Any) -> None:
        """Take up a run: it is processed when its partition is free."""
        tp = message.tp
        queue = self._queue_for(tp)
        await queue.add_records(message.generation_id, message.value)
        if queue.task is None or queue.task.done():
            queue.task = asyncio.create_task(self._drain_queue(tp, queue))
            queue.task.add_done_callback(_end_process_if_failed)

    async def _drain_queue(self, tp: TP, queue: PartitionQueue) -> None:
        """Process what waits for a partition until nothing does."""
        while True:
            await self._process_pending(tp, queue, queue.generation)
            if not await queue.wait_for_records(STAGES[tp.topic].min_commit_interval_s):
                return

    async def _process_pending(self, tp: TP, queue: PartitionQueue, generation: int) -> None:
        if not await self._run_on_partition(
            tp, generation, lambda partition: partition.process(queue.take_records(generation))
        ):
            queue.take_records(generation)

    async def claim_partitions(self, tps: Iterable[TP]) -> None:
        """Take over the given partitions for the present generation, side by side."""
        generation = self._app.consumer_generation_id
        await asyncio.gather(
            *(self._run_on_partition(tp, generation, lambda partition: partition.process([])) for tp in tps)
        )

    async def on_partitions_revoked(self) -> None:
        """Let runs under way commit and start no others until `resume`: the next owner would fence them."""
        self._rebalance_done.clear()
        with suppress(TimeoutError):  # whoever recovers a large state has nothing under way
            async with asyncio.timeout(PUBLISH_TIMEOUT_S):
                for queue in self._queues.values():
                    async with queue.lock:
                        pass

    def resume(self) -> None:
        """Work with what is assigned now. It can be the same as before, in the same generation."""
        self._rebalance_done.set()

    async def on_timer(self) -> None:
        """Do what is due in every partition that is ours."""
        consumer, works = self._app.consumer, []
        generation = self._app.consumer_generation_id
        lag: dict[tuple[str, int], int] = {}
        for tp in consumer.assignment() & self._queues.keys():
            end = consumer.highwater(tp)
            if end is not None:  # known from the first answer on
                work = partial(PartitionProcessor.on_timer, clock=int(self._clock() * 1000), end=end)
                works.append(self._run_on_partition(tp, generation, work))
                processed = self._queues[tp].partition.next_offset(generation)
                if processed is not None:
                    position = consumer.position_behind_markers(tp, processed)
                    lag[tp.topic, tp.partition] = records_behind(end, position)
        metrics.set_stream_lag(lag)  # partitions that are others' now are reported by them
        await asyncio.gather(*works)

    async def verify_topics(self) -> None:
        """End the process if a topic was replaced since its partitions were taken over, or if nobody reads a partition.

        Offsets say nothing about a new topic of the same name, and the client may go on in it where it stood in the old
        one. A new start reads it from its beginning.
        """
        taken_over = {topic for queue in self._queues.values() for topic in queue.partition.topic_ids.items()}
        if not taken_over:
            return
        try:
            found = await asyncio.to_thread(self._topic_ids.read_ids, {name for name, _ in taken_over})
            unread = await asyncio.to_thread(self._membership.unassigned_partitions)
        except KafkaException:
            return  # it is away, and asked again soon
        # The group's leader has time to see a new topic by itself.
        never_read, self._unread = unread & self._unread, unread
        replaced = sorted({name for name, topic_id in taken_over if found.get(name, topic_id) != topic_id})
        if self._closing or not (replaced or never_read):
            return
        if replaced:
            what = f"{', '.join(replaced)} was deleted and created again, and is read from its beginning"
        else:
            topics = sorted({topic for topic, _ in never_read})
            what = f"the group {self._settings.group} has given {', '.join(topics)} to nobody"
        await asyncio.to_thread(self._membership.leave_group)
        end_process(StreamError(f"{what}: start it again"))

    def _queue_for(self, tp: TP) -> PartitionQueue:
        if tp not in self._queues:
            self._queues[tp] = PartitionQueue(
                PartitionProcessor(STAGES[tp.topic], tp.partition, self._settings, self._kafka)
            )
        return self._queues[tp]

    async def _run_on_partition(
        self, tp: TP, generation: int, work: Callable[[PartitionProcessor], Awaitable[None]]
    ) -> bool:
        """Do something with a partition once it is free, if it is ours in that generation; return whether it is."""
        queue = self._queue_for(tp)
        await self._rebalance_done.wait()
        async with queue.lock:
            consumer = self._app.consumer
            if self._closing or generation != self._app.consumer_generation_id or tp not in consumer.assignment():
                return False
            try:
                await queue.partition.claim_partition(generation)
                await work(queue.partition)
            except Exception as error:
                # Faust would acknowledge the run and go on behind it. Nothing may follow a run that failed, and what is
                # uncommitted belongs to the next owner: so the process ends here and now, whatever else is under way.
                end_process(error)
        return True

    async def close(self) -> None:
        """Let runs under way commit, start no others, close the local state."""
        self._closing = True
        self._rebalance_done.set()
        for queue in self._queues.values():
            async with queue.lock:
                queue.partition.close()


def _build_credentials(kafka: KafkaSettings) -> faust.SASLCredentials | faust.SSLCredentials | None:
    """Spell the login as Faust wants it; all other clients take `KafkaSettings`' own spellings."""
    context = kafka.ssl_context()
    if kafka.security_protocol.startswith("SASL"):
        return faust.SASLCredentials(
            username=kafka.sasl_username,
            password=kafka.sasl_password.get_secret_value(),
            ssl_context=context,
            mechanism=kafka.sasl_mechanism,
        )
    return faust.SSLCredentials(context) if context else None


def _literal_path(path: Path) -> Path:
    """Return a path for Faust, which fills in what stands in braces."""
    return Path(str(path).replace("{", "{{").replace("}", "}}"))


def build_app(settings: StreamSettings, kafka: KafkaSettings, ready: Callable[[], None]) -> faust.App:
    """Return the Faust app with its agent; see `run_worker`."""
    app = faust.App(
        settings.group,
        broker="kafka://" + ";".join(kafka.bootstrap_servers),
        broker_credentials=_build_credentials(kafka),
        datadir=_literal_path(settings.state),
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
        consumer_metadata_max_age_ms=_METADATA_MAX_AGE_MS,
        stream_wait_empty=False,
        stream_buffer_maxsize=16,
    )
    app.transport = BatchTransport(app.conf.broker_consumer, app, loop=app.loop)
    partitions = PartitionManager(app, settings, kafka)

    @app.agent(app.topic(*STAGES, schema=RunSchema()))
    async def runs(stream: faust.Stream[Any]) -> None:
        async for event in stream.events():
            await partitions.enqueue_records(event.message)

    @app.timer(settings.clock_interval_s)
    async def on_timer() -> None:
        await partitions.on_timer()

    @app.timer(_VERIFY_TOPICS_S)
    async def verify_topics() -> None:
        await partitions.verify_topics()

    @app.on_partitions_assigned.connect
    async def claim_assigned(_: faust.App, assigned: set[TP], **__: Any) -> None:
        async def take_over() -> None:
            await partitions.claim_partitions(tp for tp in assigned if tp.topic in STAGES)
            ready()

        partitions.resume()
        # Not awaited: Faust goes on with the rebalance, and runs wait for their partition anyway.
        app.add_future(take_over())

    @app.on_partitions_revoked.connect
    async def on_partitions_revoked(*_: Any, **__: Any) -> None:
        # Faust stops the flow of whoever has partitions. One that had none would hand out records of its first ones
        # while their offsets are being read, and drop what waits for the agent when it resumes the flow.
        app.consumer.stop_flow()
        app.flow_control.suspend()
        # Awaited before this worker joins the group again, and before anybody is assigned what was ours.
        await partitions.on_partitions_revoked()

    @app.on_before_shutdown.connect
    async def close_partitions(*_: Any, **__: Any) -> None:
        await partitions.close()

    return app


def run_worker(settings: StreamSettings, kafka: KafkaSettings, ready: Callable[[], None]) -> None:
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
    worker.loop.set_default_executor(ThreadPoolExecutor(_MAX_TRANSACTIONS))
    worker.execute_from_commandline()
