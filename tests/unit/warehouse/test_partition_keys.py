"""Folders named key=value above the data folder have no effect. Only those below a dataset are partition keys."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from buckets import ObjectStore
from landing import partition_records
from released import answers, make
from warehouse_records import NOON, raw, status

from gateway.number_search import NumberSearch
from gateway.statuses import build_status_table
from warehouse import catalog
from warehouse.maintenance.compaction import compact_files
from warehouse.maintenance.erasure import erase_from_files
from warehouse.maintenance.retention import drop_expired_days
from warehouse.reader import query
from warehouse.rebuild import rebuild_base
from warehouse.settings import RetentionSettings
from warehouse.sink.record_conversion import build_table
from warehouse.sink.s3_storage import BucketStore

LATER = datetime.fromtimestamp(NOON / 1000, UTC) + timedelta(days=20)
ABOVE = "source=prod/date=2020-01-01/sms_id=x/outcome=sent/filename=f/data"


def told_after_each_step(data: Path) -> list[Any]:
    """Fill a data folder, run each kind of maintenance on it, and return the results after each."""
    catalog.publish_views(data)
    make(data)
    results: list[Any] = [answers(data)]
    rebuilt = rebuild_base(data, build_status_table({}), timedelta(days=1), everything=True)
    results += [(rebuilt.messages, rebuilt.differing, rebuilt.reports), answers(data)]
    compacted = compact_files(data, LATER)
    results += [(compacted.files_before, compacted.files_after, compacted.rows), answers(data)]
    erased = erase_from_files(data, NumberSearch(("+4915700000001",)))
    results += [erased.rows, sorted(erased.keys), answers(data)]
    rebuild_base(data, build_status_table({}), timedelta(days=1), everything=True)
    kept = RetentionSettings(raw_days=10, messages_days=12, versions_days=10)  # type: ignore[call-arg]
    return [*results, drop_expired_days(data, kept, LATER, timedelta(days=9)), answers(data)]


def test_folders_above_the_data_folder_are_no_partition_keys(tmp_path: Path) -> None:
    assert told_after_each_step(tmp_path / ABOVE) == told_after_each_step(tmp_path / "plain")


def test_nor_are_those_of_a_prefix_in_a_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    store = ObjectStore()
    store.login(monkeypatch)
    try:
        url = f"{store.make()}/{ABOVE}"
        bucket = BucketStore(url)
        bucket.prepare_store()
        bucket.land_rows(0, build_table(partition_records([raw(0, status(1, 6))])))
        found = query(url, "SELECT source, sms_id, date::VARCHAR AS date FROM raw_webhooks")
    finally:
        store.stop()
    assert found.to_dict("records") == [{"source": "acme", "sms_id": 1, "date": "2026-11-24"}]


def test_a_condition_on_the_date_chooses_files_before_any_is_opened(published: Path) -> None:
    make(published)
    damaged = published / "raw" / "date=2026-11-20" / "sms.raw+9+00000000000000000000.parquet"
    damaged.parent.mkdir()
    damaged.write_bytes(b"no Parquet")
    sql = "SELECT count(*) AS n FROM dataset('raw') WHERE date = '2026-11-24'"
    found = query(published, sql)
    assert found["n"].tolist() == [9]
