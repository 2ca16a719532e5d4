"""The data of the page: views of the moment over one day of messages, which is kept in a temporary file."""

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import duckdb

from core.atomic_file import delete_orphaned_files, open_temporary_file
from core.memory import return_free_memory
from gateway.statuses import STATUSES, StatusCode
from smspulse.dashboard import metrics
from smspulse.dashboard.settings import DEFAULT_MEMORY
from warehouse.base_files import BASE_CODEC
from warehouse.errors import NoWarehouseError
from warehouse.reader import choose_spill_folder, fetch_rows, open_warehouse
from warehouse.sql_text import quote_sql_text
from warehouse.status_codes import load_known_statuses
from warehouse.views import load_view_sql

# The columns that the views of the moment read. No personal data.
_HELD_SQL: Final = """
    SELECT
        source, device_id, channel_id, outcome, failure_class, last_status_id, is_ended, first_seen_at, last_seen_at,
        ended_at, queue_s, device_s, network_s, total_s, attempts, attempt_details
    FROM messages
    WHERE
        outcome <> 'incoming'
        AND (first_seen_at > now() - INTERVAL 24 HOUR OR ended_at > now() - INTERVAL 24 HOUR)
"""
# Into the open file. By default, DuckDB would replace it by another one, which has no lock and stays after a kill.
_HELD_FORMAT: Final = f"(FORMAT parquet, COMPRESSION {BASE_CODEC}_raw, USE_TMP_FILE false)"
_SNAPSHOT_QUERIES: Final = {
    "freshness": "SELECT dataset, rows, seconds_since FROM freshness WHERE rows > 0 ORDER BY dataset",
    "deadletters": """
        SELECT reason, count(*) AS records FROM deadletters
        WHERE received_at > now() - INTERVAL 24 HOUR GROUP BY reason ORDER BY records DESC, reason
    """,
    "alerts": "FROM alerts WHERE is_firing ORDER BY fired_at DESC, alert_id",
    "learning": "SELECT source, device_id FROM failure_detectors WHERE state = 'learning'",
    "checks": "SELECT expectation, severity, success, observed, checked_at FROM quality ORDER BY expectation",
    "sources": "SELECT DISTINCT source FROM held ORDER BY source",
}

FAILURES: Final = "failures"
_FAILURES_SQL: Final = "FROM count_failures('of_source') WHERE $device IS NULL OR device_id = $device"
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class PageFilter:
    """The filter of a page.

    Args:
        source: One source; all if empty.
        device: One device; all if None.
    """

    source: str = ""
    device: int | None = None


class PageSnapshot:
    """A snapshot of the warehouse as of the last `refresh`. All methods are thread-safe.

    Args:
        data: The data folder.
        pipeline: Returns the state of the processes; see `smspulse.runtime.status.collect_pipeline_status`.
        memory: Memory limit of DuckDB.
    """

    def __init__(self, data: Path, pipeline: Callable[[], dict[str, Any]], memory: str = DEFAULT_MEMORY) -> None:
        self._data, self._pipeline, self._memory = data, pipeline, memory
        self._lock = threading.Lock()
        self.statuses: Mapping[int, StatusCode] = STATUSES
        self._connection: duckdb.DuckDBPyConnection | None = None
        # Closes the connection and deletes the file of its messages.
        self._resources = ExitStack()
        self.current_values: dict[str, Any] = {"trouble": "the numbers are being read"}

    def refresh(self) -> float:
        """Read the warehouse again; return the duration in seconds.

        Raises:
            Exception: An unforeseen error. The page shows that it is not up to date.
        """
        started = time.monotonic()
        values: dict[str, Any] = {name: [] for name in _SNAPSHOT_QUERIES}
        connection = None
        resources = ExitStack()
        try:
            values |= self._pipeline()
            # Before the earlier connection is closed, so that both share the cached footers of files.
            connection = resources.enter_context(open_warehouse(self._data))
            connection.execute("SET memory_limit = ?", [self._memory])
            self.statuses = load_known_statuses(self._data)
            folder = choose_spill_folder(self._data)
            if self._connection is None:
                # The file of a page that was killed.
                delete_orphaned_files(folder)
            _, held = resources.enter_context(open_temporary_file(folder, "page.parquet", mode=0o600))
            _hold_messages(connection, held)
            values |= {name: fetch_rows(connection, sql) for name, sql in _SNAPSHOT_QUERIES.items()}
            # DuckDB's clock, which the views use, too.
            (values["as_of"],) = connection.execute("SELECT strftime(now(), '%H:%M:%S')").fetchall()[0]
        except NoWarehouseError:
            values["trouble"] = "nothing has landed yet: send a webhook, or run `smspulse up --demo`"
        except duckdb.Error as error:
            values["trouble"] = f"the warehouse cannot be read: {str(error).splitlines()[0]}"
        except Exception as error:
            with self._lock:
                self.current_values |= {"trouble": f"the numbers cannot be read: {str(error) or repr(error)}"}
            resources.close()
            raise
        with self._lock:
            if "trouble" not in values:
                self._connection = connection
                # What belonged to the earlier connection.
                resources, self._resources = self._resources, resources
            resources.close()
            self.current_values = values
        return_free_memory()
        took = time.monotonic() - started
        if "trouble" not in values:
            metrics.set_page_metrics(values["checks"], time.time(), took)
        return took

    def close(self) -> None:
        """Close the connection, and delete the file."""
        with self._lock:
            self._connection = None
            self._resources.close()

    def query_view(self, view: str, page_filter: PageFilter, sql: str = "FROM asked") -> list[Row]:
        """Return rows of a view over the messages of a filter.

        Args:
            view: A view over `messages` or `attempts`, or `FAILURES`, the rollup of that name.
            page_filter: The filter of messages. Attempts are those of all devices, which are compared.
            sql: The query; the view is called `asked`.

        Raises:
            duckdb.Error: The SQL is wrong.
        """
        # The view runs over the CTEs in place of the views of these names.
        view_sql = _FAILURES_SQL if view == FAILURES else load_view_sql(view)
        statement = f"""
            WITH of_source AS (
                SELECT *, 1 AS sign, first_seen_at::DATE AS day, NULL AS recipient FROM held
                WHERE $source = '' OR source = $source
            ),
            messages AS (FROM of_source WHERE $device IS NULL OR device_id = $device),
            attempts AS (FROM attempts_of('of_source')),
            asked AS ({view_sql})
            {sql}
        """  # noqa: S608 - SQL of ours
        with self._lock:
            if self._connection is None:
                return []
            return fetch_rows(self._connection, statement, {"source": page_filter.source, "device": page_filter.device})


def _hold_messages(connection: duckdb.DuckDBPyConnection, path: Path) -> None:
    """Copy one day of messages to a file. The view `held` reads it.

    A fleet of 5,000 phones has millions of messages a day. A file is compressed, and is read in parts, so memory does
    not grow with it. A table in memory took three times as long to query once DuckDB had to write it to disk.
    """
    quoted = quote_sql_text(str(path))
    fetch_rows(connection, f"COPY ({_HELD_SQL}) TO {quoted} {_HELD_FORMAT}")
    connection.execute(f"CREATE TEMP VIEW held AS FROM read_parquet({quoted})")
