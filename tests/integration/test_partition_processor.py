"""Ownership, transactions and recovery of a partition, on a real Kafka."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from confluent_kafka import Consumer, TopicPartition
from stream_topics import PARTITION, Raw, outcomes, partitions_of, read, versions

from core.kafka_settings import KafkaSettings
from core.records import message_key
from core.topics import DEADLETTERS, DEVICES, MESSAGES, OUTCOMES, RAW
from streams.errors import LostRecordsError, OwnershipLostError, StreamError
from streams.message_processor import MessageProcessor
from streams.partition_processor import PartitionProcessor
from streams.processor import ProcessorOutput
from streams.recovery import PartitionRecovery
from streams.settings import StreamSettings
from streams.topology import DEVICE_STAGE, MESSAGE_STAGE


@pytest.fixture(scope="module", autouse=True)
def real_offsets(kafka: KafkaSettings) -> None:
    """Write as many records to `sms.raw` as the tests claim to have read. Offsets beyond its end are rejected."""

    async def fill() -> None:
        async with AIOKafkaProducer(**kafka.aiokafka_options()) as producer:
            for _ in range(20):
                await producer.send_and_wait(RAW, b"", partition=PARTITION)

    asyncio.run(fill())


class Owners:
    """Partitions of one group on several workers, each with its own disk."""

    def __init__(self, group: str, kafka: KafkaSettings, folder: Path) -> None:
        self._group, self._kafka, self._folder = group, kafka, folder
        self._opened: list[PartitionProcessor] = []

    async def next(self, disk: str) -> PartitionProcessor:
        settings = StreamSettings(state=self._folder / disk, group=self._group)
        owner = PartitionProcessor(PartitionRecovery(MESSAGE_STAGE, PARTITION, settings, self._kafka))
        self._opened.append(owner)
        await owner.claim_partition(1)
        return owner

    def close(self) -> None:
        for owner in self._opened:
            owner.close()


@pytest.fixture
def owners(name: str, kafka: KafkaSettings, tmp_path: Path) -> Iterator[Owners]:
    made = Owners(name, kafka, tmp_path)
    yield made
    made.close()


async def test_a_batch_writes_one_version_per_message(owners: Owners, kafka: KafkaSettings, name: str) -> None:
    owner = await owners.next("a")
    await owner.process([Raw(name, 1, 1, 0), Raw(name, 2, 1, 1), Raw(name, 1, 2, 2), Raw(name, 1, 7, 3)])
    found = versions(kafka, name)
    assert {sms_id: [version["outcome"] for version in of] for sms_id, of in found.items()} == {
        1: ["delivered"],
        2: ["pending"],
    }


async def test_a_fenced_owner_writes_nothing_and_raises(owners: Owners, kafka: KafkaSettings, name: str) -> None:
    first = await owners.next("a")
    await first.process([Raw(name, 1, 1, 0)])
    second = await owners.next("b")
    with pytest.raises(OwnershipLostError):
        await first.process([Raw(name, 1, 9, 1)])
    await second.process([Raw(name, 1, 7, 1)])
    assert [version["outcome"] for version in versions(kafka, name)[1]] == ["pending", "delivered"]


async def test_an_open_transaction_of_an_earlier_owner_is_aborted_before_the_state_is_read(
    owners: Owners, kafka: KafkaSettings, name: str
) -> None:
    first = await owners.next("a")
    await first.process([Raw(name, 1, 1, 0)])
    # It is killed between producing and committing. The records are in the log, and no transaction commits them.
    producer = first._producer
    producer.begin_transaction()
    producer.produce(MESSAGES, b"not a version", message_key(name, 1), PARTITION)
    producer.flush(10)
    second = await owners.next("b")
    await second.process([Raw(name, 1, 1, 0), Raw(name, 1, 2, 1)])
    assert [version["outcome"] for version in versions(kafka, name)[1]] == ["pending", "accepted"]


async def test_records_committed_by_an_earlier_owner_are_not_processed_again(
    owners: Owners, kafka: KafkaSettings, name: str
) -> None:
    run = [Raw(name, 1, 1, 0), Raw(name, 1, 2, 1)]
    await (await owners.next("a")).process(run)
    await (await owners.next("b")).process(run)
    assert len(versions(kafka, name)[1]) == 1


@pytest.mark.parametrize("disk", ["same", "stale", "empty"])
async def test_the_state_is_complete_on_any_disk(owners: Owners, kafka: KafkaSettings, name: str, disk: str) -> None:
    source = f"{name}-{disk}".replace("[", "").replace("]", "")
    first = await owners.next("first")
    await first.process([Raw(source, 1, 1, 0)])
    if disk == "stale":
        first.close()
        between = await owners.next("between")
        await between.process([Raw(source, 1, 2, 1)])
        between.close()
    else:
        await first.process([Raw(source, 1, 2, 1)])
        first.close()
    last = await owners.next("empty" if disk == "empty" else "first")
    await last.process([Raw(source, 1, 6, 2)])
    newest = versions(kafka, source)[1][-1]
    assert [observation[0] for observation in newest["observations"]] == [1, 2, 6]


async def test_the_state_of_another_topic_is_rejected(owners: Owners, kafka: KafkaSettings, name: str) -> None:
    first = await owners.next("a")
    await first.process([Raw(name, 1, 1, 0)])
    store = first._open_store
    store._db[b"\x00topic"] = b"a topic that was deleted"
    store.write_states(ProcessorOutput([(message_key(name, 1), b"nonsense", None)]), 10**9)
    first.close()
    again = await owners.next("a")
    await again.process([Raw(name, 1, 7, 1)])
    assert versions(kafka, name)[1][-1]["outcome"] == "delivered"


async def test_records_of_other_writers_in_the_changelog_are_skipped_and_logged(
    owners: Owners, kafka: KafkaSettings, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with AIOKafkaProducer(**kafka.aiokafka_options()) as producer:
        for value in (b"{}", b"[]", b"nonsense", b'{"is_ended": true, "outcome": "sent", "last_seen_at": 1}'):
            await producer.send_and_wait(MESSAGES, value, message_key(name, 1), partition=PARTITION)
    owner = await owners.next("a")
    assert "are no states of this stream" in caplog.text
    await owner.process([Raw(name, 1, 7, 0)])
    assert json.loads(read(kafka, MESSAGES, name)[-1][1])["outcome"] == "delivered"


async def test_missing_records_are_detected(owners: Owners, name: str) -> None:
    owner = await owners.next("a")
    with pytest.raises(LostRecordsError, match="offsets 0 to 1"):
        await owner.process([Raw(name, 1, 1, 2)])
    await owner.process([Raw(name, 1, 1, 0)])
    with pytest.raises(LostRecordsError, match="offsets 1 to 4"):
        await owner.process([Raw(name, 1, 7, 5)])


async def test_records_of_a_commit_that_kafka_lost_are_processed_again(
    owners: Owners, kafka: KafkaSettings, name: str
) -> None:
    first = await owners.next("a")
    await first.process([Raw(name, 1, 1, 0)])
    # The store has a transaction that Kafka confirmed and then lost in a crash.
    stored = json.loads(first._open_store.get(message_key(name, 1)) or b"")
    lost = json.dumps(
        stored | {"outcome": "delivered", "observations": [*stored["observations"], [7, *[None] * 3, 1, 1]]}
    )
    first._open_store.write_states(ProcessorOutput([(message_key(name, 1), lost.encode(), None)]), 10**6, source=2)
    first.close()
    last = await owners.next("a")
    await last.process([Raw(name, 1, 7, 1)])
    assert [version["outcome"] for version in versions(kafka, name)[1]] == ["pending", "delivered"]


async def test_open_records_of_an_earlier_owner_in_other_partitions_are_never_read(
    owners: Owners, kafka: KafkaSettings, name: str
) -> None:
    first = await owners.next("a")
    first._producer.begin_transaction()
    for number in partitions_of(first._producer, OUTCOMES):
        first._producer.produce(OUTCOMES, b'{"outcome": "left", "correction": false}', f"{name}:-".encode(), number)
    first._producer.flush(10)
    second = await owners.next("b")
    await second.process([Raw(name, 1, 7, 0)])
    assert outcomes(kafka, name) == [("delivered", False)]


@pytest.mark.parametrize(
    ("offset", "metadata"), [(10**9, ""), (5, "a topic that was deleted")], ids=["beyond-the-end", "of-another-topic"]
)
async def test_an_offset_of_another_topic_is_reset_and_ends_the_worker_once(
    owners: Owners, kafka: KafkaSettings, name: str, offset: int, metadata: str
) -> None:
    consumer = Consumer(kafka.confluent_options() | {"group.id": name})
    consumer.commit(offsets=[TopicPartition(RAW, PARTITION, offset, metadata)], asynchronous=False)
    with pytest.raises(StreamError, match="of another topic of that name"):
        await owners.next("a")
    (committed,) = consumer.committed([TopicPartition(RAW, PARTITION)], 10)
    consumer.close()
    assert committed.offset == 0
    source = name.translate({ord("["): "-", ord("]"): None})
    await (await owners.next("b")).process([Raw(source, 1, 7, 0)])
    assert versions(kafka, source)[1][-1]["outcome"] == "delivered"


async def test_an_offset_set_by_a_person_is_accepted(owners: Owners, kafka: KafkaSettings, name: str) -> None:
    consumer = Consumer(kafka.confluent_options() | {"group.id": name})
    consumer.commit(offsets=[TopicPartition(RAW, PARTITION, 5)], asynchronous=False)
    consumer.close()
    owner = await owners.next("a")
    await owner.process([Raw(name, 1, 1, 4), Raw(name, 1, 7, 5)])
    assert [version["version"] for version in versions(kafka, name)[1]] == [1]


async def test_an_unreadable_record_is_a_dead_letter_in_the_same_transaction(
    owners: Owners, kafka: KafkaSettings, name: str
) -> None:
    owner = await owners.next("a")
    broken, misplaced = Raw(name, 1, 1, 0, value=b"{"), Raw(name, 1, 1, 2)
    misplaced.key = message_key(name, 2)
    await owner.process([broken, Raw(name, 1, 1, 1), misplaced])
    letters = [(value, headers["reason"], headers["origin"]) for _, value, headers in read(kafka, DEADLETTERS, name)]
    assert letters == [
        (b"{", b"not_json", f"{RAW}:{PARTITION}:0".encode()),
        (misplaced.value, b"wrong_key", f"{RAW}:{PARTITION}:2".encode()),
    ]
    assert list(versions(kafka, name)) == [1]


async def test_an_unforeseen_error_commits_nothing(
    owners: Owners, kafka: KafkaSettings, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = await owners.next("a")

    def fails(*_: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patched:
        patched.setattr(PartitionProcessor, "_publish_transaction", fails)
        with pytest.raises(ZeroDivisionError):
            await owner.process([Raw(name, 1, 1, 0)])
    await (await owners.next("b")).process([Raw(name, 1, 1, 0)])
    assert len(versions(kafka, name)[1]) == 1


async def test_a_record_that_raises_is_a_dead_letter_in_the_transaction_of_its_batch(
    owners: Owners, kafka: KafkaSettings, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = MessageProcessor._process_record

    def fail_on_the_second(self: MessageProcessor, record: Raw, *given: Any) -> None:
        if record.sms_id == 2:
            raise RecursionError
        one(self, record, *given)

    monkeypatch.setattr(MessageProcessor, "_process_record", fail_on_the_second)
    owner = await owners.next("a")
    await owner.process([Raw(name, 1, 1, 0), Raw(name, 2, 7, 1), Raw(name, 1, 7, 2), Raw(name, 3, 7, 3)])
    assert owner.next_offset(1) == 4
    found = versions(kafka, name)
    assert {sms_id: of[-1]["outcome"] for sms_id, of in found.items()} == {1: "delivered", 3: "delivered"}
    ((key, value, headers),) = read(kafka, DEADLETTERS, name)
    assert (key, value) == (Raw(name, 2, 7, 1).key, Raw(name, 2, 7, 1).value)
    assert (headers["reason"], headers["origin"]) == (b"processing_failed", b"sms.raw:2:1")


DAY = 86_400_000
LONG_AFTER = 1_760_000_000_000 + 2 * DAY


async def test_timers_are_committed_like_a_batch(owners: Owners, kafka: KafkaSettings, name: str) -> None:
    owner = await owners.next("a")
    await owner.process([Raw(name, 1, 1, 0), Raw(name, 2, 7, 1)])
    await owner.on_timer(LONG_AFTER, 2)
    await owner.on_timer(LONG_AFTER, 2)
    found = versions(kafka, name)
    assert [version["outcome"] for version in found[1]] == ["pending", "expired"]
    assert sorted(outcomes(kafka, name)) == [("delivered", False), ("expired", False)]
    await owner.process([Raw(name, 1, 7, 2)])
    assert sorted(outcomes(kafka, name)) == [("delivered", False), ("delivered", True), ("expired", False)]


@pytest.mark.parametrize("disk", ["same", "empty"])
async def test_timers_are_found_by_the_next_owner(owners: Owners, kafka: KafkaSettings, name: str, disk: str) -> None:
    source = f"{name}-{disk}".replace("[", "").replace("]", "")
    first = await owners.next("first")
    await first.process([Raw(source, 1, 1, 0), Raw(source, 2, 1, 1)])
    first.close()
    last = await owners.next("first" if disk == "same" else "other")
    await last.on_timer(LONG_AFTER, 2)
    assert {of[-1]["outcome"] for of in versions(kafka, source).values()} == {"expired"}


async def test_timers_do_not_run_ahead_of_unread_records(owners: Owners, kafka: KafkaSettings, name: str) -> None:
    owner = await owners.next("a")
    await owner.process([Raw(name, 1, 1, 0)])
    await owner.on_timer(LONG_AFTER, 9)
    assert [version["outcome"] for version in versions(kafka, name)[1]] == ["pending"]


async def test_a_fenced_owner_expires_no_message(owners: Owners, kafka: KafkaSettings, name: str) -> None:
    first = await owners.next("a")
    await first.process([Raw(name, 1, 1, 0)])
    second = await owners.next("b")
    with pytest.raises(OwnershipLostError):
        await first.on_timer(LONG_AFTER, 1)
    await second.process([Raw(name, 1, 7, 1)])
    assert [version["outcome"] for version in versions(kafka, name)[1]] == ["pending", "delivered"]
    assert outcomes(kafka, name) == [("delivered", False)]


async def test_an_evicted_message_is_a_tombstone_and_its_late_report_is_marked(
    owners: Owners, kafka: KafkaSettings, name: str
) -> None:
    first = await owners.next("a")
    await first.process([Raw(name, 1, 7, 0)])
    await first.on_timer(LONG_AFTER + 7 * DAY, 1)
    first.close()
    last = await owners.next("b")
    await last.process([Raw(name, 1, 8, 1)])
    values = [value and json.loads(value) for _, value, _ in read(kafka, MESSAGES, name)]
    assert [value and "late_after_forgetting" in value["flags"] for value in values] == [False, None, True]


async def test_a_device_receives_the_outcomes_of_its_messages_once(
    kafka: KafkaSettings, name: str, tmp_path: Path
) -> None:
    settings = StreamSettings(state=tmp_path, group=name)
    messages = PartitionProcessor(PartitionRecovery(MESSAGE_STAGE, PARTITION, settings, kafka))
    await messages.claim_partition(1)
    body = b'{"sms_id": %d, "status_id": %d, "device_id": 8001, "channel_id": 1}'
    way = [(1, 1), (2, 1), (1, 7), (2, 9), (3, 1)]
    await messages.process(
        [Raw(name, each, status, at, value=body % (each, status)) for at, (each, status) in enumerate(way)]
    )
    messages.close()
    consumer = Consumer(kafka.confluent_options() | {"group.id": "reader", "isolation.level": "read_committed"})
    consumer.assign([TopicPartition(OUTCOMES, number, 0) for number in partitions_of(consumer, OUTCOMES)])
    outcomes = [one for one in iter(lambda: consumer.poll(5), None) if one.key() == f"{name}:8001".encode()]
    consumer.close()
    (number,) = {one.partition() for one in outcomes}
    run: list[Any] = [
        SimpleNamespace(value=one.value(), key=one.key(), headers=[], topic=OUTCOMES, partition=number,
                        offset=one.offset(), timestamp=0)
        for one in outcomes
    ]  # fmt: skip
    for _ in range(2):  # the second owner reads them again, and recognises them
        devices = PartitionProcessor(PartitionRecovery(DEVICE_STAGE, number, settings, kafka))
        await devices.claim_partition(1)
        await devices.process(run)
        devices.close()
    states = {key: json.loads(value) for key, value, _ in read(kafka, DEVICES, name)}
    assert len(read(kafka, DEVICES, name)) == len(states) == 3
    detector = states[f"{name}:8001:1".encode()]["watch"]["detector"]
    assert (len(outcomes), detector["count"] + detector["known"], detector["failures"] + detector["failed"]) == (
        2,
        2,
        1,
    )
