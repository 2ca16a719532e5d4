"""The lander on a bucket lands every record once, also across an outage of the object store."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from buckets import ObjectStore
from test_lander import landing_from, produce, settings, until

import warehouse
from core import topics
from core.kafka_settings import KafkaSettings
from smspulse.broker.embedded import MemoryBroker
from warehouse.partition_log import PartitionLog
from warehouse.sink.s3_storage import BucketStore


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    store = ObjectStore()
    store.login(monkeypatch)
    yield store
    store.stop()


def landed(url: str) -> tuple[int, int]:
    """Return the number of rows and of distinct offsets."""
    sql = 'SELECT count(*) AS n, count(DISTINCT ("partition", "offset")) AS offsets FROM raw_webhooks'
    frame = warehouse.query(url, sql)
    return int(frame["n"][0]), int(frame["offsets"][0])


def test_the_lander_waits_for_the_object_store_and_loses_or_repeats_nothing(
    tmp_path: Path, store: ObjectStore, caplog: pytest.LogCaptureFixture
) -> None:
    url = store.make()
    with MemoryBroker(tmp_path) as broker, caplog.at_level(logging.INFO, "warehouse"):
        kafka = KafkaSettings(bootstrap=broker.address, in_memory=True, memory_run=broker.run_id)
        produce(kafka, "acme", 100)
        first = settings(Path(url))
        with landing_from(kafka, first) as landers:
            logs = [PartitionLog(topics.RAW, n, f"memory-{broker.run_id}") for n in range(4)]
            until(lambda: all(BucketStore(url).read_landed_position(log) for log in logs))
            store.stop()
            produce(kafka, "acme", 100, first=100)
            until(lambda: "landing waits and goes on when it can" in caplog.text)
            assert f"cannot write to {url} ({url} does not answer" in caplog.text
            # A second lander, which must read its start offsets from an unavailable store.
            with landing_from(kafka, settings(Path(url), group=first.group)):
                store.start()
                until(lambda: landed(url)[0] == 200)
            produce(kafka, "acme", 100, first=200)
            until(lambda: landed(url)[0] == 300)
            assert not landers.failed.is_set()
        assert f"{url} takes data again" in caplog.text
    assert landed(url) == (300, 300)


def test_two_landers_of_two_groups_land_every_offset_once(tmp_path: Path, store: ObjectStore) -> None:
    url = store.make()
    with MemoryBroker(tmp_path) as broker:
        kafka = KafkaSettings(bootstrap=broker.address, in_memory=True, memory_run=broker.run_id)
        with landing_from(kafka, *(settings(Path(url), flush_interval_s=0.1) for _ in range(2))) as landers:
            assert all(assigned.wait(240) for assigned in landers.assigned)
            for turn in range(5):
                produce(kafka, "acme", 100, first=100 * turn)
                until(lambda expected=100 * (turn + 1): landed(url)[0] == expected)
    assert landed(url) == (500, 500)
