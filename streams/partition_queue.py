"""The runs of records that wait for one partition."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from itertools import chain

from streams.partition_processor import PartitionProcessor
from streams.processor import KafkaRecord

# Records from which the queue blocks further ones, and the partition processes them at once.
_MAX_QUEUED_RECORDS = 1000


class PartitionQueue:
    """A partition and the runs that wait for it."""

    def __init__(self, partition: PartitionProcessor) -> None:
        self.partition = partition
        self.lock = asyncio.Lock()
        self.task: asyncio.Task[None] | None = None
        # Generation of the runs that wait.
        self.generation = 0
        self._runs: list[Sequence[KafkaRecord]] = []
        self._waiting = 0
        self._space_available = asyncio.Event()
        self._space_available.set()
        self._crowding = asyncio.Event()

    async def add_records(self, generation: int, records: Sequence[KafkaRecord]) -> None:
        """Add a run once there is space. Drops runs of an earlier generation, and runs that were fetched again."""
        await self._space_available.wait()
        if generation != self.generation or (self._runs and records[0].offset <= self._runs[-1][-1].offset):
            self.generation, self._runs, self._waiting = generation, [], 0
        self._runs.append(records)
        self._waiting += len(records)
        if self._waiting >= _MAX_QUEUED_RECORDS:
            self._space_available.clear()
            self._crowding.set()

    def take_records(self, generation: int) -> Sequence[KafkaRecord]:
        """Remove and return all records that wait, if they belong to that generation."""
        if generation != self.generation:
            return []
        runs, self._runs, self._waiting = self._runs, [], 0
        self._space_available.set()
        self._crowding.clear()
        return runs[0] if len(runs) == 1 else list(chain.from_iterable(runs))

    async def wait_for_records(self, seconds: float) -> bool:
        """Wait until the time is over or the queue is full; return whether any run waits."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._crowding.wait(), seconds)
        return bool(self._runs)
