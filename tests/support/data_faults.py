"""Faults of landed data, injected into its files, and the checks that must detect them."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import duckdb
import pyarrow.parquet as pq
from days import LAST

from warehouse import catalog
from warehouse.file_names import LANDED_FILE_NAME, format_file_name, parse_partition_log
from warehouse.partition_log import PartitionLog
from warehouse.rollups import has_current_rollups
from warehouse.schemas import SCHEMAS
from warehouse.views import create_view_statements
from warehouse.watermark import unmerged_versions_condition

COULD_NOT_RUN = "(could not run)"
ODD_HOUR = f"{LAST} 13:00:00+00"
"""The hour of faults that affect one hour only."""


class Fault(NamedTuple):
    """A fault: its injection, the checks that must detect it, and the silent hours of a day that is simulated again."""

    inject: Callable[[Path], None]
    seen_by: tuple[str, ...]
    silent: tuple[float, float] | None = None


def files(data: Path, dataset: str) -> list[Path]:
    """Return the files of the last day, in the order of their ranges."""
    return sorted(data.glob(f"{dataset}/date={LAST}/*.parquet"))


def change(path: Path, select: str) -> None:
    """Replace the rows of a file with those of a query over the table `t`."""
    table = pq.read_table(path, partitioning=None)
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.register("t", table)
        changed = connection.sql(select).to_arrow_table()
    changed = changed.cast(table.schema).replace_schema_metadata(table.schema.metadata)
    pq.write_table(changed, path, compression="zstd")


def edit(dataset: str, columns: str, where: str = "true", count: int | None = None) -> Callable[[Path], None]:
    """Return a fault that changes columns of matching rows, in some files of the last day or in all.

    Args:
        dataset: The dataset.
        columns: `name = value`, several separated by semicolons.
        where: Condition of the rows.
        count: Number of files; None for all.
    """
    parts = [part.partition(" = ") for part in columns.split("; ")]
    replaced = ", ".join(f'CASE WHEN {where} THEN {value} ELSE "{name}" END AS "{name}"' for name, _, value in parts)

    def inject(data: Path) -> None:
        for path in files(data, dataset)[:count]:
            change(path, f"SELECT * REPLACE ({replaced}) FROM t")  # noqa: S608 - ours

    return inject


def rows(dataset: str, select: str) -> Callable[[Path], None]:
    """Return a fault that replaces the rows of one file of the last day."""
    return lambda data: change(files(data, dataset)[1], select)


def lose(dataset: str, pattern: str) -> Callable[[Path], None]:
    def inject(data: Path) -> None:
        found = sorted(data.glob(f"{dataset}/{pattern}"))
        assert found, pattern
        for path in found:
            path.unlink()

    return inject


def lose_one(dataset: str, number: int = 1) -> Callable[[Path], None]:
    return lambda data: files(data, dataset)[number].unlink()


def lose_newest(*datasets: str) -> Callable[[Path], None]:
    """Return a fault: the newest file of each partition has not landed."""

    def inject(data: Path) -> None:
        for dataset in datasets:
            for partition in range(4):
                sorted(data.glob(f"{dataset}/date={LAST}/*+{partition}+*"))[-1].unlink()

    return inject


def copy(dataset: str, number: int = 0) -> Callable[[Path], None]:
    return lambda data: files(data, dataset)[number].with_name("copy.parquet").hardlink_to(files(data, dataset)[number])


def tear(data: Path) -> None:
    path = files(data, "raw")[2]
    path.write_bytes(path.read_bytes()[:-100])


def rewind(data: Path) -> None:
    path = files(data, "raw")[1]
    topic, partition, start = path.stem.split("+")
    change(path, 'SELECT * REPLACE ("offset" - 20 AS "offset") FROM t')
    path.rename(path.with_name(format_file_name(PartitionLog(topic, int(partition)), int(start) - 20)))


def begin_incarnation(earlier: str, later: str) -> Callable[[Path], None]:
    """Return a fault: the newest files are those of a later incarnation of the topic."""

    def inject(data: Path) -> None:
        found = files(data, "raw")
        newest = {sorted(path for path in found if f"+{number}+" in path.name)[-1] for number in range(4)}
        for path in found:
            incarnation = later if path in newest else earlier
            change(path, f"SELECT * REPLACE ('{incarnation}' AS incarnation) FROM t")  # noqa: S608 - ours
            name = LANDED_FILE_NAME.fullmatch(path.name)
            assert name is not None
            log = parse_partition_log(name)._replace(incarnation=incarnation)
            path.rename(path.with_name(format_file_name(log, int(name["start"]))))

    return inject


def misplace(data: Path) -> None:
    path = files(data, "raw")[1]
    path.rename(path.parents[1] / "date=2026-11-20" / path.name)


def add_column(data: Path) -> None:
    path = files(data, "raw")[1]
    table = pq.read_table(path, partitioning=None)
    pq.write_table(table.append_column("device_model", table["source"]), path)


def drop_column(data: Path) -> None:
    path = files(data, "raw")[-1]
    pq.write_table(pq.read_table(path, partitioning=None).drop_columns(["content_type"]), path)


def change_type(dataset: str, column: str) -> Callable[[Path], None]:
    def inject(data: Path) -> None:
        path = files(data, dataset)[1]
        table = pq.read_table(path, partitioning=None)
        at = table.schema.get_field_index(column)
        pq.write_table(table.set_column(at, column, table[column].cast("int64")), path)

    return inject


def differ(data: Path) -> None:
    folder = data / "differences" / f"date={LAST}"
    folder.mkdir()
    row = {"message_key": "acme:1", "source": "acme", "sms_id": 1, "field": "outcome", "streamed": "sent"}
    pq.write_table(
        SCHEMAS["differences"].empty_table().from_pylist([row], schema=SCHEMAS["differences"]), folder / "0.parquet"
    )


def view(name: str, sql: str) -> Callable[[Path], None]:
    """Return a fault that replaces a view. `{}` stands for its query."""

    def inject(data: Path) -> None:
        catalog.publish_views(data)
        # Not the text of DuckDB, which prints lambdas in a syntax that it no longer parses.
        begin = f"CREATE VIEW {name} AS "
        all_ = create_view_statements(data, unmerged_versions_condition(data), has_rollups=has_current_rollups(data))
        (query,) = (each.removeprefix(begin) for each in all_ if each.startswith(begin))
        with duckdb.connect(data / catalog.CATALOG_FILE) as connection:
            connection.execute(f"CREATE OR REPLACE VIEW {name} AS {sql.format(query)}")

    return inject


_AGAIN = (
    'SELECT * FROM t UNION ALL SELECT * REPLACE ((SELECT max("offset") FROM t) + row_number() OVER () AS "offset"{}) '
    "FROM t"
)
_OPEN = (
    "is_ended = false; outcome = 'accepted'; last_status_id = 2; ended_at = NULL; delivered_at = NULL; "
    "failure_class = NULL; network_s = NULL; total_s = NULL"
)
_IS_END = "outcome = 'delivered'"
_FAILED = "outcome = 'undelivered'; last_status_id = 8; failure_class = 'undelivered'; delivered_at = NULL"


def nothing(data: Path) -> None:
    """Change nothing: the fault is in the simulated day."""


FAULTS: dict[str, Fault] = {
    # Files
    "a lost file": Fault(lose_one("raw"), ("raw_offsets_contiguous", "raw_files_contiguous", "messages_in_log")),
    "a duplicated file": Fault(copy("raw"), ("raw_offsets_unique", "raw_ingest_ids_unique")),
    "a duplicated newest file": Fault(copy("raw", -1), ("raw_offsets_unique",)),
    "a torn file": Fault(tear, (COULD_NOT_RUN,)),
    "a Kafka restored from an older copy": Fault(begin_incarnation("topic", "topic.1"), ("raw_log_not_cut",)),
    "a topic that was created again": Fault(begin_incarnation("topic", "other"), ("raw_topic_not_replaced",)),
    "a lost partition": Fault(lose("raw", "date=2*/*+2+*"), ("raw_partitions_there",)),
    "a rewound offset": Fault(rewind, ("raw_offsets_unique", "raw_files_contiguous")),
    "a file in another date's folder": Fault(misplace, ("raw_dates_right",)),
    "a file with another column": Fault(add_column, ("raw_columns_exact",)),
    "a newest file without a column": Fault(drop_column, ("raw_columns_exact",)),
    "a column of another type": Fault(change_type("raw", "channel_id"), ("raw_columns_exact",)),
    "a column of messages of another type": Fault(change_type("messages", "attempts"), ("messages_columns_exact",)),
    "a column of dead letters of another type": Fault(
        change_type("deadletters", "origin_partition"), ("deadletters_columns_exact",)
    ),
    "a lander that stopped": Fault(lose_newest("raw", "messages"), ("raw_fresh", "messages_volume")),
    "a lost file of messages": Fault(lose_one("messages"), ("messages_files_contiguous", "messages_complete")),
    "a duplicated file of messages": Fault(copy("messages"), ("messages_offsets_unique",)),
    "a lost file of dead letters": Fault(
        lose_one("deadletters"), ("deadletters_files_contiguous", "deadletters_complete")
    ),
    # Webhooks
    "one lost row": Fault(rows("raw", 'FROM t WHERE "offset" <> (SELECT max("offset") - 5 FROM t)'),
                          ("raw_offsets_contiguous",)),
    "one doubled row": Fault(rows("raw", "FROM t UNION ALL (FROM t LIMIT 1)"), ("raw_offsets_unique",)),
    "one row in place of another": Fault(
        rows("raw", '(FROM t ORDER BY "offset" LIMIT 1) UNION ALL (FROM t ORDER BY "offset" DESC LIMIT '
                    "(SELECT count(*) - 2 FROM t)) UNION ALL (FROM t ORDER BY \"offset\" LIMIT 1)"),
        ("raw_offsets_contiguous", "raw_ingest_ids_unique"),
    ),
    "a doubled webhook": Fault(rows("raw", _AGAIN.format("")), ("raw_ingest_ids_unique",)),
    "a shifted time zone of receipts": Fault(
        edit("raw", "received_at = received_at - INTERVAL 2 HOUR"), ("raw_recorded_when_received", "raw_receipts_timed")
    ),
    "a shifted time zone of receipts and records": Fault(
        edit("raw", "received_at = received_at - INTERVAL 2 HOUR; recorded_at = recorded_at - INTERVAL 2 HOUR"),
        ("raw_receipts_timed",),
    ),
    "clock skew": Fault(
        edit("raw", "received_at = received_at + INTERVAL 7 HOUR; recorded_at = recorded_at + INTERVAL 7 HOUR"),
        ("raw_clock_not_ahead", "raw_receipts_timed"),
    ),
    "swapped columns, device and channel": Fault(
        edit("raw", "device_id = channel_id; channel_id = device_id", count=2),
        ("raw_channels_in_range", "raw_devices_in_range"),
    ),
    "swapped columns, message and status": Fault(
        edit("raw", "sms_id = status_id; status_id = 1 + sms_id % 1000000", "kind = 'status'"),
        ("raw_codes_known", "messages_in_log"),
    ),
    "no source": Fault(edit("raw", "source = NULL", '"offset" % 50 = 0'), ("raw_receipts_complete",)),
    "no time of receipt": Fault(edit("raw", "received_at = NULL", '"offset" % 50 = 0'), ("raw_receipts_complete",)),
    "no ingest_id": Fault(edit("raw", "ingest_id = NULL", '"offset" % 50 = 0'), ("raw_receipts_complete",)),
    "ids that ingest did not give": Fault(edit("raw", "ingest_id = uuid()::VARCHAR"), ("raw_ingest_ids_valid",)),
    "no body": Fault(edit("raw", "body = NULL", '"offset" % 50 = 0'), ("raw_bodies_there",)),
    "status reports without an id": Fault(
        edit("raw", "sms_id = NULL", "kind = 'status' AND \"offset\" % 50 = 0"), ("raw_kinds_legal",)
    ),
    "an unknown kind": Fault(edit("raw", "kind = 'delivery'", "kind = 'incoming'"), ("raw_kinds_legal",)),
    "text and image in one": Fault(
        edit("raw", "text = 'Hi'; image_url = 'https://gateway.invalid/1'", "kind = 'incoming'"),
        ("raw_incoming_whole",),
    ),
    "neither text nor image": Fault(
        edit("raw", "text = NULL; image_url = NULL", "kind = 'incoming'"), ("raw_incoming_whole",)
    ),
    "devices numbered 0": Fault(edit("raw", "device_id = 0", "device_id = 8004"), ("raw_devices_in_range",)),
    "a new status code": Fault(
        edit("raw", "status_id = 77", "status_id = 6 AND \"offset\" % 40 = 0"), ("raw_no_new_status_codes",)
    ),
    "many undocumented codes": Fault(
        edit("raw", "status_id = 13", "kind = 'status' AND \"offset\" % 8 = 0"), ("raw_codes_known",)
    ),
    "a date that cannot be read": Fault(
        edit("raw", "flaws = ['senttime']; sent_at = NULL", "kind = 'status' AND \"offset\" % 8 = 0"), ("raw_flawless",)
    ),
    "a gateway that sends garbage": Fault(
        edit("raw", "kind = 'unreadable'; reason = 'not_json'; sms_id = NULL; status_id = NULL", '"offset" % 8 = 0'),
        ("raw_readable", "deadletters_complete"),
    ),
    "a gateway that repeats itself": Fault(
        lambda data: [
            change(path, _AGAIN.format(", uuidv7()::VARCHAR AS ingest_id")) for path in files(data, "raw")
        ] and None,
        ("raw_reports_new",),
    ),
    "a gateway of another time zone": Fault(
        edit("raw", "sent_at = received_at + INTERVAL 2 HOUR", "kind = 'status'"), ("raw_sent_before_received",)
    ),
    "an hour missing": Fault(nothing, ("messages_volume",), (13, 14.2)),
    # Messages
    "a stream that stopped": Fault(lose_newest("messages"), ("messages_up_to_date",)),
    "a stuck device": Fault(edit("messages", _OPEN, "device_id = 8001"), ("messages_outcome_matches_raw",)),
    "a message under two keys": Fault(
        edit("messages", "message_key = 'acme:1'", '"offset" % 50 = 0'), ("messages_keys_unique",)
    ),
    "messages without a first report": Fault(
        edit("messages", "first_seen_at = NULL", '"offset" % 50 = 0'), ("messages_whole",)
    ),
    "an outcome that no rate knows": Fault(edit("messages", "outcome = 'lost'", _IS_END), ("messages_outcomes_known",)),
    "an outcome that is not its status": Fault(
        edit("messages", "outcome = 'undelivered'", _IS_END), ("messages_states_legal", "messages_outcome_matches_raw")
    ),
    "deliveries made failures": Fault(edit("messages", _FAILED, _IS_END), ("messages_outcome_matches_raw",)),
    "deliveries of an hour made failures": Fault(
        edit("messages", _FAILED, f"{_IS_END} AND date_trunc('hour', first_seen_at) = TIMESTAMPTZ '{ODD_HOUR}'"),
        ("messages_outcome_matches_raw", "delivery_from_raw"),
    ),
    "ends that are none": Fault(edit("messages", "is_ended = false", _IS_END), ("messages_ends_clear",)),
    "ends without a time": Fault(edit("messages", "ended_at = NULL", _IS_END), ("messages_ends_clear",)),
    "deliveries without a time": Fault(
        edit("messages", "delivered_at = NULL", _IS_END), ("messages_deliveries_clear",)
    ),
    "deliveries with a reason why they failed": Fault(
        edit("messages", "failure_class = 'generic'", _IS_END), ("messages_deliveries_clear",)
    ),
    "negative latencies": Fault(
        edit("messages", "network_s = -1", "network_s > 0"), ("messages_latencies_not_negative",)
    ),
    "latencies in milliseconds": Fault(
        edit("messages", "total_s = total_s * 1000; network_s = network_s * 1e6"),
        ("messages_latencies_add_up", "messages_latencies_real"),
    ),
    "ends before the first report": Fault(
        edit("messages", "ended_at = first_seen_at - INTERVAL 1 HOUR", _IS_END), ("messages_times_in_order",)
    ),
    "a shifted time zone of ends": Fault(
        edit("messages", "ended_at = ended_at + INTERVAL 2 HOUR", _IS_END),
        ("messages_times_in_order", "messages_latencies_add_up"),
    ),
    "a shifted time zone of first reports": Fault(
        edit("messages", "first_seen_at = first_seen_at - INTERVAL 2 HOUR"), ("messages_span_reports",)
    ),
    "a shifted time zone of last reports": Fault(
        edit("messages", "last_seen_at = last_seen_at - INTERVAL 2 HOUR"),
        ("messages_span_reports", "messages_times_in_order"),
    ),
    "messages of the future": Fault(
        edit("messages", "last_seen_at = last_seen_at + INTERVAL 2 DAY", '"offset" % 50 = 0'), ("messages_not_ahead",)
    ),
    "a clock that does not expire": Fault(
        edit("messages", "outcome = 'sent'; is_ended = false; ended_at = NULL", "outcome = 'expired'"),
        ("messages_expire",),
    ),
    "messages that were never tried": Fault(edit("messages", "attempts = 0"), ("messages_attempts_real",)),
    "messages without a report": Fault(edit("messages", "observations = []"), ("messages_observed",)),
    "versions that count too little": Fault(edit("messages", "version = 0"), ("messages_versions_grow",)),
    "contradictions everywhere": Fault(edit("messages", "contradicted = true"), ("messages_contradiction_share",)),
    "a result that does not follow from the log": Fault(differ, ("messages_follow_from_log",)),
    # Dead letters, views
    "dead letters without a reason": Fault(edit("deadletters", "reason = NULL"), ("deadletters_explained",)),
    "dead letters of nothing": Fault(
        edit("deadletters", "origin_offset = origin_offset + 1000000"), ("deadletters_in_log", "deadletters_complete")
    ),
    "a stream that puts all aside": Fault(
        lambda data: change(
            files(data, "deadletters")[0],
            "SELECT t.* REPLACE (origin_offset - n AS origin_offset) FROM (FROM t LIMIT 1) AS t, range(1000) AS o (n)",
        ),
        ("deadletters_few", "deadletters_complete"),
    ),
    "a view with impossible rates": Fault(
        view("delivery_by_device", "SELECT * REPLACE (delivered_per_ended * 2 AS delivered_per_ended) FROM ({})"),
        ("rates_in_range",),
    ),
    "a view that leaves devices out": Fault(
        view("delivery_by_device", "FROM ({}) WHERE device_id <> 8001"), ("delivery_adds_up",)
    ),
    "a view with messages in another hour": Fault(
        view("delivery_hourly", "SELECT * REPLACE (hour + INTERVAL 2 HOUR AS hour) FROM ({})"), ("delivery_from_raw",)
    ),
    "a view that leaves an hour out": Fault(
        view("delivery_hourly", f"FROM ({{}}) WHERE hour <> TIMESTAMPTZ '{ODD_HOUR}'"),
        ("delivery_from_raw", "delivery_adds_up"),
    ),
}  # fmt: skip
