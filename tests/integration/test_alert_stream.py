"""Alerts through the stage of devices, on a real Kafka: told once, whatever happens to its workers."""

from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaProducer
from outcome_records import DELIVERED, T0, UNDELIVERED, outcome_record
from stream_topics import read
from warehouse_records import alert

from core.alerts import Alert, decode_alert
from core.kafka_settings import KafkaSettings
from core.topics import ALERTS, OUTCOMES
from smspulse.alerting.alert_topic import AlertTopicReader
from streams.partition_processor import PartitionProcessor
from streams.settings import StreamSettings
from streams.topology import DEVICE_STAGE

MINUTE = 60_000


async def written(kafka: KafkaSettings, source: str) -> list[list[Any]]:
    """Write what a phone did: it is well, then fails, then is well again; return the records, in runs."""
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


async def test_an_alert_is_told_once_over_lost_disks_and_repeated_runs(
    kafka: KafkaSettings, name: str, tmp_path: Path
) -> None:
    runs = await written(kafka, name)
    for number, run in enumerate(runs):
        # Each worker but the first finds nothing on its disk, and is handed again what the one before committed.
        if number % 9 == 0:
            owner = PartitionProcessor(DEVICE_STAGE, 0, StreamSettings(state=tmp_path / str(number), group=name), kafka)
            await owner.claim_partition(1)
            if number:
                await owner.process(runs[number - 1])
        await owner.process(run)
        if number % 9 == 8:
            owner.close()
    told = [decode_alert(value) for _, value, _ in read(kafka, ALERTS, f"failure_ratio:{name}")]
    channel = [each for each in told if each.scope == "channel"]
    assert {each.scope for each in told if each.phase == "firing"} == {"channel"}
    firing, resolved = (each for each in channel if each.fired_at)
    assert (firing.phase, resolved.phase) == ("firing", "resolved")
    assert (firing.failures, firing.since, firing.samples[0]) == (firing.count, T0 + 400 * MINUTE, f"{name}:400")
    assert resolved.fired_at == firing.fired_at
    assert resolved.failures == 40


async def test_what_was_committed_is_past_and_what_came_since_is_news(kafka: KafkaSettings, name: str) -> None:
    async def write(*phases: str) -> None:
        async with AIOKafkaProducer(**kafka.aiokafka_options()) as producer:
            for phase in phases:
                record = alert(0, phase, id=f"failure_ratio:{name}:1:2", source=name)
                await producer.send_and_wait(ALERTS, record.value, key=record.key)

    def ours(alerts: list[Alert]) -> list[str]:
        return [each.phase for each in alerts if each.source == name]

    async def anything(log: AlertTopicReader) -> list[Alert]:
        while not (found := await log.read_new_alerts(1)):
            pass
        return found

    await write("pending", "firing")
    first = AlertTopicReader(kafka, name)
    assert not first.has_committed_offsets
    assert ours(await first.read_existing_alerts(whole=True)) == ["pending", "firing"]
    await first.commit()
    await write("resolved")
    assert ours(await anything(first)) == ["resolved"]  # not committed: it may not have been told
    first.close()
    second = AlertTopicReader(kafka, name)
    assert second.has_committed_offsets
    assert ours(await second.read_existing_alerts(whole=False)) == ["pending", "firing"]
    assert ours(await anything(second)) == ["resolved"]
    second.close()
