"""Each webhook answered 2xx is landed or in the spool. All others are named."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pytest
from click.testing import CliRunner
from confluent_kafka import Producer
from days import weeks
from landing import land_records
from warehouse_records import MadeRecord

from core.kafka_settings import KafkaSettings
from core.records import WebhookRecord
from core.topic_ids import TopicIds
from core.topics import RAW
from expectations.catalogue import build_checks
from expectations.reconciliation import (
    OUTCOMES_SCHEMA,
    WAITING_SCHEMA,
    KafkaContents,
    measure_reconciliation,
    read_kafka_contents,
)
from expectations.settings import CheckSettings
from ingest.receipts import ID_BYTES, ReceiptLog, read_receipts
from ingest.settings import IngestSettings
from ingest.spool import WebhookSpool
from smspulse.broker.embedded import MemoryBroker
from smspulse.broker.topic_admin import ensure_topics
from smspulse.cli.main import cli
from warehouse import catalog
from warehouse.file_names import parse_folder_day
from warehouse.reader import open_warehouse, query
from warehouse.watermark import WATERMARK_FILE, BaseWatermark

END = datetime(2026, 11, 25, tzinfo=UTC)
LOST = "019ab3b2-0d00-7000-8000-000000000001"
LOST_AT = int(LOST.replace("-", "")[:12], 16)


def accepted(source: str, received_at: int, ingest_id: str) -> WebhookRecord:
    return WebhookRecord(None, b"{}", [("source", source.encode()), ("ingest_id", ingest_id.encode())], received_at)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reconciled")
    weeks(folder, seed=2, messages=24)
    receipts = ReceiptLog(folder)
    with open_warehouse(folder) as connection:
        sql = "SELECT source, epoch_ms(received_at), ingest_id FROM raw_webhooks ORDER BY received_at"
        for row in connection.execute(sql).fetchall():
            receipts.append_receipts([accepted(*row)])
    receipts.close()
    return folder


CHECKS = (
    *("reconciliation_accepted_landed", "reconciliation_landed_accepted", "reconciliation_kafka_landed"),
    "outcomes_match_messages",
)


class Found(NamedTuple):
    count: float
    rows: list[str]


def found(data: Path, check: str, at: datetime = END, kafka: KafkaContents | None = None) -> Found:
    """Return the count of a check, and the records that it names."""
    measures = measure_reconciliation(data, CheckSettings(), at, read_kafka=lambda: kafka)
    assert {each.name for each in build_checks(CheckSettings()) if each.suite == "reconciliation"} < set(measures)
    rows = measures[f"{check}_rows"].dropna()
    return Found(float(measures[check].sum()), [row for scope in rows for row in scope])


def test_answered_webhooks_are_landed_and_old_hours_are_dropped(data: Path) -> None:
    assert len(measure_reconciliation(data, CheckSettings(), END)) > 10
    for check in (
        "reconciliation_accepted_landed",
        "reconciliation_landed_accepted",
        "reconciliation_kafka_landed",
        "outcomes_match_messages",
    ):
        assert found(data, check) == (0, [])
    hours = sorted(path.name for path in (data / "accepted").iterdir())
    assert hours[0] >= "2026-11-16"
    assert hours[-1] == "2026-11-24T23"


def test_a_missing_webhook_is_named_unless_it_is_in_kafka_or_in_the_spool(data: Path) -> None:
    at = datetime.fromtimestamp(LOST_AT / 1000 + 3600, UTC)
    receipts = ReceiptLog(data)
    receipts.append_receipts([accepted("acme", LOST_AT, LOST)])
    receipts.close()
    assert found(data, "reconciliation_accepted_landed", at) == (1, [LOST.replace("-", "")])
    lost = bytes.fromhex(LOST.replace("-", ""))
    kafka = in_kafka(waiting=[{"source": "acme", "received_at": LOST_AT, "id": lost, "record": "raw:0:7"}])
    assert found(data, "reconciliation_accepted_landed", at, kafka) == (0, [])
    assert found(data, "reconciliation_kafka_landed", at, kafka) == (1, ["raw:0:7"])
    assert found(data, "reconciliation_kafka_landed", at - timedelta(hours=1), kafka) == (0, [])  # it is in flight
    spool = WebhookSpool(data, IngestSettings())
    spool.append([WebhookRecord(None, b"{}", [("ingest_id", LOST.encode())], LOST_AT)])
    spool.close()
    assert found(data, "reconciliation_accepted_landed", at) == (0, [])


def in_kafka(waiting: Sequence[dict[str, Any]] = (), outcomes: Sequence[dict[str, Any]] = ()) -> KafkaContents:
    since = END - timedelta(days=1)
    return KafkaContents(
        since, pa.Table.from_pylist(waiting, WAITING_SCHEMA), pa.Table.from_pylist(outcomes, OUTCOMES_SCHEMA)
    )


def test_a_webhook_that_leaves_the_spool_while_kafka_is_read_is_not_missing(data: Path, tmp_path: Path) -> None:
    copy = tmp_path / "data"
    shutil.copytree(data, copy, ignore=shutil.ignore_patterns("spool"))
    receipts = ReceiptLog(copy)
    receipts.append_receipts([accepted("acme", LOST_AT, LOST)])
    receipts.close()
    spool = WebhookSpool(copy, IngestSettings())
    spool.append([WebhookRecord(None, b"{}", [("ingest_id", LOST.encode())], LOST_AT)])
    spool.close()

    def read_before_it_is_forwarded() -> KafkaContents:
        shutil.rmtree(copy / "spool")
        return in_kafka()

    at = datetime.fromtimestamp(LOST_AT / 1000 + 3600, UTC)
    measures = measure_reconciliation(copy, CheckSettings(), at, read_kafka=read_before_it_is_forwarded)
    assert measures["reconciliation_accepted_landed"].sum() == 0
    assert not (copy / "spool").exists()


def test_missing_wrong_and_repeated_outcomes_are_named(data: Path) -> None:
    sql = """
        SELECT
            attempts.message_key, source, sms_id, attempt, attempts.outcome, attempts.is_ended, false AS correction,
            recorded_at AS written_at
        FROM attempts INNER JOIN messages USING (source, sms_id)
        WHERE attempts.is_ended AND attempts.first_seen_at >= ? AND recorded_at < ? ORDER BY attempt, message_key
    """
    written = query(data, sql, [END - timedelta(days=1), END - timedelta(minutes=1)]).to_dict("records")
    assert len(written) > 5
    assert found(data, "outcomes_match_messages", kafka=in_kafka(outcomes=written)) == (0, [])
    missing, wrong, twice = written[:3]
    count, rows = found(
        data, "outcomes_match_messages", kafka=in_kafka(outcomes=[*written[2:], wrong | {"outcome": "expired"}, twice])
    )
    assert (count, set(rows)) == (3, {each["message_key"] for each in (missing, wrong, twice)})
    # An outcome that was corrected later is no difference.
    before = missing | {"outcome": "expired", "written_at": missing["written_at"] - timedelta(seconds=1)}
    corrected = [*written[1:], before, missing | {"correction": True}]
    assert found(data, "outcomes_match_messages", kafka=in_kafka(outcomes=corrected)) == (0, [])


def test_a_webhook_that_was_dropped_for_its_age_is_not_missing(data: Path) -> None:
    day = data / "raw" / "date=2026-11-22"
    since = datetime(2026, 11, 22, tzinfo=UTC)
    moved = day.rename(data / day.name)
    (data / "base" / WATERMARK_FILE).write_text(
        BaseWatermark(parse_folder_day(day), {}, parse_folder_day(day) + timedelta(2)).to_json()
    )
    try:
        assert measure_reconciliation(data, CheckSettings(), END, since)["reconciliation_accepted_landed"].sum() == 0
        (data / "base" / WATERMARK_FILE).unlink()
        assert measure_reconciliation(data, CheckSettings(), END, since)["reconciliation_accepted_landed"].sum() > 0
    finally:
        moved.rename(day)


def test_a_landed_webhook_without_an_answer_is_counted_and_named(data: Path) -> None:
    path = sorted((data / "accepted").glob("2026-11-24T*/acme"))[-1]
    ids = path.read_bytes()
    path.write_bytes(ids[:-ID_BYTES])
    share, rows = found(data, "reconciliation_landed_accepted")
    assert share > 0
    assert rows == [ids[-ID_BYTES:].hex()]


def test_records_in_kafka_that_have_not_landed_are_read(tmp_path: Path) -> None:
    catalog.publish_views(tmp_path)
    headers: list[tuple[str, str | bytes | None]] = [("source", b"acme"), ("ingest_id", LOST.encode())]
    with MemoryBroker(tmp_path / "broker") as broker:
        kafka = KafkaSettings(bootstrap=broker.address, in_memory=True)
        ensure_topics(kafka, timeout_s=10)
        producer = Producer(kafka.confluent_options())
        for number in range(3):
            producer.produce(RAW, b"{}", partition=1, headers=headers, timestamp=LOST_AT + number)
        producer.flush(10)
        assert read_kafka_contents(kafka, tmp_path, END).waiting.to_pylist() == [
            {
                "source": "acme",
                "received_at": datetime.fromtimestamp((LOST_AT + number) / 1000, UTC),
                "id": bytes.fromhex(LOST.replace("-", "")),
                "record": f"sms.raw:1:{number}",
            }
            for number in range(3)
        ]
        made = [MadeRecord(RAW, 1, number, LOST_AT + number, None, b"{}", headers) for number in range(2)]
        land_records(tmp_path, 0, made, incarnation=TopicIds(kafka).read_ids([RAW])[RAW])
        assert read_kafka_contents(kafka, tmp_path, END).waiting["record"].to_pylist() == ["sms.raw:1:2"]


def test_an_unreachable_kafka_is_noted_and_is_no_difference(data: Path) -> None:
    run = ["check", "--data", str(data), "--suite", "reconciliation", "--broker", "127.0.0.1:1"]
    shown = CliRunner().invoke(cli, run)
    assert shown.exit_code in {0, 1}
    assert "Kafka was not read: " in shown.output


def test_a_kill_loses_no_receipt(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from ingest.receipts import ReceiptLog\n"
        "from core.records import WebhookRecord\n"
        "receipts = ReceiptLog(Path(sys.argv[1]))\n"
        f"webhook = WebhookRecord(None, b'', [('source', b'acme'), ('ingest_id', b'{LOST}')], {LOST_AT})\n"
        "for _ in range(500): receipts.append_receipts([webhook])\n"
        "print('appended', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"appended\n"
        os.kill(process.pid, signal.SIGKILL)
    ((source, _, ids),) = read_receipts(tmp_path, datetime.fromtimestamp(LOST_AT / 1000, UTC))
    assert (source, len(ids)) == ("acme", 500 * ID_BYTES)
