"""Whoever reads the warehouse gets an answer also when files are merged between being listed and being opened."""

import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import duckdb
import pytest
from landing import land_records
from restored import RestoredFolder
from warehouse_records import alert, version

from smspulse.alerting.backtest import read_message_ends
from smspulse.alerting.rendering import read_landed_alerts
from smspulse.dashboard.queries import PageSnapshot
from smspulse.runtime.message_history import find_message
from smspulse.runtime.status import _read_status_views
from warehouse import catalog, reader
from warehouse.maintenance import atomic_replace
from warehouse.reader import query

DAY = "date=2026-11-24"
FILES = 24
MOST_READS = 3_000


def alerts_shown(data: Path) -> Any:
    return read_landed_alerts(data, "true", [])


def status_shown(data: Path) -> Any:
    found = _read_status_views(data)
    assert "unreadable" not in found, found["unreadable"]
    return found["freshness"]


def page_shown(data: Path) -> Any:
    numbers = PageSnapshot(data, dict)
    numbers.refresh()
    assert "trouble" not in numbers.current_values, numbers.current_values["trouble"]
    return numbers.current_values["freshness"]


READERS: list[tuple[Callable[[Path], Any], str]] = [
    (lambda data: find_message(data, "acme:0"), "messages"),
    (lambda data: query(data, "FROM messages").empty, "messages"),
    (lambda data: next(read_message_ends(data, None)), "messages"),
    (page_shown, "messages"),
    (status_shown, "alerts"),
    (alerts_shown, "alerts"),
]


class MergesMet:
    """Counts the errors of files that were gone, as `warehouse.reader` sees them in this thread."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        return self._in_frame if frame.f_code.co_filename == reader.__file__ else None

    def _in_frame(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "exception" and isinstance(argument[1], duckdb.IOException):
            self.count += 1
        return self._in_frame


@pytest.fixture(scope="module")
def _filled(tmp_path_factory: pytest.TempPathFactory) -> RestoredFolder:
    folder = tmp_path_factory.mktemp("filled") / "data"
    catalog.publish_views(folder)
    for number in range(FILES):
        land_records(folder, number, [version(number, number, "delivered", last_status_id=7)])
        land_records(folder, number, [alert(number, "firing")])
    return RestoredFolder(folder)


@pytest.fixture
def data(_filled: RestoredFolder, tmp_path: Path) -> Iterator[Path]:
    """A warehouse of many files a day."""
    with _filled.restored(tmp_path / "data") as folder:
        yield folder


@pytest.mark.parametrize(("read", "dataset"), READERS)
def test_a_merge_while_it_reads_stops_no_reader(data: Path, read: Callable[[Path], Any], dataset: str) -> None:
    folder = data / dataset / DAY
    began, took = threading.Event(), 0.1
    is_done = False

    def merge_once_in_each_reading() -> None:
        while began.wait() and not is_done:
            began.clear()
            time.sleep(random.random() * took)  # noqa: S311 - anywhere within a reading
            with atomic_replace.lock_maintenance(data) as scratch:
                old = sorted(folder.glob("sms*"))
                come = {
                    path.with_name(f"{path.stem.split('-')[0]}-{atomic_replace.unique_suffix()}.parquet"): path
                    for path in old
                }
                atomic_replace.replace_files(folder, scratch, old, come)

    merger = threading.Thread(target=merge_once_in_each_reading)
    merger.start()
    met = MergesMet()
    try:
        for _ in range(MOST_READS):
            began.set()
            start, before = time.monotonic(), sys.gettrace()
            sys.settrace(met)
            try:
                assert read(data) is not None
            finally:
                sys.settrace(before)
            took = time.monotonic() - start
            if met.count:
                break
    finally:
        is_done = True
        began.set()
        merger.join()
    assert met.count, "no reading met a merge"


def test_an_error_of_reading_is_no_merge(published: Path) -> None:
    with pytest.raises(duckdb.CatalogException):
        query(published, "FROM nowhere")
