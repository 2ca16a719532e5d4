"""Lifecycles from the log: what the raw webhooks say of each message, held against what the stream says.

    {data}/base/date=YYYY-MM-DD/{partition}-{mark}.parquet      a row a message first seen on that day, sorted by key
                                                                (all-{mark}, once compaction has merged a closed day)
    {data}/base/{sum}/date=YYYY-MM-DD/0-{mark}.parquet          counts of them, by warehouse/sql/rollups/*.sql
    {data}/differences/date=YYYY-MM-DD/{partition}-{mark}.parquet
                                                                where stream and log differ, a row a message and field
    {data}/base/covered.json                      up to which offsets of sms.messages the base holds everything

A day is closed once none of its messages is open and all were compared; closed days are left alone until something new
is heard of one of their messages. Days that are not closed yet have base files too, so that readers have only what came
since the last run to sort out. The order is: all of `base` in one step; `differences`; then the views. The views take
the larger version of base and stream, so a run that is interrupted anywhere leaves every number as it was. After a
first whole run, that is: a single day's files do not outweigh what the stream has written of it.

What the stream read from a body was landed with it (`gateway.payloads.parse_payload`), so bodies are not parsed a
second time: lifecycles are computed a second time. A report can be in the log twice, as when Kafka wrote it and did not
acknowledge it: both have one time of receipt and are one fact. The clock is the newest record: time passes up to the
end of the log.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import duckdb
import pyarrow.parquet as pq

from core.records import MAX_OBSERVATIONS
from core.topics import MESSAGES, RAW
from gateway.payloads import MAX_NAME_LENGTH
from gateway.statuses import StatusCode
from warehouse import catalog
from warehouse.datasets import ROLLUPS
from warehouse.errors import RebuildError
from warehouse.file_names import SEED_DATE
from warehouse.landed_files import list_incarnations_by_age
from warehouse.maintenance import atomic_replace
from warehouse.partition_log import UNKNOWN_INCARNATION, PartitionLog, parse_topic_id
from warehouse.reader import LOCAL_FILE_SETTINGS
from warehouse.rollups import has_current_rollups, load_rollup_sql, rollup_fingerprint
from warehouse.schemas import BASE_SCHEMA
from warehouse.sink.lost_records import find_first_lost_offsets, find_present_incarnation
from warehouse.sql_text import dataset_glob_sql, dataset_scan_sql, log_position_sql, quote_sql_text
from warehouse.watermark import (
    WATERMARK_FILE,
    BaseWatermark,
    newer_versions_condition,
    read_base_watermark,
    watermark_offset_sql,
)

_log = logging.getLogger(__name__)

BASE_ROW_GROUP_ROWS: Final = 40_960
"""Rows. A look-up by key reads one group's columns, lists too, and asks every other one, which takes as long."""
BASE_CODEC: Final = "lz4"
"""What compresses base files: a tenth larger than with zstd, a look-up takes a fifth less."""
CLOSED_DAY_KEY: Final = b"smspulse.closed"
"""Of a base file's metadata: `1`, once its day is closed."""
_ABANDONED_AFTER: Final = timedelta(days=31)
_ROLLUP_BATCH_BYTES: Final = 1 << 29
"""Bytes of base files, some six million messages."""
# How long stream, landers and clocks may lag behind each other without being called different.
_SETTLED_AFTER: Final = "INTERVAL 10 MINUTE"
_COMPARED_COLUMNS: Final = tuple(
    name for name in BASE_SCHEMA.names if name not in {"message_key", "source", "sms_id", "version", "recorded_at"}
)
_OBSERVATION_COLUMNS: Final = ("source", "sms_id", "status_id", "device_id", "channel_id", "sent_at")
"""Columns of the log that tell apart observations."""
_WITHOUT_LONG_RECIPIENT: Final = """* REPLACE (
    CASE WHEN length(recipient) <= getvariable('longest_address') THEN recipient END AS recipient,
    version - coalesce(length(recipient) > getvariable('longest_address'), false)::BIGINT AS version
)"""
"""Earlier releases counted an address of any length as a fact of its message."""
_RESULT_COLUMNS: Final = tuple(name for name in BASE_SCHEMA.names if name not in {"version", "recorded_at"})


@dataclass(slots=True)
class RebuildResult:
    """What a run did.

    Args:
        days: Whose base files were written.
        open_days: Those of them that are not closed yet.
        messages: In these files.
        reports: Read from the log.
        differing: Messages on which stream and log differ.
        repaired: Messages that the stream had forgotten before their last report, whole again.
        unsettled: Messages that stream or lander had not got to yet; the next run compares them.
    """

    days: set[date]
    open_days: set[date]
    messages: int = 0
    reports: int = 0
    differing: int = 0
    repaired: int = 0
    unsettled: int = 0


def rebuild_base(
    data: Path,
    statuses: Mapping[int, StatusCode],
    expire_after: timedelta,
    *,
    day: date | None = None,
    everything: bool = False,
    memory: str = "3.8GB",
    max_observations: int = MAX_OBSERVATIONS,
) -> RebuildResult:
    """Recompute lifecycles from the log, compare them with the stream's, and write base files. Readers go on meanwhile.

    Args:
        data: The data folder.
        statuses: What each status id means, as the stream has it.
        expire_after: After how long without a report an open message expires, as the stream has it.
        day: Rebuild the messages first seen on this day (UTC) alone.
        everything: Rebuild all days, not only those that are not closed or have news.
        memory: What DuckDB may take; beyond it goes to disk.
        max_observations: How many different reports a message holds, as the stream has it.

    Raises:
        RebuildError: The log of the day is not there, a file is damaged, or memory and disk do not suffice.
        OSError: The data folder is not writable.
    """
    data = data.resolve()
    catalog.publish_views(data)
    with atomic_replace.lock_maintenance(data) as scratch:
        for name in ("base", *(f"base/{name}" for name in ROLLUPS)):
            atomic_replace.add_rotating_seed(data / name)  # the views list them more than once, or together
        run = _BaseRebuild(data, scratch, memory)
        try:
            with run.connection:
                run.create_input_views(statuses, expire_after, max_observations)
                return run.rebuild_days(day, everything=everything)
        except duckdb.IOException as error:
            raise OSError(" ".join(str(error).split())) from error
        except duckdb.Error as error:
            raise RebuildError(data, str(error).partition("\n")[0]) from error


class _BaseRebuild:
    """One run. Temporary files are in `scratch` until all are written."""

    def __init__(self, data: Path, scratch: Path, memory: str) -> None:
        self._data, self._scratch = data, scratch
        found = read_base_watermark(data)
        self._earliest_complete_day = found.floor if found else date.min
        self.connection = duckdb.connect(
            config={
                "memory_limit": memory,
                "block_allocator_memory": memory,  # kept from table to table: asking for it anew takes a twentieth
                "temp_directory": str(scratch / "spill"),
                "preserve_insertion_order": False,
            }
        )

    def _fetch_rows(self, sql: str, *parameters: Any) -> list[Any]:
        return self.connection.execute(sql, parameters or None).fetchall()

    def _fetch_value(self, sql: str, *parameters: Any) -> Any:
        return self._fetch_rows(sql, *parameters)[0][0]

    def _log_position_sql(self, topic: str) -> str:
        return log_position_sql(list_incarnations_by_age(self._data, topic))

    def create_input_views(
        self, statuses: Mapping[int, StatusCode], expire_after: timedelta, max_observations: int
    ) -> None:
        """Make what the SQL of this folder reads."""
        positions = {
            dataset: f", {self._log_position_sql(topic)} AS position"
            for dataset, topic in (("raw", RAW), ("messages", MESSAGES))
        }
        self._fetch_rows(LOCAL_FILE_SETTINGS)
        self._fetch_rows("SET GLOBAL TimeZone = 'UTC'")
        self._set_variable("longest_address", MAX_NAME_LENGTH)
        for name in ("raw", "messages", "deadletters", "base"):
            found = dataset_scan_sql(self._data / name, filename=name == "messages")
            columns = _WITHOUT_LONG_RECIPIENT if name == "messages" else "*"
            self._fetch_rows(f"CREATE TEMP VIEW {name}_files AS SELECT {columns}{positions.get(name, '')} FROM {found}")  # noqa: S608
        create_statuses_table(self.connection, statuses)
        self._set_variable("expire_after", expire_after)
        self._set_variable("max_observations", max_observations)
        landed = ", ".join(dataset_glob_sql(self._data / name) for name in ("raw", "messages"))
        self._fetch_rows(f"""
            SET VARIABLE horizon = (
                SELECT max(stats_max_value::TIMESTAMPTZ) FROM parquet_metadata([{landed}])
                WHERE path_in_schema = 'recorded_at'
            )
        """)  # noqa: S608 - names of ours

    def _set_variable(self, name: str, value: object) -> None:
        self._fetch_rows(f"SET VARIABLE {name} = ?", value)

    def rebuild_days(self, only_day: date | None, *, everything: bool) -> RebuildResult:
        """Do it."""
        report = RebuildResult(set(), set())
        end_offsets_sql = """
            SELECT "partition", coalesce(incarnation, ''), max("offset") + 1, max(date)
            FROM messages_files WHERE topic IS NOT NULL GROUP BY ALL ORDER BY ALL
        """
        logs = {
            PartitionLog(MESSAGES, partition, incarnation).file_label: (end, newest)
            for partition, incarnation, end, newest in self._fetch_rows(end_offsets_sql)
        }
        self._end_offsets = {label: end for label, (end, _) in logs.items()}
        if only_day:
            found = self._fetch_value("SELECT min(coalesce(received_at, recorded_at))::DATE FROM raw_files")
            if found is None or only_day < max(found, self._earliest_complete_day):
                begin = max(found, self._earliest_complete_day) if found else "no day"
                raise RebuildError(self._data, f"raw webhooks begin on {begin}, {only_day} cannot be rebuilt")
        start = None if everything else only_day or self._find_first_open_day()
        if self._earliest_complete_day > date.min:
            start = max(start or date.min, self._earliest_complete_day)
        self._set_variable("start", datetime.combine(start or date(1, 1, 1), time(), UTC))
        written: dict[Path, Path] = {}
        partitions = """
            SELECT DISTINCT "partition" FROM raw_files UNION SELECT DISTINCT "partition" FROM messages_files ORDER BY 1
        """
        for (partition,) in self._fetch_rows(partitions):
            self._compute_partition(partition)
            report.differing += self._count_differing("different")
            report.repaired += self._count_differing("repaired")
            report.unsettled += self._count_differing("unsettled")
            report.reports += self._fetch_value("SELECT getvariable('logged').reports")
            written |= self._write_partition(partition, start, only_day, report)
            self._fetch_rows("DROP TABLE result")
        base = {place: path for place, path in written.items() if place.is_relative_to(self._data / "base")}
        differences = {place: path for place, path in written.items() if place not in base}

        def is_old(path: Path) -> bool:
            # All partitions of a day are written together, so all its files go, those that were merged too.
            return only_day == _parse_file_day(path) or (not only_day and (start or date.min) <= _parse_file_day(path))

        kept = [path for path in _list_rebuilt_files(self._data / "base") if not is_old(path)]
        files_to_count = {place: (_parse_file_day(place), path) for place, path in base.items()}
        if only_day is None and not has_current_rollups(self._data):
            files_to_count |= {path: (_parse_file_day(path), path) for path in kept}
        rollup_files = self._write_rollups(files_to_count.values())
        if only_day is None:
            since = _first_uncovered_day([newest for _, newest in logs.values()])
            base[self._data / "base" / WATERMARK_FILE] = path = self._scratch / WATERMARK_FILE
            path.write_text(
                BaseWatermark(since, self._end_offsets, self._earliest_complete_day, rollup_fingerprint()).to_json()
            )
        old_sums = [path for name in ROLLUPS for path in _list_rebuilt_files(self._data / "base" / name)]
        rewritten_folders = {place.parent for place in rollup_files}
        removed = [path for path in _list_rebuilt_files(self._data / "base") if is_old(path)]
        removed += [path for path in old_sums if is_old(path) or path.parent in rewritten_folders]
        if base or removed:
            atomic_replace.replace_files(self._data / "base", self._scratch, removed, base | rollup_files)
        removed = [path for path in _list_rebuilt_files(self._data / "differences") if is_old(path)]
        if differences or removed:
            atomic_replace.replace_files(self._data / "differences", self._scratch, removed, differences)
        if only_day is None:
            catalog.publish_views(self._data)
        return report

    def _find_first_open_day(self) -> date | None:
        """Return the first day that is not closed or has news; None without any closed day."""
        by_day: dict[date, list[bool]] = {}
        for path in _list_rebuilt_files(self._data / "base"):
            is_closed = (pq.read_metadata(path).metadata or {}).get(CLOSED_DAY_KEY) == b"1"
            by_day.setdefault(_parse_file_day(path), []).append(is_closed)
        open_days = [day for day, closed in by_day.items() if not all(closed)]
        if not by_day:
            return None
        first = min(open_days, default=max(by_day) + timedelta(days=1))
        watermark = read_base_watermark(self._data)
        # Without regard to days: a Kafka that was away for long may have brought versions of long ago.
        unmerged = newer_versions_condition(watermark.offsets) if watermark and watermark.offsets else "true"
        first_news = self._fetch_value(f"""
            SELECT min(least(base.date, live.first_seen_at::DATE))
            FROM (FROM messages_files WHERE version IS NOT NULL AND {unmerged}) AS live
            LEFT JOIN base_files AS base USING (source, sms_id)
            WHERE base.version IS NULL OR live.version >= base.version OR live.last_seen_at > base.last_seen_at
        """)  # noqa: S608 - a condition of ours
        return min(first, first_news or first)

    def _compute_partition(self, partition: int) -> None:
        """Make `concluded` and `differing` of one partition."""
        self._fetch_rows(
            f"CREATE TEMP TABLE log AS SELECT * EXCLUDE (position) FROM ({_load_lifecycle_sql('log')})",  # noqa: S608
            partition,
        )
        create_digest_table(self.connection)
        self._drop_excess_observations(partition)
        create_told_view(self.connection)
        self._fetch_rows("SET VARIABLE logged = (SELECT {'reports': count(*), 'until': max(told_at)} FROM log)")
        self._fetch_rows("DROP TABLE log")  # the largest of all, or memory would not hold the others
        self._fetch_rows("""
            CREATE OR REPLACE TEMP TABLE earlier AS
            SELECT DISTINCT source, sms_id FROM raw_files
            WHERE "partition" = $1 AND kind = 'status' AND (
                received_at < getvariable('start')
                OR (received_at IS NULL AND recorded_at < getvariable('start'))
            )
            UNION
            SELECT source, sms_id FROM base_files WHERE date < getvariable('start')::DATE
        """, partition)  # fmt: skip
        # A hash of all that is compared spares carrying the stream's lists along, which nearly always say the same. And
        # version and offset are compared as one number, for structs take long.
        compared_hash = f"hash({', '.join(_COMPARED_COLUMNS)})"
        is_known = f'"offset" < {watermark_offset_sql(self._end_offsets)}'
        self._fetch_rows(f"""
            CREATE OR REPLACE TEMP TABLE streamed AS
            SELECT
                source, sms_id, outcome, version, recorded_at, position, first_seen_at, last_seen_at,
                len(observations) AS observed, {compared_hash} AS told
            FROM messages_files
            SEMI JOIN (
                SELECT (max((version::HUGEINT << 64) + position) & {2**64 - 1})::BIGINT AS position
                FROM messages_files WHERE "partition" = $1 AND version IS NOT NULL AND {is_known}
                GROUP BY source, sms_id
            ) AS newest USING (position)
            WHERE "partition" = $1 AND first_seen_at >= getvariable('start')
        """, partition)  # fmt: skip  # noqa: S608 - names of ours
        # An expiry is one fact more, and whether the clock saw one before a message was revived is not in the log.
        versions = (
            "s.version NOT BETWEEN r.version AND r.version + 1 OR (s.outcome = 'expired' AND s.version = r.version)"
        )
        # What the stream knows and the log does not yet have: files of raw are landed beside those of messages.
        # Like all that is copied it is no temporary table, which other cursors would not see.
        self._fetch_rows(f"""
            CREATE TABLE result AS
            SELECT
                r.* EXCLUDE (told),
                s.version AS streamed_version,
                s.recorded_at,
                s.position,
                coalesce(
                    r.source IS NULL OR s.observed > len(r.observations) OR s.last_seen_at > r.last_seen_at, false
                ) AS is_ahead,
                CASE WHEN is_ahead THEN s.first_seen_at ELSE r.first_seen_at END::DATE AS day,
                r.told IS DISTINCT FROM s.told OR {versions} AS is_differing
            FROM (
                SELECT *, {compared_hash} AS told
                FROM ({_load_lifecycle_sql("conclude")}) ANTI JOIN earlier USING (source, sms_id)
            ) AS r
            FULL JOIN (FROM streamed ANTI JOIN earlier USING (source, sms_id)) AS s
                ON r.source = s.source AND r.sms_id = s.sms_id
        """)  # noqa: S608 - names of ours
        # Where nothing differs, nothing is read: of no partition.
        read = partition if self._fetch_value("SELECT bool_or(is_differing) FROM result") else None
        self._fetch_rows("""
            CREATE OR REPLACE TABLE stated AS
            SELECT * FROM messages_files SEMI JOIN (FROM result WHERE is_differing) AS differing USING (position)
            WHERE "partition" = $1
        """, read)  # fmt: skip
        columns = ", ".join(_RESULT_COLUMNS)
        self._fetch_rows(f"""
            CREATE OR REPLACE VIEW concluded AS
            SELECT {columns}, greatest(version, streamed_version) AS version, recorded_at, day
            FROM result WHERE NOT is_ahead
            UNION ALL
            SELECT {columns}, version, recorded_at, day
            FROM stated INNER JOIN (SELECT position, day FROM result WHERE is_ahead) AS ahead USING (position)
        """)  # noqa: S608 - names of ours
        facts = "[" + ", ".join(
            f"{{'field': '{name}', 'streamed': s.{name}::VARCHAR, 'rebuilt': r.{name}::VARCHAR}}"
            for name in _COMPARED_COLUMNS
        ) + "]"  # fmt: skip
        self._fetch_rows(f"""
            CREATE OR REPLACE TABLE differing AS
            WITH reached AS (
                SELECT
                    greatest(
                        max(last_seen_at),
                        (SELECT max(received_at) FROM deadletters_files WHERE origin_partition = $1)
                    ) - {_SETTLED_AFTER} AS streamed_until,
                    max(recorded_at) - {_SETTLED_AFTER} AS clock,
                    getvariable('logged').until - {_SETTLED_AFTER} AS logged_until
                FROM messages_files WHERE "partition" = $1 AND {is_known}
            )
            SELECT
                coalesce(r.source, s.source) AS source,
                coalesce(r.sms_id, s.sms_id) AS sms_id,
                coalesce(r.first_seen_at, s.first_seen_at)::DATE AS day,
                CASE
                    WHEN (coalesce(r.source, s.source), coalesce(r.sms_id, s.sms_id)) IN (
                        SELECT (source, sms_id) FROM messages_files
                        WHERE "partition" = $1 AND list_contains(flags, 'late_after_forgetting')
                        UNION ALL
                        SELECT (source, sms_id) FROM raw_files
                        WHERE "partition" = $1 AND kind = 'status'
                            AND {_lost_records_condition(self._data, RAW, partition)}
                        UNION ALL
                        SELECT (source, sms_id) FROM messages_files
                        WHERE "partition" = $1 AND {_lost_records_condition(self._data, MESSAGES, partition)}
                    ) THEN 'repaired'
                    WHEN coalesce(r.last_seen_at >= streamed_until, streamed_until IS NULL)
                        OR coalesce(s.last_seen_at >= logged_until, logged_until IS NULL)
                        OR (
                            r.observations = s.observations AND (r.outcome = 'expired') <> (s.outcome = 'expired')
                            AND r.last_seen_at + getvariable('expire_after') >= clock
                        )
                        THEN 'unsettled'
                    ELSE 'different'
                END AS what,
                CASE
                    WHEN r.source IS NULL THEN [{{'field': 'message', 'streamed': 'there', 'rebuilt': NULL}}]
                    WHEN s.source IS NULL THEN [{{'field': 'message', 'streamed': NULL, 'rebuilt': 'there'}}]
                    WHEN {versions}
                        THEN {facts}
                            || [{{'field': 'version', 'streamed': s.version::VARCHAR, 'rebuilt': r.version::VARCHAR}}]
                    ELSE {facts}
                END AS facts
            FROM (FROM result WHERE is_differing) AS r
            LEFT JOIN stated AS s ON s.position = r.position
            CROSS JOIN reached
        """, read)  # fmt: skip  # noqa: S608 - names of ours

    def _drop_excess_observations(self, partition: int) -> None:
        """Take the reports out of the log that the stream puts aside as `too_many_reports`."""
        if not self._fetch_value("SELECT count(*) FROM digest WHERE reports > getvariable('max_observations')"):
            return
        excess_sql = _load_lifecycle_sql("excess").replace("{log}", _load_lifecycle_sql("log"))
        self._fetch_rows(f"CREATE OR REPLACE TEMP TABLE excess AS {excess_sql}", partition)
        same = " AND ".join(f"log.{name} IS NOT DISTINCT FROM excess.{name}" for name in _OBSERVATION_COLUMNS)
        self._fetch_rows(f"CREATE OR REPLACE TEMP TABLE log AS SELECT log.* FROM log ANTI JOIN excess ON {same}")  # noqa: S608 - ours
        create_digest_table(self.connection)

    def _write_rollups(self, base: Iterable[tuple[date, Path]]) -> dict[Path, Path]:
        """Count what is in base files, each with its day; return the files of that by where they will be."""
        by_day: dict[date, list[Path]] = {}
        for day, path in base:
            by_day.setdefault(day, []).append(path)
        # Before counting, so that `replace_files` seldom has to wait for them.
        atomic_replace.create_parent_folders(
            self._data / "base" / name / f"date={day}" / "files" for name in ROLLUPS for day in by_day
        )
        # Many days at once, for their networks are mostly the same; not all, for quantiles have their values in memory.
        batches: dict[int, list[date]] = {}
        size = 0
        for day, paths in by_day.items():
            size += sum(path.stat().st_size for path in paths)
            batches.setdefault(size // _ROLLUP_BATCH_BYTES, []).append(day)
        written: dict[Path, Path] = {}
        for days in batches.values():
            files = ", ".join(quote_sql_text(str(path)) for day in days for path in by_day[day])
            source = f"read_parquet([{files}], hive_partitioning = false)"
            rows = f"(SELECT *, 1 AS sign, first_seen_at::DATE AS day FROM {source})"  # noqa: S608 - names of ours
            for name in ROLLUPS:
                sql = load_rollup_sql(name, rows, dataset_scan_sql(self._data / "prefixes"))
                self._fetch_rows(f"CREATE OR REPLACE TABLE summed AS {sql}")
                query = "SELECT * EXCLUDE (day) FROM summed WHERE day = DATE '{}'"
                written |= _copy_in_parallel(
                    partial(self._copy_to_parquet, query.format(day), f"base/{name}", 0, day, "ALL") for day in days
                )
        return written

    def _count_differing(self, what: str) -> int:
        return int(self._fetch_value("SELECT count(*) FROM differing WHERE what = ?", what))

    def _write_partition(
        self, partition: int, start: date | None, only: date | None, report: RebuildResult
    ) -> dict[Path, Path]:
        """Write the files of one partition beside the old ones; return them by where they will be."""
        rows = self._fetch_rows("""
            SELECT
                day, count(*),
                bool_and(is_ended OR outcome = 'incoming') AND day < getvariable('horizon')::DATE
                AND day NOT IN (SELECT day FROM differing WHERE what = 'unsettled')
            FROM concluded GROUP BY day
        """)  # fmt: skip
        days = {day: (messages, is_closed) for day, messages, is_closed in rows}
        days = {d: v for d, v in days.items() if only in {None, d} and (start is None or d >= start)}
        for day, (messages, is_closed) in days.items():
            report.messages += messages
            report.days.add(day)
            if not is_closed:
                report.open_days.add(day)
        query = "SELECT * EXCLUDE (day) FROM concluded WHERE day = DATE '{}'"
        written = _copy_in_parallel(
            partial(self._copy_to_parquet, query.format(day), "base", partition, day, closed=is_closed)
            for day, (_, is_closed) in days.items()
        )
        different = {day for (day,) in self._fetch_rows("SELECT DISTINCT day FROM differing WHERE what = 'different'")}
        for day in days:
            if day in different:
                facts = f"""
                    SELECT source || ':' || sms_id AS message_key, source, sms_id, unnest(list_filter(
                        facts, lambda fact: fact.streamed IS DISTINCT FROM fact.rebuilt
                    ), recursive := true)
                    FROM differing WHERE what = 'different' AND day = DATE '{day}'
                """  # noqa: S608 - a day of ours
                written |= [self._copy_to_parquet(facts, "differences", partition, day)]
        return written

    def _copy_to_parquet(
        self,
        query: str,
        dataset: str,
        partition: int,
        day: date,
        order: str = "source, sms_id",
        *,
        closed: bool = True,
    ) -> tuple[Path, Path]:
        target_path = self._data / dataset / f"date={day}" / f"{partition}-{atomic_replace.unique_suffix()}.parquet"
        atomic_replace.create_parent_folders([target_path])
        temporary = self._scratch / target_path.name
        # Sorted, so that a look-up by key reads one row group of a file. V2 has numbers as differences. The codec
        # `lz4_raw` is what pyarrow calls lz4.
        self.connection.cursor().execute(
            f"COPY ({query} ORDER BY {order}) TO {quote_sql_text(str(temporary))} "
            f"(FORMAT parquet, PARQUET_VERSION V2, COMPRESSION {BASE_CODEC}_raw, ROW_GROUP_SIZE {BASE_ROW_GROUP_ROWS}, "
            f"KV_METADATA {{'{CLOSED_DAY_KEY.decode()}': '{int(closed)}'}})"
        )
        return target_path, temporary


def _lost_records_condition(data: Path, topic: str, partition: int) -> str:
    """Return the SQL condition of landed records of a partition that Kafka does not hold any more.

    Its topic was replaced, or Kafka was restored from an older copy. With the records, or with the copy of its state,
    the stream has lost what it knew of their messages.
    """
    present = find_present_incarnation(data, topic, partition)
    if present is None:
        return "false"
    found = find_first_lost_offsets(data, topic, partition, parse_topic_id(present))
    first_lost = {incarnation: offset for incarnation, offset in found.items() if offset is not None}
    if not first_lost:
        return "false"
    cases = " ".join(f"WHEN '{incarnation}' THEN {offset}" for incarnation, offset in first_lost.items())
    return f"coalesce(\"offset\" >= CASE coalesce(incarnation, '{UNKNOWN_INCARNATION}') {cases} END, false)"


def _first_uncovered_day(newest: list[date]) -> date:
    """Return the first day of which the dataset messages may get versions that base files do not hold.

    Args:
        newest: Of each log, the day of its newest file.
    """
    last = max(newest, default=SEED_DATE)
    # A topic of long ago, of which nothing came for longer than Kafka keeps webhooks, is over. Should it come back all
    # the same, the next run finds its news, for it does not go by days.
    present = [day for day in newest if day >= last - _ABANDONED_AFTER]
    return min(present, default=last) - timedelta(days=1)


def create_statuses_table(connection: duckdb.DuckDBPyConnection, statuses: Mapping[int, StatusCode]) -> None:
    """Make `statuses`, which the SQL of this folder reads."""
    connection.execute(
        "CREATE TEMP TABLE statuses "
        "(status_id INT, rank INT, outcome VARCHAR, failure_class VARCHAR, is_end BOOLEAN, is_failure BOOLEAN)"
    )
    for s in statuses.values():
        rank = s.rank if s.is_step or s.is_end else None
        row = (s.id, rank, s.outcome.value, s.failure_class, s.is_end, s.is_failure)
        connection.execute("INSERT INTO statuses VALUES (?, ?, ?, ?, ?, ?)", row)


def create_digest_table(connection: duckdb.DuckDBPyConnection) -> None:
    """Make `digest`, the messages of `log`; it reads `statuses`."""
    connection.execute(f"CREATE OR REPLACE TEMP TABLE digest AS {_load_lifecycle_sql('digest')}")


def create_told_view(connection: duckdb.DuckDBPyConnection) -> None:
    """Make `told`, what the reports in `log` tell of each message, in the columns of told.sql.

    It reads `digest` and `statuses`.
    """
    connection.execute("""
        CREATE OR REPLACE TEMP TABLE reports AS
        SELECT digest.rowid AS message, status_id, log.device_id, log.channel_id, sent_at, told_at
        FROM log
        INNER JOIN digest ON digest.source = log.source AND digest.sms_id = log.sms_id AND NOT is_plain
    """)
    connection.execute(
        f"CREATE OR REPLACE TEMP VIEW told AS ({_load_lifecycle_sql('told')}) "
        f"UNION ALL BY NAME ({_load_lifecycle_sql('plain')})"
    )


def _copy_in_parallel(copies: Iterable[Callable[[], tuple[Path, Path]]]) -> dict[Path, Path]:
    # A file is begun and ended by one core: two at a time keep two busy.
    with ThreadPoolExecutor(2) as pool:
        return dict(pool.map(lambda copy: copy(), copies))


def _list_rebuilt_files(dataset: Path) -> list[Path]:
    """Return the files of base or differences with rows: of partitions, and merged ones."""
    return [*dataset.glob("date=*/[0-9]*.parquet"), *dataset.glob("date=*/all-*.parquet")]


def _parse_file_day(path: Path) -> date:
    return date.fromisoformat(path.parent.name.removeprefix("date="))


def _load_lifecycle_sql(name: str) -> str:
    return files("warehouse").joinpath("sql", "lifecycle", f"{name}.sql").read_text("utf-8")
