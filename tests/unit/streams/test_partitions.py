"""What a worker does with its runs while the group is balanced anew."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from faust.types import TP

from gateway.kafka import KafkaSettings
from gateway.topics import RAW
from streams import worker
from streams.settings import StreamSettings
from streams.worker import Partitions

OURS = TP(RAW, 0)


@pytest.mark.parametrize(("generation", "processed"), [(1, [[1, 2]]), (2, [])], ids=["the same", "the next"])
async def test_what_waits_over_a_rebalance_is_of_its_generation_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, generation: int, processed: list[Any]
) -> None:
    seen: list[Any] = []

    class Partition:
        def __init__(self, *_: Any) -> None:
            """Hold nothing."""

        async def own(self, _: int) -> None:
            """Own it."""

        async def process(self, run: Sequence[Any]) -> None:
            seen.append(run)

    monkeypatch.setattr(worker, "Partition", Partition)
    app: Any = SimpleNamespace(consumer_generation_id=1, consumer=SimpleNamespace(assignment=lambda: {OURS}))
    partitions = Partitions(app, StreamSettings(state=tmp_path), KafkaSettings())
    await partitions.give_up()
    await partitions.run(SimpleNamespace(tp=OURS, generation_id=1, value=[1, 2]))
    await asyncio.sleep(0.1)
    assert seen == []
    app.consumer_generation_id = generation
    partitions.go_on()
    await asyncio.sleep(0.1)
    assert seen == processed
