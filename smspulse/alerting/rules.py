"""Alert rules outside the stream: over the warehouse, and over the pipeline itself.

A file of `sql/` is the rule of one kind. Each of its rows is a finding. A row with `is_bad` is enough for an alert to
begin; the other rows keep an alert firing.
"""

import contextlib
import logging
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, NamedTuple

import pyarrow as pa
from msgspec.structs import replace

from core.alerts import ANY, EVALUATED_KINDS, PIPELINE, Alert, alert_id
from core.consumer_lag import read_group_lag
from core.errors import where_raised
from core.kafka_settings import KafkaSettings
from core.topics import RAW
from ingest.settings import IngestSettings
from ingest.spool import SpoolState, WebhookSpool
from smspulse.alerting.alert_state import format_rfc3339
from streams.settings import StreamSettings
from warehouse.reader import fetch_rows, open_warehouse, retry_after_merge
from warehouse.settings import LanderSettings
from warehouse.status_codes import load_known_statuses

_log = logging.getLogger(__name__)

# Each kind has a file of its name in `sql/`.
SQL_RULE_KINDS: Final = tuple(kind for kind in EVALUATED_KINDS if kind != PIPELINE)
# Baselines change slowly, and are the most expensive queries.
_CACHED_QUERIES: Final = ("activity_profile", "baseline_28d")
_CACHE_LIFETIME_MS: Final = 3_600_000
# A lag begins an alert above either limit. Prometheus has no limits of its own: its rules use the metric of alerts.
_MAX_LAG_RECORDS: Final = 100_000
_MAX_LAG_S: Final = 300
# A device has its part of the source's attempts of the last day. Wider scopes have all of them, and no device.
_FINDINGS_SQL: Final = """
    WITH shares AS (
        SELECT source, device_id, count(*) / sum(count(*)) OVER (PARTITION BY source) AS of_source
        FROM recent_attempts WHERE outcome <> 'incoming' GROUP BY source, device_id
    )
    SELECT
        found.* REPLACE (if(scope = 'device', device_id, NULL) AS device_id),
        if(scope = 'device', coalesce(of_source, 0), 1) AS share
    FROM ({rule}) AS found LEFT JOIN shares USING (source, device_id)
"""


# The evaluator sets phase and times. The other fields are in each finding.
_BLANK_ALERT: Final = Alert(id="", kind="", phase="pending", scope="pipeline", source=ANY, changed_at=0, since=0)


class RuleFinding(NamedTuple):
    """A finding of a rule.

    Attributes:
        alert: The alert that it makes, not yet with phase and times.
        is_bad: Whether it is enough for the alert to begin. Otherwise it keeps an alert firing.
    """

    alert: Alert
    is_bad: bool


def build_finding(kind: str, *, is_bad: bool, part: str = "", **fields: Any) -> RuleFinding:
    """Return a finding of a kind.

    Args:
        kind: Kind of the alert.
        is_bad: See `RuleFinding`.
        part: The part of the pipeline, or the expectation, with the problem.
        fields: Fields of the alert. Without a scope, it is about the pipeline.
    """
    alert = replace(_BLANK_ALERT, kind=kind, **fields)
    of = (alert.device_id,) if alert.scope == "device" else ()
    return RuleFinding(replace(alert, id=alert_id(kind, alert.source, *of, part=part or 0)), is_bad)


class WarehouseRules:
    """Rules over the warehouse of a data folder. Baselines of 28 days are read once an hour.

    Args:
        data: The data folder.
    """

    def __init__(self, data: Path) -> None:
        self._data = data
        self._cached_tables: dict[str, pa.Table] = {}
        self._cached_at_ms = 0
        # A wrong setting must end the process at its start, not fail each evaluation.
        load_known_statuses(data)

    def read_findings(self, now: int) -> list[RuleFinding]:
        """Return the findings at a time in milliseconds.

        Raises:
            NoWarehouseError: Nothing has landed yet.
            duckdb.Error: The warehouse cannot be read.
        """
        return retry_after_merge(lambda: self._query_findings(now))

    def _query_findings(self, now: int) -> list[RuleFinding]:
        with open_warehouse(self._data) as connection:
            # The process runs next to the pipeline on the same machine.
            connection.execute("SET memory_limit = '1GB'")
            connection.execute("SET VARIABLE now = ?", [datetime.fromtimestamp(now / 1000, UTC)])
            connection.execute("SET VARIABLE statuses = ?", [list(load_known_statuses(self._data))])
            connection.execute(_rule_sql("by_scope"))
            if not self._cached_tables or not 0 <= now - self._cached_at_ms < _CACHE_LIFETIME_MS:
                self._cached_tables = {
                    name: connection.sql(_rule_sql(name)).to_arrow_table() for name in _CACHED_QUERIES
                }
                self._cached_at_ms = now
            for name, table in self._cached_tables.items():
                connection.register(name, table)
            connection.execute(f"CREATE TEMP TABLE recent_attempts AS {_rule_sql('recent_attempts')}")
            return [
                finding
                for kind in SQL_RULE_KINDS
                for row in fetch_rows(connection, _FINDINGS_SQL.format(rule=_rule_sql(kind)))
                if (finding := _build_rule_finding(kind, row)) is not None
            ]


def pipeline_findings(data: Path, kafka: KafkaSettings, now: int) -> tuple[list[RuleFinding], set[str]]:
    """Return the findings about spool, lander and stream, and the kinds that were evaluated.

    If Kafka does not answer, only the spool can be found late, and nothing is known to be over.

    Raises:
        duckdb.Error: The warehouse cannot be read.
        NoWarehouseError: Nothing has landed yet.
        SpoolError: The spool cannot be read.
    """
    findings = _read_spool_findings(data, now)
    groups = {LanderSettings(data=data).group: "lander"}
    # The in-memory broker keeps no offsets of transactions.
    if not kafka.in_memory:
        groups[StreamSettings(state=data).group] = "stream"
    lags = read_group_lag(kafka, {group: [RAW] for group in groups})
    if lags is None:
        return findings, set()
    with open_warehouse(data) as connection:
        sql = "SELECT dataset, epoch_ms(newest_recorded_at) FROM freshness"
        newest = dict(retry_after_merge(lambda: connection.execute(sql).fetchall()))
    for group, name in groups.items():
        if lags[group]:
            findings.append(lag_finding(name, lags[group], newest["raw" if name == "lander" else "messages"], now))
    return findings, {PIPELINE}


def _read_spool_findings(data: Path, now: int) -> list[RuleFinding]:
    if not (data / "spool" / "spool.sqlite").exists():
        return []
    settings = IngestSettings()
    with contextlib.closing(WebhookSpool(data, settings)) as spool:
        return spool_findings(spool.read_state(), settings.spool_max_bytes, now)


def lag_finding(name: str, records: int, newest: int | None, now: int) -> RuleFinding:
    """Return the finding about a lag of lander or stream.

    Args:
        name: `lander` or `stream`.
        records: Its lag in records of `sms.raw`, above 0.
        newest: The time of the newest record that it has written; None without any.
        now: In milliseconds, as `newest`.
    """
    return build_finding(
        PIPELINE, part=name, since=newest or now, count=records,
        is_bad=records > _MAX_LAG_RECORDS or newest is None or now - newest > _MAX_LAG_S * 1000,
        what=f"the {name} is {records:,} webhooks behind",
    )  # fmt: skip


def spool_findings(state: SpoolState, max_bytes: int, now: int) -> list[RuleFinding]:
    """Return the finding about the spool, if it holds webhooks. `max_bytes` is its limit, `now` in milliseconds."""
    filled = state.size / max(max_bytes, 1)
    finding = build_finding(
        PIPELINE, part="spool", since=int(now - state.oldest_s * 1000), count=state.webhooks,
        is_bad=state.is_overdue(max_bytes),
        what=f"{state.webhooks:,} webhooks wait in the spool, which is {filled:.0%} full",
    )  # fmt: skip
    return [finding] if state.webhooks else []


def _rule_sql(name: str) -> str:
    return files("smspulse.alerting").joinpath("sql", f"{name}.sql").read_text("utf-8")


def _build_rule_finding(kind: str, row: dict[str, Any]) -> RuleFinding | None:
    """Return the finding in a row; None, with a line in the log, if it cannot be shown. Other rows are not affected."""
    try:
        finding = build_finding(kind, **row)
        format_rfc3339(finding.alert.since)
    except Exception as error:
        _log.error("a finding of %s cannot be shown (%s), and is skipped", kind, where_raised(error))
        return None
    return finding
