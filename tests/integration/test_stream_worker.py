"""Workers as processes on a real Kafka: they stop, join, leave and fail."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from confluent_kafka import Consumer, TopicPartition
from stream_topics import Raw, outcomes, partitions_of, read, versions

from core.kafka_settings import KafkaSettings
from core.records import message_key
from core.topics import DEADLETTERS, OUTCOMES, RAW
from streams.batch_consumer import _ConsumerThread

_PATIENCE_S = 240
"""Longer than any step on a busy machine. It only ends a wait for something that never occurs."""

WORKER = """
import os, sys
from pathlib import Path
from core.kafka_settings import KafkaSettings
from streams.settings import StreamSettings
from streams.app import run_worker
session_s = float(os.environ.get("SESSION_S", "10"))
settings = StreamSettings(state=Path(sys.argv[1]), group=sys.argv[2], session_timeout_s=session_s)
if os.environ.get("A_FAULT_OF_OURS"):
    from streams.partition_processor import PartitionProcessor
    PartitionProcessor._publish_transaction = lambda self, outputs, next_offset: 1 // 0
if os.environ.get("POISON"):
    # As a recursive parser of byte order marks.
    from streams.message_processor import MessageProcessor
    one = MessageProcessor._process_record
    def fail(depth):
        return fail(depth + 1)
    def recursive(self, record, *given):
        return fail(0) if os.environ["POISON"].encode() in record.value else one(self, record, *given)
    MessageProcessor._process_record = recursive
if os.environ.get("SLOW"):
    import time
    from streams.partition_processor import PartitionProcessor
    publish = PartitionProcessor._publish_transaction
    def slowly(self, outputs, next_offset):
        time.sleep(1 if outputs.states else 0)
        return publish(self, outputs, next_offset)
    PartitionProcessor._publish_transaction = slowly
if os.environ.get("BLIND"):
    # As if Kafka had an outage between the start and the first list of topics.
    import asyncio
    from aiokafka.client import AIOKafkaClient
    from aiokafka.consumer.group_coordinator import GroupCoordinator
    assigned = []
    update, assign = AIOKafkaClient._metadata_update, GroupCoordinator._perform_assignment
    async def blind(self, cluster, topics):
        return await update(self, cluster, topics) if assigned or not topics else False
    async def count(self, response):
        await asyncio.sleep(1.5 if assigned else 0)  # so that a client polls for its first records meanwhile
        assignment = await assign(self, response)
        assigned.append(assignment)
        return assignment
    AIOKafkaClient._metadata_update, GroupCoordinator._perform_assignment = blind, count
run_worker(settings, KafkaSettings(bootstrap=sys.argv[3]), lambda: print("ready", flush=True))
"""


def worker(
    state: Path, group: str, kafka: KafkaSettings, errors: IO[str] | None = None, **environment: str
) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", WORKER, str(state), group, kafka.bootstrap]
    started = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=errors, text=True, env=os.environ | environment
    )
    assert started.stdout is not None
    assert environment or started.stdout.readline() == "ready\n"
    return started


def pass_over_what_others_wrote(kafka: KafkaSettings, group: str) -> None:
    """Commit the end offsets for a group, because other tests share the topics."""
    consumer = Consumer(kafka.confluent_options() | {"group.id": group})
    ends = [TopicPartition(topic, number) for topic in (RAW, OUTCOMES) for number in partitions_of(consumer, topic)]
    for end in ends:
        end.offset = consumer.get_watermark_offsets(end, 10)[1]
    consumer.commit(offsets=ends, asynchronous=False)
    consumer.close()


def produce(kafka: KafkaSettings, name: str, sms_ids: range, status_ids: tuple[int, ...]) -> None:
    """Write reports to all partitions, received now, because the workers use the real clock."""
    now = int(time.time() * 1000)

    async def send() -> None:
        async with AIOKafkaProducer(**kafka.aiokafka_options(), linger_ms=20) as producer:
            for status_id in status_ids:
                for sms_id in sms_ids:
                    raw = Raw(name, sms_id, status_id, 0, timestamp=now + status_id)
                    await producer.send(RAW, raw.value, raw.key, partition=sms_id % 4, headers=raw.headers)

    asyncio.run(send())


def assert_all_delivered_once(kafka: KafkaSettings, name: str, messages: int) -> None:
    """Wait until every message is delivered, and assert that each version and each outcome was written once."""
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        found = versions(kafka, name)
        if len(found) == messages and all(of[-1]["outcome"] == "delivered" for of in found.values()):
            break
    assert len(found) == messages
    assert {of[-1]["outcome"] for of in found.values()} == {"delivered"}
    counts = [[version["version"] for version in of] for of in found.values()]
    assert all(of == sorted(set(of)) for of in counts), "a version came twice, or went back"
    assert outcomes(kafka, name) == [("delivered", False)] * messages


def test_a_worker_stops_under_load_and_the_next_continues(kafka: KafkaSettings, name: str, tmp_path: Path) -> None:
    pass_over_what_others_wrote(kafka, name)
    first = worker(tmp_path / "a", name, kafka)
    produce(kafka, name, range(20_000), (1, 2, 6, 7))
    first.send_signal(signal.SIGTERM)
    assert first.wait(_PATIENCE_S) == 0
    second = worker(tmp_path / "a", name, kafka)
    try:
        assert_all_delivered_once(kafka, name, 20_000)
    finally:
        second.send_signal(signal.SIGTERM)
        assert second.wait(_PATIENCE_S) == 0


def test_a_second_worker_joins_and_leaves_without_a_duplicate_or_a_gap(
    kafka: KafkaSettings, name: str, tmp_path: Path
) -> None:
    pass_over_what_others_wrote(kafka, name)
    first = worker(tmp_path / "a", name, kafka)
    try:
        produce(kafka, name, range(4_000), (1, 2))
        feeder = threading.Thread(target=produce, args=(kafka, name, range(4_000), (3, 6)))
        feeder.start()
        second = worker(tmp_path / "b", name, kafka)
        feeder.join()
        feeder = threading.Thread(target=produce, args=(kafka, name, range(4_000), (7,)))
        feeder.start()
        second.send_signal(signal.SIGTERM)
        assert second.wait(_PATIENCE_S) == 0
        feeder.join()
        assert_all_delivered_once(kafka, name, 4_000)
    finally:
        first.send_signal(signal.SIGTERM)
        assert first.wait(_PATIENCE_S) == 0


def test_a_worker_commits_its_batch_before_another_takes_its_partitions(
    kafka: KafkaSettings, name: str, tmp_path: Path
) -> None:
    pass_over_what_others_wrote(kafka, name)
    first = worker(tmp_path / "a", name, kafka, SLOW="1")
    assert first.stdout is not None
    assert first.stdout.readline() == "ready\n"
    feeder = threading.Thread(target=produce, args=(kafka, name, range(1_000), (1, 3, 2, 6, 7) * 20))
    feeder.start()
    second = worker(tmp_path / "b", name, kafka)
    try:
        assert first.stdout.readline() == "ready\n"
        feeder.join()
        assert_all_delivered_once(kafka, name, 1_000)
    finally:
        for each in (first, second):
            each.send_signal(signal.SIGTERM)
        assert [each.wait(_PATIENCE_S) for each in (first, second)] == [0, 0]


def test_an_unforeseen_error_ends_the_worker_and_skips_no_record(
    kafka: KafkaSettings, name: str, tmp_path: Path
) -> None:
    pass_over_what_others_wrote(kafka, name)
    broken = worker(tmp_path / "a", name, kafka, A_FAULT_OF_OURS="1")
    produce(kafka, name, range(50), (7,))
    assert broken.wait(_PATIENCE_S) == 2
    fixed_worker = worker(tmp_path / "a", name, kafka)
    try:
        assert_all_delivered_once(kafka, name, 50)
    finally:
        fixed_worker.send_signal(signal.SIGTERM)
        assert fixed_worker.wait(_PATIENCE_S) == 0


def test_a_record_that_cannot_be_processed_is_a_dead_letter_and_the_worker_continues(
    kafka: KafkaSettings, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pass_over_what_others_wrote(kafka, name)
    log = tmp_path / "log"
    with log.open("w") as errors:
        running = worker(tmp_path / "a", name, kafka, errors, POISON='"sms_id": 1300')
    assert running.stdout is not None
    assert running.stdout.readline() == "ready\n"
    began = time.monotonic()
    try:
        produce(kafka, name, range(1_280, 1_320), (1, 7))
        while len(letters := read(kafka, DEADLETTERS, name)) < 2 and time.monotonic() < began + _PATIENCE_S:
            assert running.poll() is None, log.read_text()
        while len(found := versions(kafka, name)) < 39 and time.monotonic() < began + _PATIENCE_S:
            assert running.poll() is None, log.read_text()
        seen_s = time.monotonic() - began
        lines = Path(f"/proc/{running.pid}/status").read_text("ascii").splitlines()
        peak_mb = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
    finally:
        running.send_signal(signal.SIGTERM)
        assert running.wait(_PATIENCE_S) == 0
    assert sorted(found) == [sms_id for sms_id in range(1_280, 1_320) if sms_id != 1_300]
    assert {key for key, _, _ in letters} == {message_key(name, 1_300)}
    for _, body, headers in letters:
        assert body.startswith(b'{"sms_id": 1300')
        assert (headers["reason"], headers["source"]) == (b"processing_failed", name.encode())
        assert headers["detail"] == b"RecursionError while it was processed"
        assert re.fullmatch(rb"sms\.raw:0:\d+", headers["origin"])
    with capsys.disabled():
        sys.stdout.write(
            f"\none record that fails: the others were seen after {seen_s:.1f} s, {peak_mb:.0f} MB at most, "
            f"{log.stat().st_size} bytes of log\n"
        )
    assert log.stat().st_size < 10_000


def test_a_worker_ends_if_its_group_refuses_it(kafka: KafkaSettings, name: str, tmp_path: Path) -> None:
    assert worker(tmp_path, name, kafka, SESSION_S="1").wait(_PATIENCE_S) == 2  # below the minimum of the broker


def test_a_leader_without_known_topics_assigns_again(kafka: KafkaSettings, name: str, tmp_path: Path) -> None:
    pass_over_what_others_wrote(kafka, name)
    blind = worker(tmp_path, name, kafka, BLIND="1")
    try:
        produce(kafka, name, range(50), (7,))
        assert_all_delivered_once(kafka, name, 50)
    finally:
        blind.send_signal(signal.SIGTERM)
        assert blind.wait(_PATIENCE_S) == 0


async def test_fetched_records_of_a_revoked_partition_are_read_again_with_or_without_a_commit(
    kafka: KafkaSettings, name: str
) -> None:
    await asyncio.to_thread(produce, kafka, name, range(8), (1, 7))
    options = {"group_id": name, "auto_offset_reset": "earliest", "enable_auto_commit": False}
    async with AIOKafkaConsumer(RAW, **kafka.aiokafka_options(), **options) as consumer:

        async def begin() -> dict[int, int]:
            offsets: dict[int, int] = {}
            while len(offsets) < 4:
                for tp, records in (await consumer.getmany(timeout_ms=500)).items():
                    offsets.setdefault(tp.partition, records[0].offset)
            return offsets

        earliest = await begin()
        first, second, *others = sorted(consumer.assignment())
        await consumer.commit({first: earliest[first.partition] + 1, second: 0})
        thread: Any = SimpleNamespace(_ensure_consumer=lambda: consumer)
        sought = await _ConsumerThread._seek_to_committed(thread)
        assert sought == {first: earliest[first.partition] + 1, second: 0} | dict.fromkeys(others)
        assert await begin() == earliest | {first.partition: earliest[first.partition] + 1}


async def test_a_consumer_without_partitions_does_not_seek(kafka: KafkaSettings, name: str) -> None:
    async with AIOKafkaConsumer(**kafka.aiokafka_options(), group_id=name) as consumer:
        thread: Any = SimpleNamespace(_ensure_consumer=lambda: consumer)
        assert await _ConsumerThread._seek_to_committed(thread) == {}
