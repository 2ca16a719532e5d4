"""The partitions of one worker. Each processes runs and timers one by one; partitions work concurrently."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any

import faust
from confluent_kafka import KafkaException
from faust.types import TP

from core.consumer_lag import records_behind
from core.kafka_settings import KafkaSettings
from core.topic_ids import TopicIds
from streams import metrics
from streams.errors import StreamError, end_process
from streams.group_membership import GroupMembership
from streams.partition_processor import PUBLISH_TIMEOUT_S, PartitionProcessor
from streams.partition_queue import PartitionQueue
from streams.settings import StreamSettings
from streams.topology import STAGES


def _end_process_if_failed(task: "asyncio.Task[None]") -> None:
    """End the process if the task of a partition failed: nothing awaits it, and its records would wait for ever."""
    if not task.cancelled() and (error := task.exception()) is not None:
        end_process(error)


class PartitionManager:
    """Processes runs and timers: of one partition one by one, of several partitions concurrently.

    While one partition waits for a commit, another uses the CPU. Records that arrive meanwhile become one run.

    Args:
        app: The Faust app, which has the generation of the consumer group.
        settings: Settings of the worker.
        kafka: Settings of the Kafka clients.
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
        # Not set while partitions are revoked and claimed.
        self._rebalance_done = asyncio.Event()
        self._rebalance_done.set()
        self._queues: dict[TP, PartitionQueue] = {}

    async def enqueue_records(self, message: Any) -> None:
        """Add a run to the queue of its partition, which processes it when it is free."""
        tp = message.tp
        queue = self._queue_for(tp)
        await queue.add_records(message.generation_id, message.value)
        if queue.task is None or queue.task.done():
            queue.task = asyncio.create_task(self._drain_queue(tp, queue))
            queue.task.add_done_callback(_end_process_if_failed)

    async def _drain_queue(self, tp: TP, queue: PartitionQueue) -> None:
        """Process the runs of a queue until it is empty."""
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
        """Claim the given partitions for the present generation, concurrently."""
        generation = self._app.consumer_generation_id
        await asyncio.gather(
            *(self._run_on_partition(tp, generation, lambda partition: partition.process([])) for tp in tps)
        )

    async def on_partitions_revoked(self) -> None:
        """Wait for running transactions, and start no others until `resume`: the next owner would fence them."""
        self._rebalance_done.clear()
        # A partition that is still locked after that recovers a large state, and has no transaction.
        with suppress(TimeoutError):
            async with asyncio.timeout(PUBLISH_TIMEOUT_S):
                for queue in self._queues.values():
                    async with queue.lock:
                        pass

    def resume(self) -> None:
        """Continue with the present assignment. It can be the former one, in the same generation."""
        self._rebalance_done.set()

    async def on_timer(self) -> None:
        """Fire due timers in every partition of this worker, and report its lag."""
        consumer, works = self._app.consumer, []
        generation = self._app.consumer_generation_id
        lag: dict[tuple[str, int], int] = {}
        for tp in consumer.assignment() & self._queues.keys():
            end = consumer.highwater(tp)
            # None until the first fetch of the partition.
            if end is not None:
                work = partial(PartitionProcessor.on_timer, clock=int(self._clock() * 1000), end=end)
                works.append(self._run_on_partition(tp, generation, work))
                processed = self._queues[tp].partition.next_offset(generation)
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
        taken_over = {topic for queue in self._queues.values() for topic in queue.partition.topic_ids.items()}
        if not taken_over:
            return
        try:
            found = await asyncio.to_thread(self._topic_ids.read_ids, {name for name, _ in taken_over})
            unread = await asyncio.to_thread(self._membership.unassigned_partitions)
        except KafkaException:
            # Kafka is away. The next check follows soon.
            return
        # Between two checks, the leader of the group can detect a new topic by itself.
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
        """Run work on a partition once it is free, if it is assigned in that generation; return whether it is."""
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
                # Faust would acknowledge the run and continue behind it. Nothing may follow a run that failed, and
                # uncommitted records belong to the next owner. So the process ends at once.
                end_process(error)
        return True

    async def close(self) -> None:
        """Wait for running transactions, start no others, and close the local state."""
        self._closing = True
        self._rebalance_done.set()
        for queue in self._queues.values():
            async with queue.lock:
                queue.partition.close()
