"""Alerts of the stage of devices, on a real Kafka: each is written once, with any faults of its workers."""

from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaProducer
from confluent_kafka import Consumer, TopicPartition
from outcome_records import DELIVERED, T0, UNDELIVERED, outcome_record
from stream_topics import read
from warehouse_records import alert

from core.alerts import decode_alert
from core.kafka_settings import KafkaSettings
from core.topics import ALERTS, OUTCOMES
from smspulse.alerting.alert_topic import AlertRecord, AlertTopicReader, ReceiverOffsets
from streams.partition_processor import PartitionProcessor
from streams.recovery import PartitionRecovery
from streams.settings import StreamSettings
from streams.topology import DEVICE_STAGE

MINUTE = 60_000


async def written(kafka: KafkaSettings, source: str) -> list[list[Any]]:
    """Write the outcomes of a phone that works, fails, and works again; return the records in batches."""
    outcomes = [DELIVERED] * 400 + [UNDELIVERED] * 40 + [DELIVERED] * 100
    runs: list[list[Any]] = []
    async with AIOKafkaProducer(**kafka.aiokafka_options()) as producer:
        for sms_id, status in enumerate(outcomes):
            record = outcome_record(status, sms_id, T0 + sms_id * MINUTE, source=source)
            key = f"{source}:8001".encode()
            record.offset = (await producer.send_and_wait(OUTCOMES, record.value, key=key, partition=0)).offset
            if sms_id % 20 == 0:
                runs.append([])
            runs[-1].append(record)
    return runs


async def test_an_alert_is_written_once_across_lost_disks_and_repeated_batches(
    kafka: KafkaSettings, name: str, tmp_path: Path
) -> None:
    runs = await written(kafka, name)
    for number, run in enumerate(runs):
        # Each worker except the first has an empty disk, and reads the batch again that the previous one committed.
        if number % 9 == 0:
            owner = PartitionProcessor(
                PartitionRecovery(DEVICE_STAGE, 0, StreamSettings(state=tmp_path / str(number), group=name), kafka)
            )
            await owner.claim_partition(1)
            if number:
                await owner.process(runs[number - 1])
        await owner.process(run)
        if number % 9 == 8:
            owner.close()
    alerts = [decode_alert(value) for _, value, _ in read(kafka, ALERTS, f"failure_ratio:{name}")]
    channel = [each for each in alerts if each.scope == "channel"]
    assert {each.scope for each in alerts if each.phase == "firing"} == {"channel"}
    firing, resolved = (each for each in channel if each.fired_at)
    assert (firing.phase, resolved.phase) == ("firing", "resolved")
    assert (firing.failures, firing.since, firing.samples[0]) == (firing.count, T0 + 400 * MINUTE, f"{name}:400")
    assert resolved.fired_at == firing.fired_at
    assert resolved.failures == 40


async def test_the_offsets_of_a_receiver_are_those_that_a_consumer_of_its_group_would_commit(
    kafka: KafkaSettings, name: str
) -> None:
    async def write(*phases: str) -> None:
        async with AIOKafkaProducer(**kafka.aiokafka_options()) as producer:
            for phase in phases:
                record = alert(0, phase, id=f"failure_ratio:{name}:1:2", source=name)
                await producer.send_and_wait(ALERTS, record.value, key=record.key)

    def ours(records: list[AlertRecord]) -> list[str]:
        return [each.alert.phase for each in records if each.alert.source == name]

    await write("pending", "firing")
    reader, offsets = AlertTopicReader(kafka, f"{name}-watch"), ReceiverOffsets(kafka, name)
    assert offsets.read(reader.next_offsets) == {}
    existing = reader.read_existing()
    assert ours(existing) == ["pending", "firing"]
    assert offsets.commit(reader.next_offsets)
    committed = dict(reader.next_offsets)
    await write("resolved")
    while not (found := ours(reader.read_new())):
        pass
    assert found == ["resolved"]
    again = ReceiverOffsets(kafka, name).read(committed)
    assert again == committed
    partition = next(each.partition for each in existing if each.alert.source == name)
    assert reader.next_offsets[partition] > again[partition]
    # The previous version committed with a consumer, and so does an older version after a downgrade.
    consumer = Consumer(kafka.confluent_options() | {"group.id": name})
    places = consumer.committed([TopicPartition(ALERTS, number) for number in committed], 10)
    assert {each.partition: each.offset for each in places} == committed
    consumer.commit(offsets=[TopicPartition(ALERTS, partition, 1)], asynchronous=False)
    consumer.close()
    assert offsets.read([partition]) == {partition: 1}
