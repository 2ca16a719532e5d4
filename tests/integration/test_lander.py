"""The lander on a real Kafka lands every record once, with faults of the lander, of the disk and of Kafka."""

import errno
import logging
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
import pytest
from confluent_kafka import Producer
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from running_landers import landed, landing_from, position, produce, settings, until

from core import topics
from core.kafka_settings import KafkaSettings
from core.stop_request import StopRequest
from core.topic_ids import TopicIds
from smspulse.broker.embedded import MemoryBroker
from smspulse.broker.kafka_broker import KafkaBroker
from smspulse.broker.settings import BrokerSettings
from smspulse.broker.topic_admin import ensure_topics
from smspulse.processes.children import find_free_port
from warehouse import metrics
from warehouse.file_names import TEMPORARY_FOLDER, format_file_name
from warehouse.landed_files import list_log_files
from warehouse.partition_log import PartitionLog
from warehouse.reader import query
from warehouse.settings import LanderSettings
from warehouse.sink import consumer
from warehouse.sink.consumer import ParquetLander
from warehouse.sink.parquet_files import FolderStore


class LanderProcess:
    """A lander in its own process, and its log."""

    def __init__(self, kafka: KafkaSettings, one: LanderSettings) -> None:
        code = (
            "import logging, sys; logging.basicConfig(format='%(levelname)s %(message)s', level='INFO')\n"
            "from core.kafka_settings import KafkaSettings; from warehouse.settings import LanderSettings\n"
            "from warehouse.lander import run_lander\n"
            "run_lander(LanderSettings.model_validate_json(sys.argv[1]), KafkaSettings(bootstrap=sys.argv[2]))"
        )
        # A pipe and not a file, because one test limits the size of files.
        command = [sys.executable, "-c", code, one.model_dump_json(), kafka.bootstrap]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.lines: list[str] = []
        self._reader = threading.Thread(target=lambda: self.lines.extend(self.process.stderr or ()))
        self._reader.start()

    def end(self, number: signal.Signals) -> int:
        """Send a signal; return the exit code."""
        self.process.send_signal(number)
        code = self.process.wait(120)
        self._reader.join()
        return code

    def count_in_log(self, text: str) -> int:
        return sum(text in line for line in list(self.lines))


def assert_landed_once(kafka: KafkaSettings, data: Path) -> None:
    """Compare `raw` with Kafka, offset by offset: the rows have all offsets, each once, without gaps."""
    partitions = [TopicPartition(topics.RAW, number) for number in range(4)]
    consumer = KafkaConsumer(**kafka.kafka_python_options())
    try:
        first, end = consumer.beginning_offsets(partitions), consumer.end_offsets(partitions)
    finally:
        consumer.close()
    sql = """SELECT "partition" AS p, count(*) AS n, count(DISTINCT "offset") AS d, min("offset") AS lo,
             max("offset") AS hi FROM raw_webhooks GROUP BY ALL"""
    found = {row.p: (row.n, row.d, row.lo, row.hi) for row in query(data, sql).itertuples()}
    for one in partitions:
        count = end[one] - first[one]
        expected = (count, count, first[one], end[one] - 1) if count else None
        assert found.get(one.partition) == expected, one


def test_records_of_kafka_land_and_the_lag_is_published(
    kafka: KafkaSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, one = f"s{uuid4().hex[:8]}", settings(tmp_path)
    produce(kafka, source, 1_000)
    with caplog.at_level(logging.INFO, "warehouse"), landing_from(kafka, one):
        until(lambda: landed(tmp_path, source) == 1_000)
        produce(kafka, source, 500, first=1_000)
        until(lambda: landed(tmp_path, source) == 1_500)
    assert [line for line in caplog.messages if "partitions" in line] == [f"landing 13 partitions in {tmp_path}"]
    assert_landed_once(kafka, tmp_path)
    consumer = KafkaConsumer(**kafka.kafka_python_options(), group_id=one.group)
    try:
        for number in range(4):
            partition = TopicPartition(topics.RAW, number)
            assert consumer.committed(partition) == position(kafka, tmp_path, topics.RAW, number)
    finally:
        consumer.close()


def test_a_lander_ends_if_another_one_has_its_name(kafka: KafkaSettings, tmp_path: Path) -> None:
    one = settings(tmp_path, flush_interval_s=0.1, instance="taken")
    first = LanderProcess(kafka, one)
    until(lambda: first.count_in_log("landing 13 partitions") == 1)
    with landing_from(kafka, one) as second:
        assert first.process.wait(240) != 0
        until(lambda: first.count_in_log("refuses to serve the lander") > 0)
        assert second.assigned[0].wait(240)


def test_landers_of_one_group_share_the_partitions_and_take_over(kafka: KafkaSettings, tmp_path: Path) -> None:
    source, group = f"s{uuid4().hex[:8]}", f"shared-{uuid4().hex[:8]}"
    one = settings(tmp_path, group=group)
    with landing_from(kafka, one):
        produce(kafka, source, 2_000)
        with landing_from(kafka, one):
            produce(kafka, source, 2_000, first=2_000)
            until(lambda: landed(tmp_path, source) == 4_000)
        produce(kafka, source, 2_000, first=4_000)
        until(lambda: landed(tmp_path, source) == 6_000)
    assert_landed_once(kafka, tmp_path)


def test_only_committed_records_land_across_the_gaps_of_transactions(kafka: KafkaSettings, tmp_path: Path) -> None:
    source = f"s{uuid4().hex[:8]}"
    producer = Producer(kafka.confluent_options() | {"transactional.id": source})
    producer.init_transactions(30)

    def transaction(sms_id: int, *, commit: bool) -> None:
        producer.begin_transaction()
        value = b'{"source": "%s", "sms_id": %d, "version": 1, "outcome": "sent"}' % (source.encode(), sms_id)
        producer.produce(topics.MESSAGES, value, f"{source}:{sms_id}".encode(), partition=1)
        producer.flush(10)
        (producer.commit_transaction if commit else producer.abort_transaction)(10)

    def found() -> list[int]:
        sql = "SELECT sms_id FROM messages WHERE source = ? ORDER BY sms_id"
        return query(tmp_path, sql, [source])["sms_id"].tolist() if (tmp_path / "smspulse.duckdb").exists() else []

    with landing_from(kafka, settings(tmp_path)):
        for sms_id in range(3):
            transaction(sms_id, commit=sms_id != 1)
        until(lambda: found() == [0, 2])
        transaction(3, commit=False)
        transaction(4, commit=True)
        until(lambda: found() == [0, 2, 4])
    log = PartitionLog(topics.MESSAGES, 1, TopicIds(kafka).read_ids([topics.MESSAGES])[topics.MESSAGES])
    names = [path.name for path in list_log_files(tmp_path, log)]
    assert names[0] == format_file_name(log, 0)
    assert len(names) >= 2


def test_records_that_kafka_deleted_before_they_landed_are_logged(
    kafka: KafkaSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def offsets() -> list[int]:
        if not (tmp_path / "smspulse.duckdb").exists():
            return []
        return query(tmp_path, 'SELECT "offset" AS o FROM deadletters WHERE "partition" = 3 ORDER BY o')["o"].tolist()

    # Dead letters, because deleted records of `sms.raw` would affect other tests.
    source = f"s{uuid4().hex[:8]}"
    produce(kafka, source, 10, topic=topics.DEADLETTERS, partition=3)
    with landing_from(kafka, settings(tmp_path)):
        until(lambda: len(offsets()) >= 10)
    end = offsets()[-1] + 1
    produce(kafka, source, 20, topic=topics.DEADLETTERS, partition=3)
    admin = KafkaAdminClient(**kafka.kafka_python_options())
    admin.delete_records({TopicPartition(topics.DEADLETTERS, 3): end + 15})
    admin.close()
    with caplog.at_level(logging.ERROR), landing_from(kafka, settings(tmp_path)):
        until(lambda: offsets()[-1] == end + 19)
    assert offsets()[-6:] == [end - 1, *range(end + 15, end + 20)]
    (line,) = [record.getMessage() for record in caplog.records if "LOST" in record.getMessage()]
    assert f"sms.deadletters partition 3, offsets {end} to {end + 14}" in line


def list_unfinished_files(data: Path) -> list[Path]:
    """Return the files that landers have begun to write. Merges have a folder of their own next to them."""
    return [path for path in (data / TEMPORARY_FOLDER).iterdir() if path.is_file()]


def test_the_lander_waits_for_a_full_disk_with_one_line(kafka: KafkaSettings, tmp_path: Path) -> None:
    source = f"s{uuid4().hex[:8]}"
    lander = LanderProcess(kafka, settings(tmp_path))
    produce(kafka, source, 100)
    until(lambda: landed(tmp_path, source) == 100)
    # To the writer, a limit of the file size is a full disk. Setting it needs no root.
    resource.prlimit(lander.process.pid, resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
    files = sorted(tmp_path.glob("raw/*/*"))
    produce(kafka, source, 100, first=100)
    until(lambda: lander.count_in_log("cannot write to") == 1)
    assert sorted(tmp_path.glob("raw/*/*")) == files
    resource.prlimit(lander.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    until(lambda: landed(tmp_path, source) == 200)
    until(lambda: lander.count_in_log("takes data again") == 1)
    assert lander.end(signal.SIGTERM) == 0
    assert lander.count_in_log("cannot write to") == 1
    assert_landed_once(kafka, tmp_path)
    assert not list_unfinished_files(tmp_path)


class FullDisk(FolderStore):
    """A data folder that rejects writes while it is full."""

    is_full = False

    def probe_write(self) -> None:
        self._check()
        super().probe_write()

    def land_rows(self, start: int, table: pa.Table) -> object:
        self._check()
        return super().land_rows(start, table)

    def _check(self) -> None:
        if FullDisk.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_after_a_full_disk_it_reads_reassigned_partitions_again(
    kafka: KafkaSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = f"s{uuid4().hex[:8]}"
    monkeypatch.setattr(consumer, "open_landing_store", FullDisk)
    lander = ParquetLander(settings(tmp_path), kafka, StopRequest())
    monkeypatch.setattr(FullDisk, "is_full", True)
    starting = threading.Thread(target=lander._store_status.wait_until_writable)
    starting.start()
    until(lambda: metrics.BLOCKED._value.get() == 1)
    assert starting.is_alive()  # so it is not ready
    monkeypatch.setattr(FullDisk, "is_full", False)
    starting.join()
    assert metrics.BLOCKED._value.get() == 0
    lander._connect_consumer()

    def work() -> None:
        lander._locate_partitions()
        lander._poll_records(0.1)

    def holds_rows() -> bool:
        work()
        return any(buffer.tables for buffer in lander._partitions.buffers.values())

    try:
        produce(kafka, source, 100)
        until(holds_rows)
        monkeypatch.setattr(FullDisk, "is_full", True)
        assert not lander._flush_buffers()
        assert metrics.BLOCKED._value.get() == 1
        # The group reassigns its partitions, and a heartbeat passes before this lander has them again.
        partitions = lander._consumer.assignment()
        lander._consumer.unassign()
        lander._on_partitions_revoked(lander._consumer, partitions)
        assert not lander._flush_buffers()
        lander._on_partitions_assigned(lander._consumer, partitions)
        monkeypatch.setattr(FullDisk, "is_full", False)

        def is_landed() -> bool:
            work()
            lander._flush_buffers()
            return landed(tmp_path, source) == 100

        until(is_landed)
        assert metrics.BLOCKED._value.get() == 0
    finally:
        lander._on_partitions_lost(lander._consumer, [])
        lander._consumer.close()


def test_the_lander_waits_for_a_folder_without_write_access_with_one_line(
    kafka: KafkaSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, data = f"s{uuid4().hex[:8]}", tmp_path / "data"
    data.write_text("a file in the way")
    with landing_from(kafka, settings(data)):
        produce(kafka, source, 100)
        until(lambda: "cannot write to" in caplog.text)
        data.unlink()
        until(lambda: landed(data, source) == 100)
    assert caplog.text.count("cannot write to") == 1
    assert caplog.text.count("takes data again") == 1


@pytest.mark.usefixtures("real_kafka")
def test_it_waits_for_kafka_at_the_start_and_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    port, source, data = find_free_port(), f"s{uuid4().hex[:8]}", tmp_path / "warehouse"
    kafka = KafkaSettings(bootstrap=f"127.0.0.1:{port}", partitions=1)
    broker = BrokerSettings(port=port, controller_port=0, login=False)

    def lines(words: str) -> int:
        return sum(words in r.getMessage() for r in caplog.records if r.name == "warehouse.sink.kafka_client")

    with landing_from(kafka, settings(data)):
        until(lambda: lines("is away") == 1)
        for turn in (1, 2):
            with KafkaBroker(tmp_path, broker):
                ensure_topics(kafka, timeout_s=30)
                produce(kafka, source, 100, first=turn * 100)
                until(lambda expected=turn * 100: landed(data, source) == expected)
                until(lambda expected=turn: lines("is back after") == expected)
            until(lambda expected=turn + 1: lines("is away") == expected)
    assert (lines("is away"), lines("is back after")) == (3, 2)


def test_it_lands_from_the_in_memory_broker(tmp_path: Path) -> None:
    source, data = f"s{uuid4().hex[:8]}", tmp_path / "warehouse"
    with MemoryBroker(tmp_path) as broker:
        kafka = KafkaSettings(bootstrap=broker.address, in_memory=True)
        produce(kafka, source, 100)
        with landing_from(kafka, settings(data)):
            until(lambda: landed(data, source) == 100)
            produce(kafka, source, 100, first=100)
            until(lambda: landed(data, source) == 200)
    assert os.listdir(data / "messages") == ["date=1970-01-01"]


# Tests with many records come last, because each lander lands all records of earlier tests.


def test_two_landers_with_the_same_partitions_land_each_record_once(
    kafka: KafkaSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = f"s{uuid4().hex[:8]}"
    # In two groups, both have every partition, as a paused lander assumes when it continues.
    both = settings(tmp_path, flush_interval_s=0.1), settings(tmp_path, flush_interval_s=0.1)
    sent = 0
    with caplog.at_level(logging.INFO, "warehouse"), landing_from(kafka, *both) as landers:
        assert all(assigned.wait(240) for assigned in landers.assigned)
        while caplog.text.count("was landed by another lander") < 10:
            assert sent < 100_000, "they never met"
            produce(kafka, source, 1_000, first=sent)
            sent += 1_000
        until(lambda: landed(tmp_path, source) == sent)
    assert_landed_once(kafka, tmp_path)


def test_a_lander_killed_at_any_time_lands_each_record_once(kafka: KafkaSettings, tmp_path: Path) -> None:
    source, one = f"s{uuid4().hex[:8]}", settings(tmp_path, flush_interval_s=0.1, instance="phoenix")
    chance = random.Random(7)  # noqa: S311 - the same moments in each run
    kills, batch = 4, 2_500
    for kill in range(kills):
        lander = LanderProcess(kafka, one)
        produce(kafka, source, batch, first=kill * batch)
        before = landed(tmp_path, source)
        until(lambda before=before: landed(tmp_path, source) > before)
        # More records arrive, and the lander is killed at some point while it lands them.
        feeder = threading.Thread(target=produce, args=(kafka, f"{source}-more", batch))
        feeder.start()
        time.sleep(chance.uniform(0, 0.4))
        assert lander.end(signal.SIGKILL) == -signal.SIGKILL
        feeder.join()
    lander = LanderProcess(kafka, one)
    until(lambda: lander.count_in_log("landing 13 partitions") == 1)
    until(lambda: landed(tmp_path, source) == kills * batch)
    until(lambda: landed(tmp_path, f"{source}-more") == kills * batch)
    assert lander.end(signal.SIGTERM) == 0
    assert_landed_once(kafka, tmp_path)
    assert not list_unfinished_files(tmp_path)
