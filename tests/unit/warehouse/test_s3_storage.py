"""A bucket as the data folder: one range is one object, once; views read it; a problem gets one line."""

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from buckets import ObjectStore
from click.testing import CliRunner
from landing import partition_records
from obstore.store import MemoryStore, S3Store
from warehouse_records import NOON, raw, status, version

import warehouse
from core import topics
from smspulse.cli.main import cli
from warehouse.catalog import publish_views
from warehouse.errors import (
    BucketAwayError,
    BucketError,
    DamagedFileError,
    NeedsFolderError,
    NoWarehouseError,
    OvertakenError,
)
from warehouse.partition_log import PartitionLog
from warehouse.reader import retry_after_merge
from warehouse.sink import parquet_files
from warehouse.sink.record_conversion import build_table
from warehouse.sink.s3_storage import BucketStore
from warehouse.views import MACROS, VIEWS

DAY_MS = 86_400_000


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    store = ObjectStore()
    yield store
    store.stop()


@pytest.fixture
def url(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> str:
    store.login(monkeypatch)
    return store.make()


def objects(url: str) -> S3Store:
    name, _, prefix = url.removeprefix("s3://").partition("/")
    return S3Store(name, prefix=prefix, client_options={"allow_http": True})


def landed(url: str) -> list[str]:
    paths = [each["path"] for chunk in objects(url).list("raw") for each in chunk]
    return sorted(path for path in paths if "seed" not in path)


def webhooks(first: int, count: int, *, partition: int = 0, days: int = 0) -> pa.Table:
    records = [raw(offset, status(offset, 6), partition=partition) for offset in range(first, first + count)]
    return build_table(partition_records([each._replace(timestamp=NOON + days * DAY_MS) for each in records]))


def test_objects_are_named_as_files_are_and_tell_where_to_go_on(url: str) -> None:
    bucket = BucketStore(url)
    assert bucket.read_landed_position(PartitionLog(topics.RAW, 0)) == 0
    bucket.land_rows(5, webhooks(8, 3))
    bucket.land_rows(0, webhooks(0, 2, partition=10))
    assert landed(url) == [
        "raw/date=2026-11-24/sms.raw+0+00000000000000000005.parquet",
        "raw/date=2026-11-24/sms.raw+10+00000000000000000000.parquet",
    ]
    assert [BucketStore(url).read_landed_position(PartitionLog(topics.RAW, partition)) for partition in (0, 1, 10)] == [
        11,
        0,
        2,
    ]


def test_the_newest_range_counts_though_its_day_is_older(url: str) -> None:
    bucket = BucketStore(url)
    bucket.land_rows(0, webhooks(0, 3))
    bucket.land_rows(3, webhooks(3, 1, days=-1))
    bucket.land_rows(4, webhooks(4, 1, days=-2))
    assert BucketStore(url).read_landed_position(PartitionLog(topics.RAW, 0)) == 5


@pytest.mark.parametrize("days", [-1, 0, 1])
def test_of_two_that_begin_a_range_at_one_place_one_wins(url: str, days: int) -> None:
    first, late = BucketStore(url), BucketStore(url)
    for bucket in (first, late):
        bucket.read_landed_position(PartitionLog(topics.RAW, 0))
    first.land_rows(0, webhooks(0, 3))
    with pytest.raises(OvertakenError):
        late.land_rows(0, webhooks(0, 5, days=days))
    assert late.read_landed_position(PartitionLog(topics.RAW, 0)) == 3
    late.land_rows(3, webhooks(3, 2, days=days))
    with pytest.raises(OvertakenError):
        first.land_rows(3, webhooks(3, 1))
    assert len(landed(url)) == 2


def test_many_at_once_land_a_range_once(url: str) -> None:
    barrier = threading.Barrier(6)
    outcomes: list[str] = []

    def land_concurrently() -> None:
        bucket = BucketStore(url)
        barrier.wait()
        try:
            bucket.land_rows(0, webhooks(0, 3))
            outcomes.append("landed")
        except OvertakenError:
            outcomes.append("overtaken")

    threads = [threading.Thread(target=land_concurrently) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["landed"] + ["overtaken"] * 5


def test_views_stand_before_any_landing_and_those_who_read_see_new_rows(url: str) -> None:
    bucket = BucketStore(url)
    bucket.prepare_store()
    bucket.prepare_store()
    with warehouse.open_warehouse(url) as connection:
        for view in (*VIEWS, *(f"{macro}('2026-11-24')" for macro in MACROS)):
            connection.execute(f"FROM {view}").fetchall()
        bucket.land_rows(0, webhooks(0, 3))
        versions = [version(0, 1, version=1), version(1, 1, "delivered", version=2), version(2, 2)]
        bucket.land_rows(0, build_table(partition_records(versions)))
        assert connection.execute("SELECT count(*) FROM raw_webhooks WHERE date = '2026-11-24'").fetchall() == [(3,)]
        assert connection.execute("SELECT sms_id, outcome FROM messages ORDER BY 1").fetchall() == [
            (1, "delivered"),
            (2, "sent"),
        ]
        bucket.land_rows(3, webhooks(3, 2, days=1))
        assert connection.execute("SELECT count(*) FROM raw_webhooks").fetchall() == [(5,)]


def test_a_column_that_later_objects_have_is_not_missing(url: str) -> None:
    bucket = BucketStore(url)
    bucket.prepare_store()
    bucket.land_rows(0, webhooks(0, 2).drop_columns("status_id"))
    bucket.land_rows(2, webhooks(2, 2))
    assert warehouse.query(url, 'SELECT status_id FROM raw_webhooks ORDER BY "offset"')["status_id"].tolist()[2:] == [
        6,
        6,
    ]


def test_the_command_line_reads_it(url: str) -> None:
    BucketStore(url).prepare_store()
    BucketStore(url).land_rows(0, webhooks(0, 3))
    answer = CliRunner().invoke(
        cli, ["sql", "--data", url, "SELECT count(*) AS n FROM raw_webhooks", "--format", "csv"]
    )
    assert (answer.exit_code, answer.stdout) == (0, "n\n3\n")


@pytest.mark.parametrize("words", [["compact"], ["rebuild"], ["retain"], ["erase", "--number", "+491"], ["up"]])
def test_what_needs_a_folder_says_so(url: str, words: list[str]) -> None:
    failed = CliRunner().invoke(cli, [words[0], "--data", url, *words[1:]]).exception
    assert isinstance(failed, NeedsFolderError)
    assert str(failed).startswith(f"{url} is a bucket, and this needs a folder of this machine")
    with pytest.raises(NeedsFolderError):
        publish_views(Path(url))
    with pytest.raises(NeedsFolderError):
        publish_views(Path(url).resolve())


def test_a_damaged_object_is_named(url: str) -> None:
    objects(url).put("raw/date=2026-11-24/sms.raw+0+00000000000000000005.parquet", b"PAR1")
    with pytest.raises(DamagedFileError, match=r"sms\.raw\+0\+0+5\.parquet is damaged or not ours"):
        BucketStore(url).read_landed_position(PartitionLog(topics.RAW, 0))


def test_nothing_was_published(url: str) -> None:
    with pytest.raises(NoWarehouseError, match=f"no warehouse in {url}: start"):
        warehouse.open_warehouse(url)


@pytest.mark.parametrize("address", ["s3://", "s3:///a", "s3://lake/a b", "s3://lake/a*"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(BucketError, match="is no address of a data folder"):
        BucketStore(address)


def test_no_bucket_no_login_and_no_answer_are_a_line_each(
    url: str, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BucketError, match=r"^there is no bucket nowhere: create it, or name another with --data$"):
        BucketStore("s3://nowhere/sms").prepare_store()
    with pytest.raises(BucketError, match=r"^there is no bucket nowhere"):
        warehouse.open_warehouse("s3://nowhere/sms")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    for ask in (
        BucketStore(url).prepare_store,
        lambda: BucketStore(url).read_landed_position(PartitionLog(topics.RAW, 0)),
    ):
        with pytest.raises(BucketAwayError, match=rf"^{url} does not answer .*: check AWS_ENDPOINT_URL"):
            ask()
    with pytest.raises(BucketError, match=rf"^{url} does not answer"):
        warehouse.open_warehouse(url)
    store.login(monkeypatch)
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):  # one is missing, then both
        monkeypatch.delenv(variable)
        with pytest.raises(BucketError, match=f"^{url} needs a login: set AWS_ACCESS_KEY_ID"):
            BucketStore(url).prepare_store()


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "warehouse.sink.s3_storage")
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(BucketError, match=r"^s3://lake needs obstore.store, which is not installed: pip install"):
        warehouse.open_warehouse("s3://lake")


def test_a_store_that_overwrites_what_was_to_be_created_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Careless(MemoryStore):
        def put(self, path: str, file: Any, **_: Any) -> Any:
            return super().put(path, file)

    bucket = BucketStore(url)
    monkeypatch.setattr(bucket, "_store", Careless())
    with pytest.raises(BucketError, match=f"^{url} overwrites existing objects"):
        bucket.prepare_store()


def test_a_reader_is_told_when_the_store_goes_and_goes_on_when_it_is_back(url: str, store: ObjectStore) -> None:
    BucketStore(url).prepare_store()
    with warehouse.open_warehouse(url) as connection:

        def read() -> list[Any]:
            return connection.execute("FROM raw_webhooks").fetchall()

        assert read() == []
        store.stop()
        try:
            with pytest.raises(BucketError, match=rf"^{url} does not answer .* and the network$"):
                retry_after_merge(read)
        finally:
            store.start()
        assert read() == []


def test_both_stores_hold_the_same_bytes(url: str, tmp_path: Path) -> None:
    BucketStore(url).land_rows(0, webhooks(0, 3))
    path = parquet_files.land_rows(tmp_path, 0, webhooks(0, 3))
    assert bytes(objects(url).get(landed(url)[0]).bytes()) == path.read_bytes()
