"""A topic that is replaced, lost or restored costs no webhook: each incarnation is landed, next to the others."""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient
from running_landers import landed, landing_from, produce, settings, until

from gateway import topics
from gateway.kafka import KafkaSettings
from gateway.topic_ids import TopicIds
from smspulse.broker import Broker, KafkaBroker, MemoryBroker
from smspulse.erase import _ends_in_kafka
from smspulse.kafka_node import BrokerSettings
from smspulse.processes import free_port
from smspulse.topics import ensure_topics
from warehouse import landing
from warehouse.incarnations import KafkaLogReader
from warehouse.partition_log import PartitionLog, cuts_of, topic_of
from warehouse.read import query


@contextmanager
def running(broker: Broker) -> Iterator[KafkaSettings]:
    """Run a broker with its topics; of partitions, two are enough."""
    with broker:
        memory_run = broker.run_id if isinstance(broker, MemoryBroker) else ""
        kafka = KafkaSettings(
            bootstrap=broker.address, in_memory=bool(memory_run), memory_run=memory_run, security_protocol="PLAINTEXT"
        )
        ensure_topics(kafka, timeout_s=60)
        yield kafka


def broker(folder: Path, port: int = 0) -> KafkaBroker:
    return KafkaBroker(folder, BrokerSettings(port=port, controller_port=0, login=False))


def numbers(data: Path, source: str) -> list[int]:
    """Return the `sms_id` of each landed webhook of a source."""
    sql = "SELECT sms_id FROM raw_webhooks WHERE source = ? ORDER BY sms_id"
    return [int(number) for number in query(data, sql, [source])["sms_id"]]


def incarnations(data: Path) -> set[str]:
    return set(landing.in_order_of_appearance(data, topics.RAW))


def land_all(kafka: KafkaSettings, data: Path, source: str, count: int) -> None:
    """Run a lander until it has landed so many webhooks of a source."""
    with landing_from(kafka, settings(data)):
        until(lambda: landed(data, source) == count)


def test_another_kafka_behind_the_same_folder(real_kafka: None, tmp_path: Path) -> None:
    data = tmp_path / "data"
    with running(broker(tmp_path / "first")) as kafka:
        produce(kafka, "s", 60)
        land_all(kafka, data, "s", 60)
    with running(broker(tmp_path / "second")) as kafka:
        produce(kafka, "s", 125, first=60)  # more than there were of the first one
        land_all(kafka, data, "s", 185)
        produce(kafka, "s", 15, first=185)
        land_all(kafka, data, "s", 200)
    assert numbers(data, "s") == list(range(200))
    assert len(incarnations(data)) == 2


def test_the_in_memory_broker_before_and_after_a_real_kafka(real_kafka: None, tmp_path: Path) -> None:
    data = tmp_path / "data"
    with running(MemoryBroker(tmp_path / "memory")) as kafka:
        produce(kafka, "s", 20)
        land_all(kafka, data, "s", 20)
    with running(broker(tmp_path / "kafka")) as kafka:
        produce(kafka, "s", 65, first=20)
        land_all(kafka, data, "s", 85)
    with running(MemoryBroker(tmp_path / "memory")) as kafka:
        produce(kafka, "s", 70, first=85)
        land_all(kafka, data, "s", 155)
    assert numbers(data, "s") == list(range(155))
    assert sorted(each.startswith("memory-") for each in incarnations(data)) == [False, True, True]


def test_a_topic_that_is_deleted_and_created_again_while_the_lander_runs(
    real_kafka: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = tmp_path / "data"
    with running(broker(tmp_path)) as kafka, landing_from(kafka, settings(data)):
        produce(kafka, "s", 60)
        until(lambda: landed(data, "s") == 60)
        recreate(kafka, topics.RAW)
        with caplog.at_level(logging.WARNING, "warehouse"):
            produce(kafka, "s", 300, first=60)
            until(lambda: landed(data, "s") == 360)
        produce(kafka, "s", 10, first=360)
        until(lambda: landed(data, "s") == 370)
    assert numbers(data, "s") == list(range(370))
    assert any("is another one than the topic of that name" in line for line in caplog.messages)


def recreate(kafka: KafkaSettings, topic: str) -> None:
    """Delete a topic, and create it again under another id."""
    admin = AdminClient(kafka.confluent())
    ids = TopicIds(kafka)
    before = ids.read([topic])
    admin.delete_topics([topic])[topic].result(30)
    until(lambda: not ids.read([topic]))
    ensure_topics(kafka, timeout_s=60)
    assert ids.read([topic]).keys() == before.keys()
    assert ids.read([topic]) != before


@pytest.mark.parametrize("lander_runs", [False, True], ids=["the lander starts later", "the lander runs on"])
def test_a_kafka_restored_from_an_older_copy(
    real_kafka: None, tmp_path: Path, caplog: pytest.LogCaptureFixture, *, lander_runs: bool
) -> None:
    folder, data, port = tmp_path / "broker", tmp_path / "data", free_port(0)
    with running(broker(folder, port)) as kafka:
        produce(kafka, "s", 40, partition=0)
        land_all(kafka, data, "s", 40)
    shutil.copytree(folder / "kafka", tmp_path / "copy")

    def restore_and_produce() -> None:
        shutil.rmtree(folder / "kafka")
        shutil.copytree(tmp_path / "copy", folder / "kafka")
        with running(broker(folder, port)) as restored:
            produce(restored, "s", 90, first=70, partition=0)  # from offset 40 on, past the old end at 70
            if lander_runs:
                until(lambda: landed(data, "s") == 160)
            else:
                land_all(restored, data, "s", 160)

    with running(broker(folder, port)) as kafka:
        produce(kafka, "s", 30, first=40, partition=0)
        if not lander_runs:
            land_all(kafka, data, "s", 70)
    with caplog.at_level(logging.ERROR, "warehouse"):
        if lander_runs:
            with landing_from(kafka, settings(data)):
                with running(broker(folder, port)):
                    until(lambda: landed(data, "s") == 70)
                restore_and_produce()
        else:
            restore_and_produce()
    assert numbers(data, "s") == list(range(160))
    found = incarnations(data)
    assert len({topic_of(each) for each in found}) == 1
    assert sorted(cuts_of(each) for each in found) == [0, 1]
    (line,) = {line for line in caplog.messages if "restored from an older copy" in line and "sms.raw" in line}
    assert "from offset 40 on" in line


def test_a_kafka_that_lost_its_end_and_got_nothing_since_lands_nothing_twice(real_kafka: None, tmp_path: Path) -> None:
    folder, data = tmp_path / "broker", tmp_path / "data"
    with running(broker(folder)) as kafka:
        produce(kafka, "s", 40, partition=0)
    shutil.copytree(folder / "kafka", tmp_path / "copy")
    with running(broker(folder)) as kafka:
        produce(kafka, "s", 30, first=40, partition=0)
        land_all(kafka, data, "s", 70)
    shutil.rmtree(folder / "kafka")
    shutil.move(tmp_path / "copy", folder / "kafka")
    with running(broker(folder)) as kafka:
        for _ in range(2):  # the second lander finds no file of the new incarnation either
            land_all(kafka, data, "s", 70)
        produce(kafka, "s", 5, first=70, partition=0)
        land_all(kafka, data, "s", 75)
    assert numbers(data, "s") == list(range(75))


def test_files_of_a_release_that_knew_no_incarnations_are_continued(kafka: KafkaSettings, tmp_path: Path) -> None:
    source = "upgraded"
    produce(kafka, source, 50)
    land_all(kafka, tmp_path, source, 50)
    rows = query(tmp_path, "SELECT count(*) AS n FROM raw_webhooks")["n"][0]
    as_of_an_old_release(tmp_path)
    produce(kafka, source, 50, first=50)
    land_all(kafka, tmp_path, source, 100)
    assert query(tmp_path, "SELECT count(*) AS n FROM raw_webhooks")["n"][0] == rows + 50
    assert numbers(tmp_path, source) == list(range(100))
    assert len(incarnations(tmp_path)) == 2


def as_of_an_old_release(data: Path) -> None:
    """Give landed files the names that releases up to 0.1 gave them."""
    for path in data.glob("*/date=*/*@*.parquet"):
        name = landing.LANDED.fullmatch(path.name)
        assert name is not None
        log = landing.log_of(name)._replace(incarnation="")
        path.rename(path.with_name(landing.file_name(log, int(name["start"]))))


@pytest.mark.parametrize("goes_on", [False, True], ids=["nothing came since", "others came since"])
def test_an_erasure_names_what_kafka_keeps_of_the_files_of_an_old_release(
    kafka: KafkaSettings, tmp_path: Path, *, goes_on: bool
) -> None:
    source = f"erased-{goes_on}"
    produce(kafka, source, 1, partition=1)
    land_all(kafka, tmp_path, source, 1)
    as_of_an_old_release(tmp_path)
    end = landing.landed_position(tmp_path, topics.RAW, 1)
    produce(kafka, source, 3, first=1, partition=1 if goes_on else 2)
    land_all(kafka, tmp_path, source, 4)
    found = _ends_in_kafka(tmp_path, topics.RAW, {PartitionLog(topics.RAW, 1): end}, lambda: kafka)
    assert found == [{"topic": topics.RAW, "partition": 1, "offset": end}]


def test_an_erasure_names_nothing_that_another_kafka_keeps(real_kafka: None, tmp_path: Path) -> None:
    data = tmp_path / "data"
    with running(broker(tmp_path / "first")) as kafka:
        produce(kafka, "s", 10, partition=1)
        land_all(kafka, data, "s", 10)
    as_of_an_old_release(data)
    with running(broker(tmp_path / "second")) as kafka:
        produce(kafka, "s", 30, first=10, partition=0)
        land_all(kafka, data, "s", 40)
        assert _ends_in_kafka(data, topics.RAW, {PartitionLog(topics.RAW, 1): 10}, lambda: kafka) == []


def test_records_are_identified_in_kafka_as_they_are_in_files(kafka: KafkaSettings, tmp_path: Path) -> None:
    source = "identified"
    produce(kafka, source, 20, partition=2)
    land_all(kafka, tmp_path, source, 20)
    topic_id = TopicIds(kafka).read([topics.RAW])[topics.RAW]
    log = PartitionLog(topics.RAW, 2, topic_id)
    paths = landing.landed_files(tmp_path, log)
    in_files = {offset: each for path in paths for offset, each in landing.identities(path, path).items()}
    with KafkaLogReader(kafka) as reader:
        assert reader.identities(topics.RAW, 2, min(in_files), max(in_files) + 1) == in_files
        assert reader.identities(topics.RAW, 2, max(in_files), max(in_files) + 1).keys() == {max(in_files)}
        assert reader.identities(topics.RAW, 2, max(in_files) + 1, max(in_files) + 10) == {}
