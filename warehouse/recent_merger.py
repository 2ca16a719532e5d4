"""The thread of a lander that merges what was landed recently."""

import logging
import os
import threading
import time
from pathlib import Path
from typing import Final

import duckdb

from core.memory import return_free_memory
from warehouse import metrics
from warehouse.errors import CannotExchangeError, WarehouseError
from warehouse.maintenance.recent_files import RecentMergeResult, merge_recent_files

_log = logging.getLogger(__name__)

# Landing comes first: a merge can wait.
_NICENESS: Final = 10
# So that a landing just before the end of the interval is not missed.
_PAUSE_SHARE: Final = 0.8
# Seconds until a failure that lasts is logged again.
_REPORT_AGAIN_S: Final = 3600


class RecentFileMerger:
    """Merges recent files in a thread, about once in an interval, and only after something was landed.

    Use it as a context manager. At its end, it waits for the merge of one folder that is in progress.

    Args:
        data: The data folder.
        interval_s: Seconds between the beginnings of two merges.
    """

    def __init__(self, data: Path, interval_s: float) -> None:
        self._data, self._interval_s = data, interval_s
        self._has_landed = threading.Event()
        self._is_stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="recent-file-merger", daemon=True)
        self._failure = ""
        self._reported_at = 0.0

    def __enter__(self) -> "RecentFileMerger":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_stopped.set()
        self._has_landed.set()
        self._thread.join()

    def notify_landed(self) -> None:
        """Say that files were landed."""
        self._has_landed.set()

    def _run(self) -> None:
        # Of this thread alone.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        while not self._is_stopped.wait(_PAUSE_SHARE * self._interval_s):
            self._has_landed.wait()
            self._has_landed.clear()
            # A stop that is requested from here on ends the second wait.
            if not self._is_stopped.is_set():
                # Right after a landing, a merge leaves the least to the queries. It begins without one, too.
                self._has_landed.wait(self._interval_s)
                self._has_landed.clear()
            if self._is_stopped.is_set():
                return
            try:
                self._merge()
            except CannotExchangeError as error:
                _log.warning("recent files are not merged, and queries get slower until `compact` runs: %s", error)
                return

    def _merge(self) -> None:
        started = time.monotonic()
        try:
            result = merge_recent_files(self._data, self._is_stopped.is_set)
        except CannotExchangeError:
            raise
        except (WarehouseError, OSError, duckdb.Error) as error:
            self._report_failure(str(error))
            return
        return_free_memory()
        if result is None:
            # Another process maintains the folder. What was landed is merged next time.
            self._has_landed.set()
            return
        if self._failure:
            _log.info("recent files are merged again")
            self._failure = ""
        self._count(result, time.monotonic() - started)

    def _report_failure(self, failure: str) -> None:
        self._has_landed.set()
        metrics.FAILED_MERGES.inc()
        if failure == self._failure and time.monotonic() < self._reported_at + _REPORT_AGAIN_S:
            return
        self._failure, self._reported_at = failure, time.monotonic()
        _log.warning("recent files are not merged, and queries get slower until they are: %s", failure)

    def _count(self, result: RecentMergeResult, seconds: float) -> None:
        metrics.MERGED_ROWS.labels("landed").inc(result.rows)
        metrics.MERGED_ROWS.labels("base").inc(result.base.rows)
        metrics.MERGE_SECONDS.inc(seconds)
