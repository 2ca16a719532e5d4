"""A topic that is replaced, lost or restored loses no webhook: each incarnation lands, next to the others."""

import logging
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient
from running_landers import landed, landing_from, produce, settings, until

from core import topics
from core.kafka_settings import KafkaSettings
from core.topic_ids import TopicIds
from smspulse.broker.embedded import EmbeddedBroker, MemoryBroker
from smspulse.broker.kafka_broker import KafkaBroker
from smspulse.broker.settings import BrokerSettings
from smspulse.broker.topic_admin import ensure_topics
from smspulse.processes.children import find_free_port
from smspulse.runtime.erasure import _find_end_offsets
from warehouse.file_names import LANDED_FILE_NAME, format_file_name, parse_partition_log
from warehouse.landed_files import list_incarnations_by_age, list_log_files
from warehouse.partition_log import PartitionLog, parse_cut_count, parse_topic_id
from warehouse.reader import query
from warehouse.sink.kafka_log_reader import KafkaLogReader
from warehouse.sink.range_metadata import read_identities, read_landed_position


@contextmanager
def running(broker: EmbeddedBroker) -> Iterator[KafkaSettings]:
    """Run a broker with its topics of two partitions."""
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
    return set(list_incarnations_by_age(data, topics.RAW))


def land_all(kafka: KafkaSettings, data: Path, source: str, count: int) -> None:
    """Run a lander until it has landed so many webhooks of a source."""
    with landing_from(kafka, settings(data)):
        until(lambda: landed(data, source) == count)


def test_another_kafka_behind_the_same_folder_and_a_topic_that_is_created_again_while_the_lander_runs(
    real_kafka: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data, erased, recreated = tmp_path / "data", tmp_path / "erased", tmp_path / "recreated"
    with running(broker(tmp_path / "first")) as kafka:
        produce(kafka, "e", 10, partition=1)
        land_all(kafka, erased, "e", 10)
        as_of_an_old_release(erased)
        produce(kafka, "s", 60)
        land_all(kafka, data, "s", 60)
    with running(broker(tmp_path / "second")) as kafka:
        produce(kafka, "e", 30, first=10, partition=0)
        land_all(kafka, erased, "e", 40)
        kept = _find_end_offsets(erased, topics.RAW, {PartitionLog(topics.RAW, 1): 10}, lambda: kafka)
        assert kept == [], "an erasure names nothing that another Kafka keeps"

        produce(kafka, "s", 125, first=60)  # more records than in the first incarnation
        land_all(kafka, data, "s", 185)
        produce(kafka, "s", 15, first=185)
        land_all(kafka, data, "s", 200)
        assert numbers(data, "s") == list(range(200))
        assert len(incarnations(data)) == 2

        with landing_from(kafka, settings(recreated)):
            produce(kafka, "r", 60)
            until(lambda: landed(recreated, "r") == 60)
            recreate(kafka, topics.RAW)
            with caplog.at_level(logging.WARNING, "warehouse"):
                produce(kafka, "r", 300, first=60)
                until(lambda: landed(recreated, "r") == 360)
            produce(kafka, "r", 10, first=360)
            until(lambda: landed(recreated, "r") == 370)
        assert numbers(recreated, "r") == list(range(370))
        assert any("is another one than the topic of that name" in line for line in caplog.messages)


def test_the_in_memory_broker_before_and_after_a_real_kafka(kafka: KafkaSettings, tmp_path: Path) -> None:
    data, source = tmp_path / "data", "between-two-in-memory"
    with running(MemoryBroker(tmp_path / "memory")) as memory:
        produce(memory, source, 20)
        land_all(memory, data, source, 20)
    produce(kafka, source, 65, first=20)
    land_all(kafka, data, source, 85)
    with running(MemoryBroker(tmp_path / "memory")) as memory:
        produce(memory, source, 70, first=85)
        land_all(memory, data, source, 155)
    assert numbers(data, source) == list(range(155))
    assert sorted(each.startswith("memory-") for each in incarnations(data)) == [False, True, True]


def recreate(kafka: KafkaSettings, topic: str) -> None:
    """Delete a topic, and create it again under another id."""
    admin = AdminClient(kafka.confluent_options())
    ids = TopicIds(kafka)
    before = ids.read_ids([topic])
    admin.delete_topics([topic])[topic].result(30)
    until(lambda: not ids.read_ids([topic]))
    ensure_topics(kafka, timeout_s=60)
    assert ids.read_ids([topic]).keys() == before.keys()
    assert ids.read_ids([topic]) != before


def test_a_kafka_restored_from_an_older_copy(
    real_kafka: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One lander runs during the restore, one starts later, and one starts without new records."""
    folder, copy, port = tmp_path / "broker", tmp_path / "copy", find_free_port(0)
    runs_on, later, quiet = tmp_path / "runs on", tmp_path / "later", tmp_path / "quiet"

    def restore() -> None:
        shutil.rmtree(folder / "kafka")
        shutil.copytree(copy, folder / "kafka")

    def assert_restored(data: Path) -> None:
        assert numbers(data, "s") == list(range(160)), data
        found = incarnations(data)
        assert len({parse_topic_id(each) for each in found}) == 1, data
        assert sorted(parse_cut_count(each) for each in found) == [0, 1], data
        lines = {line for line in caplog.messages if "restored from an older copy" in line and "sms.raw" in line}
        assert ["from offset 40 on" in line for line in lines] == [True], (data, lines)
        caplog.clear()

    with running(broker(folder, port)) as kafka:
        produce(kafka, "s", 40, partition=0)
        for data in (runs_on, later):
            land_all(kafka, data, "s", 40)
    shutil.copytree(folder / "kafka", copy)
    with caplog.at_level(logging.ERROR, "warehouse"), ExitStack() as lander:
        lander.enter_context(landing_from(kafka, settings(runs_on)))
        with running(broker(folder, port)) as kafka:
            produce(kafka, "s", 30, first=40, partition=0)
            for data in (later, quiet):
                land_all(kafka, data, "s", 70)
            until(lambda: landed(runs_on, "s") == 70)
        restore()
        caplog.clear()
        with running(broker(folder, port)) as kafka:
            produce(kafka, "s", 90, first=70, partition=0)  # from offset 40, beyond the old end at 70
            until(lambda: landed(runs_on, "s") == 160)
            lander.close()
            assert_restored(runs_on)
            land_all(kafka, later, "s", 160)
            assert_restored(later)
    restore()
    with running(broker(folder, port)) as kafka:
        for _ in range(2):  # the second lander finds no file of the new incarnation, as the first one
            land_all(kafka, quiet, "s", 70)
        produce(kafka, "s", 5, first=70, partition=0)
        land_all(kafka, quiet, "s", 75)
    assert numbers(quiet, "s") == list(range(75))


def test_files_of_a_release_without_incarnations_are_continued(kafka: KafkaSettings, tmp_path: Path) -> None:
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
    """Rename landed files as releases up to 0.1 named them."""
    for path in data.glob("*/date=*/*@*.parquet"):
        name = LANDED_FILE_NAME.fullmatch(path.name)
        assert name is not None
        log = parse_partition_log(name)._replace(incarnation="")
        path.rename(path.with_name(format_file_name(log, int(name["start"]))))


@pytest.mark.parametrize("goes_on", [False, True], ids=["nothing came since", "others came since"])
def test_an_erasure_names_what_kafka_keeps_of_the_files_of_an_old_release(
    kafka: KafkaSettings, tmp_path: Path, *, goes_on: bool
) -> None:
    source = f"erased-{goes_on}"
    produce(kafka, source, 1, partition=1)
    land_all(kafka, tmp_path, source, 1)
    as_of_an_old_release(tmp_path)
    end = read_landed_position(tmp_path, topics.RAW, 1)
    produce(kafka, source, 3, first=1, partition=1 if goes_on else 2)
    land_all(kafka, tmp_path, source, 4)
    found = _find_end_offsets(tmp_path, topics.RAW, {PartitionLog(topics.RAW, 1): end}, lambda: kafka)
    assert found == [{"topic": topics.RAW, "partition": 1, "offset": end}]


def test_records_have_the_same_identity_in_kafka_and_in_files(kafka: KafkaSettings, tmp_path: Path) -> None:
    source = "identified"
    produce(kafka, source, 20, partition=2)
    land_all(kafka, tmp_path, source, 20)
    topic_id = TopicIds(kafka).read_ids([topics.RAW])[topics.RAW]
    log = PartitionLog(topics.RAW, 2, topic_id)
    paths = list_log_files(tmp_path, log)
    in_files = {offset: each for path in paths for offset, each in read_identities(path, path).items()}
    with KafkaLogReader(kafka) as reader:
        assert reader.read_identities(topics.RAW, 2, min(in_files), max(in_files) + 1) == in_files
        assert reader.read_identities(topics.RAW, 2, max(in_files), max(in_files) + 1).keys() == {max(in_files)}
        assert reader.read_identities(topics.RAW, 2, max(in_files) + 1, max(in_files) + 10) == {}
