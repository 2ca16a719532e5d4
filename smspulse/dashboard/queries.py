"""The numbers of the page: the views of the moment, over one day of messages that is held in memory."""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import duckdb

from gateway.statuses import STATUSES, Status
from smspulse.dashboard import metrics
from warehouse.catalog import rates, sums_sql, view_sql
from warehouse.errors import NoWarehouseError
from warehouse.reader import open_warehouse, retried, rows
from warehouse.status_codes import known_statuses

# What the views of the moment read, and of persons nothing.
_HOLD: Final = """
    CREATE TEMP TABLE held AS
    SELECT * EXCLUDE (recipient, observations)
    FROM messages
    WHERE
        outcome <> 'incoming'
        AND (first_seen_at > now() - INTERVAL 24 HOUR OR ended_at > now() - INTERVAL 24 HOUR)
"""
_FAILURES: Final = sums_sql("failures", "(SELECT *, 1 AS sign, first_seen_at::DATE AS day FROM messages)")
_KEPT: Final = {
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

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Choice:
    """What somebody wants to see.

    Args:
        source: One, or all where it is empty.
        device: One, or all where it is None.
    """

    source: str = ""
    device: int | None = None


class Numbers:
    """Answers as the views would, as of the last `refresh`. Any thread may call anything.

    Args:
        data: The data folder.
        pipeline: Returns the state of the processes; see `smspulse.status.pipeline`.
    """

    def __init__(self, data: Path, pipeline: Callable[[], dict[str, Any]]) -> None:
        self._data, self._pipeline = data, pipeline
        self._lock = threading.Lock()
        self.statuses: Mapping[int, Status] = STATUSES
        self._connection: duckdb.DuckDBPyConnection | None = None
        self.kept: dict[str, Any] = {"trouble": "the numbers are being read"}

    def refresh(self) -> float:
        """Read again; return how many seconds that took.

        Raises:
            Exception: What went wrong, if nobody foresaw it. The page shows that it is not up to date.
        """
        try:
            return self._refresh()
        except Exception as error:
            with self._lock:
                self.kept |= {"trouble": f"the numbers cannot be read: {str(error) or repr(error)}"}
            raise

    def _refresh(self) -> float:
        started = time.monotonic()
        kept: dict[str, Any] = {
            "freshness": [],
            "deadletters": [],
            "sources": [],
            "alerts": [],
            "learning": [],
            "checks": [],
        } | self._pipeline()
        connection = None
        try:
            connection = reader = open_warehouse(self._data)
            self.statuses = known_statuses(self._data)
            retried(lambda: reader.execute(_HOLD))
            kept |= {name: rows(connection, sql) for name, sql in _KEPT.items()}
            (kept["as_of"],) = connection.execute("SELECT strftime(now(), '%H:%M:%S')").fetchall()[0]
        except NoWarehouseError:
            kept["trouble"] = "nothing has landed yet: send a webhook, or run `smspulse up --demo`"
        except duckdb.Error as error:
            kept["trouble"] = f"the warehouse cannot be read: {str(error).splitlines()[0]}"
        with self._lock:
            if "trouble" in kept and connection is not None:
                connection.close()
            elif connection is not None:
                self._connection, connection = connection, self._connection
                if connection is not None:
                    connection.close()
            self.kept = kept
        took = time.monotonic() - started
        if "trouble" not in kept:
            metrics.read(kept, time.time(), took)
        return took

    def ask(self, view: str, choice: Choice, sql: str = "FROM asked") -> list[Row]:
        """Return rows of a view, as if there were no other messages than those chosen.

        Args:
            view: A view over `messages`.
            choice: Which messages.
            sql: What to ask; the view is called `asked`.

        Raises:
            duckdb.Error: The SQL is wrong.
        """
        statement = f"""
            WITH messages AS (
                SELECT * FROM held
                WHERE ($source = '' OR source = $source) AND ($device IS NULL OR device_id = $device)
            ),
            asked AS ({view_sql(view).replace("{rates}", rates()).replace("{failures}", f"({_FAILURES})")})
            {sql}
        """  # noqa: S608 - SQL of ours
        with self._lock:
            if self._connection is None:
                return []
            return rows(self._connection, statement, {"source": choice.source, "device": choice.device})
