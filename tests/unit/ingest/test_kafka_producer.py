"""The order and batches of what goes to Kafka, with a Kafka whose answers the test controls."""

import asyncio
import gc
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.partitioner import DefaultPartitioner

from core.kafka_settings import KafkaSettings
from core.records import WebhookRecord
from core.topics import RAW
from ingest import kafka_producer
from ingest.errors import NotStoredError
from ingest.kafka_producer import PendingQueue, WebhookProducer
from ingest.receipts import NEVER_LATE, PendingWebhook, ReceiptLog

LEADERS = {0: 1, 1: 1, 2: 2}


class NoReceipts(ReceiptLog):
    """Confirms webhooks, and writes nothing."""

    def __init__(self) -> None:
        """Open no folder."""

    def append_receipts(self, webhooks: Sequence[WebhookRecord]) -> None:
        """Do nothing."""


class Batch(list[bytes]):
    """Holds keys."""

    def append(self, *, key: bytes, **_: Any) -> object:  # type: ignore[override]
        super().append(key)
        return self

    def close(self) -> None:
        """Do nothing."""


class Kafka:
    """Stands for `AIOKafkaProducer`, its client and what that knows of the cluster."""

    def __init__(self, **_: Any) -> None:
        self.client = self
        self.cluster = self
        self.sent: list[tuple[int, Batch]] = []
        self.answers: list[asyncio.Future[None]] = []

    async def start(self) -> None:
        """Do nothing."""

    async def stop(self) -> None:
        """Do nothing."""

    async def fetch_all_metadata(self) -> "Kafka":
        return self

    def topics(self) -> set[str]:
        return {RAW}

    def partitions_for_topic(self, _: str) -> set[int]:
        return set(LEADERS)

    async def partitions_for(self, _: str) -> set[int]:
        return set(LEADERS)

    def leader_for_partition(self, tp: Any) -> int:
        return LEADERS[tp.partition]

    def create_batch(self) -> Batch:
        return Batch()

    async def send_batch(self, batch: Batch, _: str, *, partition: int) -> asyncio.Future[None]:
        self.sent.append((partition, batch))
        self.answers.append(asyncio.get_running_loop().create_future())
        return self.answers[-1]


def key_of(partition: int, number: int) -> bytes:
    """Return the key of that number among those of a partition."""
    choose, all_ = DefaultPartitioner(), sorted(LEADERS)
    return [key for key in (b"gw:%d" % id_ for id_ in range(100)) if choose(key, all_, all_) == partition][number]


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_batches_for_a_broker_are_made_when_its_request_is_answered_and_other_brokers_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kafka, waiting = Kafka(), list[PendingWebhook]()
    requests = SimpleNamespace(begun=0)

    def is_empty() -> bool:
        requests.begun += 1
        return True

    monkeypatch.setattr(kafka_producer, "AIOKafkaProducer", lambda **_: kafka)
    ours = WebhookProducer(KafkaSettings(), 60, SimpleNamespace(is_empty=is_empty), PendingQueue(), NoReceipts())
    running = asyncio.create_task(ours.run())
    await ours.connected.wait()
    ours.is_open = True

    def send(partition: int, number: int) -> bytes:
        loop, key = asyncio.get_running_loop(), key_of(partition, number)
        waiting.append(PendingWebhook(WebhookRecord(key, b"{}", [], 0), loop.time(), loop.create_future()))
        ours.send_webhook(waiting[-1])
        return key

    first = send(0, 0)
    await settle()
    assert kafka.sent == [(0, [first])]
    later = [send(0, 1), send(1, 0), send(1, 1)]
    await settle()
    assert kafka.sent[1:] == [], "aiokafka would not send it yet, and it could not grow"
    other = send(2, 0)
    await settle()
    assert kafka.sent[1:] == [(2, [other])]
    kafka.answers[0].set_result(None)
    await settle()
    assert sorted(kafka.sent[2:]) == [(0, later[:1]), (1, later[1:])]
    assert requests.begun == 3
    assert [pending.webhook.key for pending in waiting if pending.stored.done()] == [first]
    kafka.answers[2].set_result(None)
    last = send(0, 2)
    await settle()
    assert kafka.sent[4:] == [], "half of the request is not answered"
    kafka.answers[3].set_result(None)
    await settle()
    assert kafka.sent[4:] == [(0, [last])]
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


async def test_what_kafka_has_not_acknowledged_goes_to_the_spool_in_order_when_older_webhooks_are_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kafka, queue = Kafka(), PendingQueue()
    spool = SimpleNamespace(is_empty=lambda: True)
    monkeypatch.setattr(kafka_producer, "AIOKafkaProducer", lambda **_: kafka)
    ours = WebhookProducer(KafkaSettings(), 60, spool, queue, NoReceipts())
    running = asyncio.create_task(ours.run())
    await ours.connected.wait()
    ours.is_open = True
    loop, key = asyncio.get_running_loop(), key_of(0, 0)
    pending = [PendingWebhook(WebhookRecord(key, b"%d" % n, [], 0), 0, loop.create_future()) for n in range(3)]
    ours.send_webhook(pending[0])
    await settle()
    kafka.answers[0].set_result(None)
    spool.is_empty = lambda: False
    for each in pending[1:]:
        ours.send_webhook(each)
    await settle()
    assert not ours.is_open
    assert queue.waiting == pending[1:]
    assert len(kafka.sent) == 1
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


async def test_what_is_refused_when_nobody_waits_any_more_is_no_error_of_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    waiting = PendingWebhook(WebhookRecord(b"gw:1", b"{}", [], 0), 0, asyncio.get_running_loop().create_future())
    waiting.fail_with(NotStoredError("ingest is stopping"))
    with pytest.raises(NotStoredError):
        await waiting.stored
    PendingWebhook(WebhookRecord(b"gw:1", b"{}", [], 0), 0, asyncio.get_running_loop().create_future()).fail_with(
        NotStoredError("ingest is stopping")
    )
    gc.collect()
    assert caplog.text == ""


async def test_a_stored_webhook_has_its_receipt_before_its_answer_and_a_forwarded_or_abandoned_one_gets_none(
    tmp_path: Path,
) -> None:
    loop, written = asyncio.get_running_loop(), list[WebhookRecord]()
    forwarded, first, abandoned, second = (
        PendingWebhook(WebhookRecord(None, b"{}", [], number), queued_at, loop.create_future())
        for number, queued_at in enumerate((NEVER_LATE, 0, 0, 0))
    )
    abandoned.stored.cancel()

    class Receipts(ReceiptLog):
        def append_receipts(self, webhooks: Sequence[WebhookRecord]) -> None:
            assert not first.stored.done()
            assert not second.stored.done()
            written.extend(webhooks)

    Receipts(tmp_path).confirm_webhooks([forwarded, first, abandoned, second])
    assert written == [first.webhook, second.webhook]
    assert all(pending.stored.done() for pending in (forwarded, first, second))
