"""What a worker does with its runs while the group is balanced anew."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from faust.types import TP

from core.kafka_settings import KafkaSettings
from core.topics import RAW
from streams import partition_manager
from streams.partition_manager import PartitionManager
from streams.settings import StreamSettings

OURS = TP(RAW, 0)


def records(*offsets: int) -> list[Any]:
    return [SimpleNamespace(offset=offset) for offset in offsets]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Return the offsets of each run that a partition was given."""
    runs: list[list[int]] = []

    class Partition:
        def __init__(self, *_: Any) -> None:
            """Hold nothing."""

        async def claim_partition(self, _: int) -> None:
            """Own it."""

        async def process(self, run: Sequence[Any]) -> None:
            runs.append([record.offset for record in run])

    monkeypatch.setattr(partition_manager, "PartitionProcessor", Partition)
    return runs


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
    seen: list[list[int]],
    tmp_path: Path,
    generation: int,
    fetched: list[tuple[int, ...]],
    processed: list[list[int]],
) -> None:
    app: Any = SimpleNamespace(consumer_generation_id=1, consumer=SimpleNamespace(assignment=lambda: {OURS}))
    partitions = PartitionManager(app, StreamSettings(state=tmp_path), KafkaSettings())
    await partitions.on_partitions_revoked()
    for offsets in fetched:
        await partitions.enqueue_records(SimpleNamespace(tp=OURS, generation_id=1, value=records(*offsets)))
    await asyncio.sleep(0.1)  # nothing is to happen, and nothing says that it has not
    assert seen == []
    app.consumer_generation_id = generation
    partitions.resume()
    async with asyncio.timeout(60):
        while sum(map(len, seen)) < sum(map(len, processed)):  # noqa: ASYNC110 - the work ends in a thread of its own
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)  # nor more than that
    assert seen == processed


async def test_a_task_of_a_partition_that_fails_ends_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
    monkeypatch.setattr(partition_manager, "end_process", ended.set_result)

    async def fail(*_: object) -> None:
        msg = "nobody foresaw this"
        raise RuntimeError(msg)

    app: Any = SimpleNamespace(consumer_generation_id=1)
    partitions = PartitionManager(app, StreamSettings(state=tmp_path), KafkaSettings())
    monkeypatch.setattr(partitions, "_process_pending", fail)
    await partitions.enqueue_records(SimpleNamespace(tp=OURS, generation_id=1, value=records(1)))
    async with asyncio.timeout(20):
        assert repr(await ended) == "RuntimeError('nobody foresaw this')"
