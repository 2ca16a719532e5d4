"""The partitions of one worker. Each processes runs and timers one by one; partitions work concurrently.

While one partition waits for a commit, another uses the CPU. Records that arrive meanwhile become one run.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain
from typing import Any

import faust
from faust.types import TP

from core.background_tasks import end_process
from core.consumer_lag import records_behind
from core.kafka_settings import KafkaSettings
from core.topic_ids import TopicIds
from streams import metrics
from streams.errors import WORKER_STOPS, StreamError, TransientKafkaError, typed_kafka_errors
from streams.group_membership import GroupMembership
from streams.partition_processor import PUBLISH_TIMEOUT_S, PartitionProcessor
from streams.processor import KafkaRecord
from streams.recovery import PartitionRecovery
from streams.settings import StreamSettings
from streams.topology import STAGES

# Records from which the queue blocks further ones, and the partition processes them at once.
_MAX_QUEUED_RECORDS = 1000


class Assignment:
    """The partitions that the consumer group has assigned to this worker.

    Attributes:
        rebalance_done: Not set while partitions are revoked and claimed: no work begins meanwhile.
        is_closing: Whether no work begins any more.
    """

    def __init__(self, app: faust.App) -> None:
        self._app = app
        self.is_closing = False
        self.rebalance_done = asyncio.Event()
        self.rebalance_done.set()

    @property
    def generation(self) -> int:
        """The present generation of the group."""
        return int(self._app.consumer_generation_id)

    def includes(self, tp: TP, generation: int) -> bool:
        """Return whether a partition is assigned in that generation, and work may begin."""
        return not self.is_closing and generation == self.generation and tp in self._app.consumer.assignment()


class PartitionQueue:
    """A partition and the runs that wait for it. Its processor does one thing at a time.

    Args:
        tp: The partition.
        processor: Its processor.
        assignment: The partitions of this worker.
    """

    def __init__(self, tp: TP, processor: PartitionProcessor, assignment: Assignment) -> None:
        self.processor = processor
        self._tp = tp
        self._assignment = assignment
        self._lock = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        # Generation of the runs that wait.
        self._generation = 0
        self._runs: list[Sequence[KafkaRecord]] = []
        self._waiting = 0
        self._space_available = asyncio.Event()
        self._space_available.set()
        self._crowding = asyncio.Event()

    async def add_records(self, generation: int, records: Sequence[KafkaRecord]) -> None:
        """Add a run once there is space, to be processed when the partition is free.

        Drops runs of an earlier generation, and runs that were fetched again.
        """
        await self._space_available.wait()
        if generation != self._generation or (self._runs and records[0].offset <= self._runs[-1][-1].offset):
            self._generation, self._runs, self._waiting = generation, [], 0
        self._runs.append(records)
        self._waiting += len(records)
        if self._waiting >= _MAX_QUEUED_RECORDS:
            self._space_available.clear()
            self._crowding.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._drain())

    async def work_alone(self, generation: int, work: Callable[[], Awaitable[None]] | None = None) -> bool:
        """Claim the partition and work once it is free, if it is assigned in that generation; return whether it is."""
        await self._assignment.rebalance_done.wait()
        async with self._lock:
            if not self._assignment.includes(self._tp, generation):
                return False
            try:
                with typed_kafka_errors(self.processor):
                    await self.processor.claim_partition(generation)
                    if work is not None:
                        await work()
            except Exception as error:
                # Faust would acknowledge the run and continue behind it. Nothing may follow a run that failed, and
                # uncommitted records belong to the next owner. So the process ends at once.
                end_process(WORKER_STOPS, error)
        return True

    async def wait_until_free(self) -> None:
        """Wait for the work that has begun."""
        async with self._lock:
            pass

    async def _drain(self) -> None:
        """Process runs until none waits. An error ends the process, because nothing awaits this."""
        try:
            while self._runs:
                await self._process_waiting(self._generation)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._crowding.wait(), STAGES[self._tp.topic].min_commit_interval_s)
        except Exception as error:
            end_process(WORKER_STOPS, error)

    async def _process_waiting(self, generation: int) -> None:
        if not await self.work_alone(generation, lambda: self.processor.process(self._take_records(generation))):
            self._take_records(generation)

    def _take_records(self, generation: int) -> Sequence[KafkaRecord]:
        """Remove and return all records that wait, if they belong to that generation."""
        if generation != self._generation:
            return []
        runs, self._runs, self._waiting = self._runs, [], 0
        self._space_available.set()
        self._crowding.clear()
        return runs[0] if len(runs) == 1 else list(chain.from_iterable(runs))


class PartitionManager:
    """All partitions of a worker, over the rebalances of its group.

    Args:
        app: The Faust app, which has the generation of the consumer group.
        settings: Settings of the worker.
        kafka: Settings of the Kafka clients.
    """

    def __init__(self, app: faust.App, settings: StreamSettings, kafka: KafkaSettings) -> None:
        self._app = app
        self._settings = settings
        self._kafka = kafka
        self._topic_ids = TopicIds(kafka)
        self._membership = GroupMembership(settings, kafka)
        self._unread: set[tuple[str, int]] = set()
        self._queues: dict[TP, PartitionQueue] = {}
        self.assignment = Assignment(app)

    async def enqueue_runs(self, stream: faust.Stream[Any]) -> None:
        """Add each run of the stream to the queue of its partition."""
        async for event in stream.events():
            await self._queue_for(event.message.tp).add_records(event.message.generation_id, event.message.value)

    def _queue_for(self, tp: TP) -> PartitionQueue:
        if tp not in self._queues:
            recovery = PartitionRecovery(STAGES[tp.topic], tp.partition, self._settings, self._kafka)
            self._queues[tp] = PartitionQueue(tp, PartitionProcessor(recovery), self.assignment)
        return self._queues[tp]

    async def claim_partitions(self, tps: Iterable[TP]) -> None:
        """Claim the given partitions for the present generation, concurrently."""
        generation = self.assignment.generation
        await asyncio.gather(*(self._queue_for(tp).work_alone(generation) for tp in tps))

    async def on_partitions_revoked(self) -> None:
        """Wait for running transactions, and start no others in this rebalance: the next owner would fence them."""
        self.assignment.rebalance_done.clear()
        # A partition that is still locked after that recovers a large state, and has no transaction.
        with suppress(TimeoutError):
            async with asyncio.timeout(PUBLISH_TIMEOUT_S):
                for queue in self._queues.values():
                    await queue.wait_until_free()

    async def on_timer(self) -> None:
        """Fire due timers in every partition of this worker, and report its lag."""
        consumer, generation, now = self._app.consumer, self.assignment.generation, int(time.time() * 1000)
        works = []
        lag: dict[tuple[str, int], int] = {}
        for tp in consumer.assignment() & self._queues.keys():
            end = consumer.highwater(tp)
            # None until the first fetch of the partition.
            if end is not None:
                queue = self._queues[tp]
                works.append(queue.work_alone(generation, partial(queue.processor.on_timer, now, end)))
                processed = queue.processor.next_offset(generation)
                if processed is not None:
                    position = consumer.position_behind_markers(tp, processed)
                    lag[tp.topic, tp.partition] = records_behind(end, position)
        # Replaces all partitions: other workers report those that were revoked.
        metrics.set_stream_lag(lag)
        await asyncio.gather(*works)

    async def verify_topics(self) -> None:
        """End the process if a topic was replaced since its partitions were claimed, or if nobody reads a partition.

        Offsets have no meaning in a new topic of the same name, and the client may continue at the old ones. After a
        restart, the worker reads it from its beginning.
        """
        taken_over = {topic for queue in self._queues.values() for topic in queue.processor.topic_ids.items()}
        if not taken_over:
            return
        try:
            with typed_kafka_errors(self._settings.group):
                found = await asyncio.to_thread(self._topic_ids.read_ids, {name for name, _ in taken_over})
                unread = await asyncio.to_thread(self._membership.unassigned_partitions)
        except TransientKafkaError:
            # The next check follows soon.
            return
        # Between two checks, the leader of the group can detect a new topic by itself.
        never_read, self._unread = unread & self._unread, unread
        replaced = sorted({name for name, topic_id in taken_over if found.get(name, topic_id) != topic_id})
        if replaced:
            what = f"{', '.join(replaced)} was deleted and created again, and is read from its beginning"
        elif never_read:
            topics = sorted({topic for topic, _ in never_read})
            what = f"the group {self._settings.group} has given {', '.join(topics)} to nobody"
        else:
            return
        if not self.assignment.is_closing:
            await asyncio.to_thread(self._membership.leave_group)
            end_process(WORKER_STOPS, StreamError(f"{what}: start it again"))

    async def close(self) -> None:
        """Wait for running transactions, start no others, and close the local state."""
        self.assignment.is_closing = True
        self.assignment.rebalance_done.set()
        for queue in self._queues.values():
            await queue.wait_until_free()
            queue.processor.close()
