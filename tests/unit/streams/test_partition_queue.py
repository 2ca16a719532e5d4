"""Runs of a worker while its group is rebalanced."""

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from faust.types import TP

from core.topics import RAW
from streams import partition_queue
from streams.partition_queue import Assignment, PartitionQueue

OURS = TP(RAW, 0)


def records(*offsets: int) -> list[Any]:
    return [SimpleNamespace(offset=offset) for offset in offsets]


class Partition:
    """Owns it, and keeps the offsets of each run."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []

    async def claim_partition(self, _: int) -> None:
        """Own it."""

    async def process(self, run: Sequence[Any]) -> None:
        self.seen.append([record.offset for record in run])


@pytest.mark.parametrize(
    ("generation", "fetched", "processed"),
    [
        (1, [(1, 2)], [[1, 2]]),
        (2, [(1, 2)], []),
        (1, [(1, 2), (3, 4)], [[1, 2, 3, 4]]),
        (1, [(3, 4), (5, 6), (5, 6, 7)], [[5, 6, 7]]),
        (1, [(3, 4), (1, 2, 3, 4)], [[1, 2, 3, 4]]),
    ],
    ids=["the same generation", "the next", "two runs", "two runs, sought again behind the first", "sought again"],
)
async def test_what_waits_over_a_rebalance_is_of_its_generation_and_in_order(
    generation: int, fetched: list[tuple[int, ...]], processed: list[list[int]]
) -> None:
    app: Any = SimpleNamespace(consumer_generation_id=1, consumer=SimpleNamespace(assignment=lambda: {OURS}))
    assignment, partition = Assignment(app), Partition()
    queue = PartitionQueue(OURS, partition, assignment)  # type: ignore[arg-type]
    assignment.rebalance_done.clear()
    for offsets in fetched:
        await queue.add_records(1, records(*offsets))
    await asyncio.sleep(0.1)  # nothing is to happen, and nothing says that it has not
    assert partition.seen == []
    app.consumer_generation_id = generation
    assignment.rebalance_done.set()
    async with asyncio.timeout(60):
        while sum(map(len, partition.seen)) < sum(map(len, processed)):  # noqa: ASYNC110 - it is another task's work
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)  # nor more than that
    assert partition.seen == processed


async def test_a_task_of_a_partition_that_fails_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
    monkeypatch.setattr(partition_queue, "end_process", lambda _, error: ended.set_result(error))

    def fail() -> None:
        msg = "an unforeseen error"
        raise RuntimeError(msg)

    app: Any = SimpleNamespace(consumer_generation_id=1, consumer=SimpleNamespace(assignment=fail))
    queue = PartitionQueue(OURS, Partition(), Assignment(app))  # type: ignore[arg-type]
    await queue.add_records(1, records(1))
    async with asyncio.timeout(20):
        assert repr(await ended) == "RuntimeError('an unforeseen error')"
