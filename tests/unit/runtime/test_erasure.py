"""No byte on disk reveals an erased number, and no count changes."""

import re
import sqlite3
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from landing import land_records
from restored import RestoredFolder
from warehouse_records import alert, at, deadletter, raw, status, version

from core import topics
from core.kafka_settings import KafkaSettings
from core.records import WebhookRecord
from gateway.errors import UnreadablePayload
from gateway.events import StatusReport
from gateway.number_search import NumberSearch
from gateway.payloads import parse_payload
from gateway.statuses import build_status_table
from ingest.request_body import PayloadRedactor
from ingest.settings import IngestSettings
from ingest.spool import WebhookSpool
from smspulse.cli.main import cli
from smspulse.runtime import erasure as command
from smspulse.runtime.erasure import erase_everywhere
from smspulse.runtime.errors import EraseError
from streams.processor import MAX_DEAD_LETTER_BYTES, build_dead_letter
from warehouse import catalog
from warehouse import rebuild as run
from warehouse.maintenance import atomic_replace, erasure
from warehouse.reader import open_warehouse
from warehouse.sink.range_metadata import read_landed_position

NUMBER = "+4915752982212"
OTHER = "+4915752982213"
DIGITS = re.compile(
    rb"4\D{0,3}9\D{0,3}1\D{0,3}5\D{0,3}7\D{0,3}5\D{0,3}2\D{0,3}9\D{0,3}8\D{0,3}2\D{0,3}2\D{0,3}1\D{0,3}2"
)
SPOOLED = [
    WebhookRecord(b"acme:9", b'{"sms_id":9,"status_id":6,"sendto":"+49 1575 298-2212"}', [("source", b"acme")], at(0)),
    WebhookRecord(b"acme:8", b'{"sms_id":8,"status_id":6,"sendto":"+4915752982213"}', [("source", b"acme")], at(0)),
    WebhookRecord(None, b"not json +4915752982212", [("source", b"acme")], at(0)),
]
TRUNK_ZERO = "+49 (0)157 529 82212"
WIDE = [("source", b"acme"), ("content_type", b"application/json; charset=UTF-16")]


@pytest.fixture(autouse=True)
def tombstones(monkeypatch: pytest.MonkeyPatch) -> list[set[tuple[int, str]]]:
    """Keys of the tombstones for Kafka. An integration test proves the deletion there."""
    tombstones: list[set[tuple[int, str]]] = []
    monkeypatch.setattr(command, "_write_tombstones", lambda kafka, keys: tombstones.append(set(keys)))
    return tombstones


@pytest.fixture(scope="module")
def _filled(tmp_path_factory: pytest.TempPathFactory) -> RestoredFolder:
    folder = tmp_path_factory.mktemp("filled") / "data"
    folder.mkdir()
    catalog.publish_views(folder)
    incoming = {"sms_id": 5, "type": "text", "device_id": 1, "body": "call me", "address": "+49 157 52982212"}
    mentioned = incoming | {"sms_id": 6, "body": "his number is 004915752982212", "address": OTHER}
    bodies = [
        status(1, 6, sendto=NUMBER), status(1, 7, sendto=NUMBER), status(2, 7, sendto=OTHER), incoming, mentioned,
        b'{"sendto": "+49-1575-2982212", "sms_id": "?"}', status(3, 1, sendto=NUMBER),
    ]  # fmt: skip
    for offset, body in enumerate(bodies):
        land_records(folder, offset, [raw(offset, body, seconds=offset)])
    versions = [
        version(0, 1, "delivered", recipient=NUMBER), version(1, 2, "delivered", recipient=OTHER),
        version(2, 3, "pending", recipient=None), version(3, 4, "delivered", recipient=OTHER, seconds=4 * 86_400),
    ]  # fmt: skip
    land_records(folder, 0, versions)
    land_records(folder, 0, [deadletter(0, bodies[5], "wrong_type", "sms.raw:0:5")])  # type: ignore[arg-type]
    land_records(folder, len(bodies), [raw(len(bodies), status(4, 7, sendto=OTHER), seconds=4 * 86_400)])
    assert rebuild(folder).differing > 0
    spool = WebhookSpool(folder, IngestSettings())
    spool.append(SPOOLED)
    spool.close()
    return RestoredFolder(folder)


@pytest.fixture
def data(_filled: RestoredFolder, tmp_path: Path) -> Iterator[Path]:
    """Numbers in every dataset, in several notations, and in the spool."""
    with _filled.restored(tmp_path / "data") as folder:
        yield folder


def rebuild(data: Path, **options: Any) -> run.RebuildResult:
    return run.rebuild_base(data, build_status_table({}), timedelta(days=1), **options)


def everything(data: Path) -> dict[str, bytes]:
    """Return every byte on disk, with the pages of Parquet files decompressed."""
    found = {}
    for path in data.rglob("*"):
        if path.is_file():
            found[str(path)] = path.read_bytes()
            if path.suffix == ".parquet" and path.parent.parent.name != "prefixes":
                found[f"{path} unpacked"] = repr(pq.read_table(path).to_pylist()).encode()
    return found


def holding(data: Path) -> set[str]:
    return {str(Path(name).relative_to(data)) for name, held in everything(data).items() if DIGITS.search(held)}


def kafka() -> KafkaSettings:
    return KafkaSettings()


def counts(data: Path) -> list[Any]:
    sql = ("SELECT * EXCLUDE (recipient, recorded_at) FROM messages", "FROM delivery_hourly", "FROM webhook_quality")
    with open_warehouse(data) as connection:
        return [connection.execute(f"{each} ORDER BY ALL").fetchall() for each in sql]


def codecs(data: Path) -> set[tuple[str, str]]:
    """Return the compression of files with rows, by dataset."""
    files = ((path.relative_to(data).parts[0], pq.read_metadata(path)) for path in data.rglob("*.parquet"))
    return {(name, each.row_group(0).column(0).compression) for name, each in files if each.num_rows}


def test_no_byte_reveals_the_number_and_no_count_changes(data: Path, tombstones: list[Any]) -> None:
    before, written, rooms = counts(data), codecs(data), {name.split("/")[0] for name in holding(data)}
    assert rooms == {"raw", "messages", "base", "differences", "deadletters", "spool"}
    report = erase_everywhere(data, (NUMBER,), kafka)
    assert holding(data) == set()
    assert (counts(data), codecs(data)) == (before, written)
    assert tombstones == [{(0, "acme:1"), (0, "acme:3")}]
    assert report.lines[0] == "spool: 2 webhooks that wait for Kafka"
    assert "raw: 6 rows in 6 files" in report.lines
    assert any('"topic": "sms.raw", "partition": 0, "offset": 7' in line for line in report.remaining)
    assert (report.has_remaining_files, (data / erasure.PENDING_ERASURE_FILE).exists()) == (False, False)
    with open_warehouse(data) as connection:
        rows = connection.execute("SELECT sms_id, recipient FROM messages ORDER BY 1").fetchall()
        assert rows == [(1, "erased"), (2, OTHER), (3, "erased"), (4, OTHER)]
        texts = connection.execute("SELECT sms_id, sender, text FROM incoming_messages ORDER BY 1").fetchall()
        assert texts == [(5, "erased", None), (6, OTHER, None)]
        bodies = connection.execute("SELECT count(*) FILTER (body <> 'erased'), count(*) FROM raw_webhooks").fetchone()
        assert bodies == (2, 8)
    assert read_landed_position(data, topics.RAW, 0) == 8
    assert erase_everywhere(data, (NUMBER,), kafka).lines == ["spool: 0 webhooks that wait for Kafka"]


def test_the_log_still_equals_the_base_files(data: Path) -> None:
    before = counts(data)
    erase_everywhere(data, (NUMBER,), kafka)
    rebuild(data, everything=True)
    assert counts(data) == before
    assert holding(data) == set()


def test_spooled_webhooks_are_forwarded_masked(data: Path) -> None:
    erase_everywhere(data, (NUMBER,), kafka)
    spool = WebhookSpool(data, IngestSettings())
    _, webhooks = spool.read_webhooks(0, 10)
    assert spool.read_state().webhooks == 3
    spool.close()
    assert [webhook.key for webhook in webhooks] == [b"acme:9", b"acme:8", None]
    assert webhooks[0].body == b'{"sms_id":9,"status_id":6,"sendto":"****2212"}'
    assert webhooks[1] == SPOOLED[1]
    assert b"2212" not in webhooks[2].body
    with sqlite3.connect(data / "spool" / "spool.sqlite") as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.parametrize("where", ["files", "kafka"])
def test_a_run_that_is_killed_at_any_step_is_completed_by_the_next(
    data: Path, tombstones: list[Any], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    before = counts(data)

    class Cut(BaseException):
        """A kill of the process."""

    exchange: Callable[..., None] = atomic_replace._exchange_folders
    done = 0

    def once(*paths: Path) -> None:
        nonlocal done
        if done:
            raise Cut
        done += 1
        exchange(*paths)

    def cut(*_: object) -> None:
        raise Cut

    with monkeypatch.context() as patch:
        if where == "files":
            patch.setattr(atomic_replace, "_exchange_folders", once)
        else:
            patch.setattr(command, "_write_tombstones", cut)
        tries = 0
        while True:
            tries += 1
            done = 0
            try:
                erase_everywhere(data, (NUMBER,), kafka)
                break
            except Cut:
                assert counts(data) == before
                if where == "kafka":
                    break
    assert tries == (5 if where == "files" else 1)
    erase_everywhere(data, (NUMBER,), kafka)
    assert holding(data) == set()
    assert {key for each in tombstones for key in each} == {(0, "acme:1"), (0, "acme:3")}


def test_a_number_with_a_trunk_zero_and_in_another_charset_is_found_in_every_place(data: Path) -> None:
    body = '{"sms_id":7,"status_id":66,"status_message":"für","sendto":"%s"}' % TRUNK_ZERO  # noqa: UP031 - braces
    wide = raw(8, body.encode("utf-16"), seconds=9)._replace(headers=[*raw(8, b"").headers[:3], WIDE[1]])
    land_records(data, 8, [wide])
    land_records(data, 9, [raw(9, {"to": TRUNK_ZERO}, seconds=9), raw(10, {"to": "+490157 52982212"}, seconds=9)])
    spool = WebhookSpool(data, IngestSettings(spool_max_age_s=1e9))
    spool.append([WebhookRecord(b"acme:7", body.encode("utf-16"), WIDE, at(0)), *SPOOLED[1:2]])
    spool.close()

    assert erase_everywhere(data, (NUMBER,), KafkaSettings).lines
    with open_warehouse(data) as connection:
        sql = 'SELECT body::VARCHAR, address FROM raw_webhooks WHERE "offset" > 7 ORDER BY "offset"'
        assert connection.execute(sql).fetchall() == [("erased", "erased"), ("erased", None), ("erased", None)]
    spool = WebhookSpool(data, IngestSettings())
    _, waiting = spool.read_webhooks(0, 99)
    spool.close()
    masked = next(each for each in waiting if each.key == b"acme:7")
    content_type = dict(masked.headers)["content_type"]
    report = parse_payload(masked.body, content_type=content_type)
    assert isinstance(report, StatusReport)
    assert (report.recipient, report.status_message) == ("****2212", "für")


@pytest.mark.parametrize("marks", [2, 970, 87_000])
def test_a_spooled_webhook_with_many_byte_order_marks_is_erased_with_the_others(data: Path, marks: int) -> None:
    body = b"\xef\xbb\xbf" * marks + b'{"sms_id":7,"status_id":6,"sendto":"+4915752982212"}'
    spool = WebhookSpool(data, IngestSettings(spool_max_age_s=1e9))
    spool.append([WebhookRecord(b"acme:7", body, [("source", b"acme")], at(0))])
    spool.close()
    assert erase_everywhere(data, (NUMBER,), KafkaSettings).lines[0] == "spool: 3 webhooks that wait for Kafka"
    assert holding(data) == set()


def test_a_spooled_webhook_that_cannot_be_masked_is_withheld_and_the_others_are_erased(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bytes:
        raise RecursionError

    monkeypatch.setattr(PayloadRedactor, "_rewrite_event", fail)
    assert erase_everywhere(data, (NUMBER,), KafkaSettings).lines[0] == "spool: 2 webhooks that wait for Kafka"
    assert holding(data) == set()
    spool = WebhookSpool(data, IngestSettings())
    _, waiting = spool.read_webhooks(0, 99)
    spool.close()
    with pytest.raises(UnreadablePayload, match="processing_failed"):
        parse_payload(waiting[0].body)


@pytest.mark.parametrize("given", [NUMBER, TRUNK_ZERO, "0049 157 52982212", "+490157 52982212"])
def test_a_number_may_be_given_in_any_international_notation(given: str) -> None:
    expression = re.compile(NumberSearch((given,)).expression)
    for stored in (NUMBER, "+4915752982212", "004915752982212", TRUNK_ZERO, "+49(0)157/52982212", "+490157-52982212"):
        assert expression.search(f'"{stored}"'), stored
    for other in (OTHER, "+49157529822123", "+49 (1)157 52982212"):
        assert not expression.search(f'"{other}"'), other


EVERYWHERE = {
    "status_message": f"SMS to {NUMBER} sent",
    "device_name": "Anna 0049 157 529-82212",
    "type": "t4915752982212",
    "internal_id": 4915752982212,
    "img_url": "https://x.example/?to=%2B4915752982212",
    "sim": NUMBER,
    "date": {"date": "2026-01-02", "timezone": NUMBER},
    "unheard_of": [NUMBER],
}


def values(data: Path, dataset: str) -> list[Any]:
    """Return all values of a dataset, without the rows of its seeds."""
    found = [row for path in (data / dataset).rglob("*.parquet") for row in pq.read_table(path).to_pylist()]
    return [value for row in found for value in row.values()]


@pytest.mark.parametrize("base", [status(31, 6, sendto=OTHER), {"sms_id": 31, "address": OTHER, "body": "hi"}])
def test_a_number_is_erased_from_every_column(published: Path, base: dict[str, Any]) -> None:
    bodies = [base | {"sms_id": 40 + n, name: value} for n, (name, value) in enumerate(EVERYWHERE.items())]
    land_records(published, 0, [raw(n, body, seconds=n) for n, body in enumerate(bodies)])
    untouched = [raw(0, base | {"sms_id": 50, name: "other"}, seconds=20) for name in ("status_message", "device_name")]
    land_records(published, 20, [record._replace(offset=20 + n) for n, record in enumerate(untouched)])
    strange = raw(30, base | {"sms_id": 60}, seconds=30)
    type_ = ("content_type", f"text/plain; to={NUMBER}".encode())
    land_records(published, 30, [strange._replace(headers=[*strange.headers[:3], type_])])
    land_records(published, 0, [alert(0, "firing", what=f"{NUMBER} is down", samples=[NUMBER, "acme:17"])])
    assert {name.split("/")[0] for name in holding(published)} == {"raw", "alerts"}

    report = erase_everywhere(published, (NUMBER,), kafka)
    assert holding(published) == set()
    assert f"raw: {len(bodies) + 1} rows in 2 files" in report.lines
    with open_warehouse(published) as connection:
        sql = "SELECT sms_id, status_message, device_name, body = 'erased' FROM read_parquet(?) ORDER BY \"offset\""
        kept = connection.execute(sql, [f"{published}/raw/*/*.parquet"]).fetchall()
    assert [row[0] for row in kept] == [*range(40, 40 + len(bodies)), 50, 50, 60]
    assert [row[3] for row in kept] == [True] * len(bodies) + [False, False, True]
    assert {"other"} == {text for row in kept for text in row[1:3] if text not in {None, "erased"}}
    assert ["erased"] in values(published, "alerts")


WIDE_DIGITS = NUMBER[1:].translate({ord("0") + digit: 0xFF10 + digit for digit in range(10)})
NOTATIONS = [
    rb'{"sms_id":1,"status_id":6,"sendto":"\u002b\u0034\u00391575\u00a0298\u00a02212"}',
    f'{{"sms_id":2,"status_id":6,"sendto":"+{WIDE_DIGITS}"}}'.encode(),
    '{"sms_id":3,"address":"٠٠٤٩١٥٧٥٢٩٨٢٢١٢","body":"x"}'.encode(),
    b'{"sms_id":4,"type":"text","body":"call 0157 529 82212"}',
    rb'{"sms_id":5,"status_id":6,"note":{"deep":["\u0034\u0039\u0031575\u0032982212"]}}',
    f"no json: +{WIDE_DIGITS}".encode(),
    rb'{"sendto":"\u0034\u0039\u0031575\u0032982212"',
    b"sendto=%2B49%20157%205298%202212&status_id=6",
    "no json +4915752982212".encode("utf-16"),
    b"\xff\xfe\x00+49 1575 298 2212",
    b"<to>&#43;&#52;&#57;15752982212</to>",
]


def test_a_number_is_erased_in_every_notation_also_in_unreadable_bodies(published: Path) -> None:
    neighbour = NUMBER[:-1] + "4"
    others = [body.replace(b"2212", b"2214") for body in NOTATIONS[3:4] + NOTATIONS[7:8]] + [neighbour.encode()]
    others.append(b'{"sms_id":15752982212,"status_id":6,"device_id":1575298221}')
    land_records(published, 0, [raw(n, body, seconds=n) for n, body in enumerate([*NOTATIONS, *others])])
    dead = [deadletter(n, body, "not_json", f"sms.raw:0:{n}") for n, body in enumerate(NOTATIONS[5:], 5)]
    land_records(published, 5, dead)
    spool = WebhookSpool(published, IngestSettings(spool_max_age_s=1e9))
    spool.append([WebhookRecord(None, body, [("source", b"acme")], at(0)) for body in [*NOTATIONS, *others]])
    spool.close()

    report = erase_everywhere(published, (NUMBER,), kafka)
    assert report.lines[0] == f"spool: {len(NOTATIONS)} webhooks that wait for Kafka"
    with open_warehouse(published) as connection:
        sql = 'SELECT body FROM read_parquet(?) ORDER BY "offset"'
        bodies = [body for (body,) in connection.execute(sql, [f"{published}/raw/*/*.parquet"]).fetchall()]
    assert bodies == [b"erased"] * len(NOTATIONS) + others
    assert {value for value in values(published, "deadletters") if type(value) is bytes} == {b"erased"}
    search = NumberSearch((NUMBER, "015752982212"))
    texts = [value for name in ("raw", "deadletters") for value in values(published, name)]
    assert not any(search.is_in_body(text) if type(text) is bytes else search.is_in(str(text)) for text in texts)
    spool = WebhookSpool(published, IngestSettings())
    _, waiting = spool.read_webhooks(0, 99)
    spool.close()
    assert len(waiting) == len(NOTATIONS) + len(others)
    assert not any(search.is_in_body(webhook.body) for webhook in waiting)


def test_a_partial_number_in_a_dead_letter_is_erased_with_its_webhook(published: Path, tombstones: list[Any]) -> None:
    body = b"{" + b" " * (MAX_DEAD_LETTER_BYTES - 12) + NUMBER.encode() + b" and more"
    record = raw(3, body)
    letter = build_dead_letter(record, UnreadablePayload("not_json", "the body is not JSON"))  # type: ignore[arg-type]
    assert letter.value is not None
    assert letter.value.endswith(NUMBER[:11].encode())
    land_records(published, 3, [record])
    made = record._replace(topic=topics.DEADLETTERS, offset=0, value=letter.value, headers=letter.headers or [])
    land_records(published, 0, [made, deadletter(1, b"{", "not_json", "sms.raw:0:4")])
    report = erase_everywhere(published, (NUMBER,), kafka)
    assert "deadletters: 1 rows in 1 files" in report.lines
    assert [value for value in values(published, "deadletters") if type(value) is bytes] == [b"erased", b"{"]
    assert any(line.startswith("sms.deadletters: Kafka ") for line in report.remaining)


def test_the_national_form_is_not_erased_if_another_country_has_it_too(published: Path) -> None:
    national, foreign = {"sms_id": 1, "address": "0157 52982212"}, {"sms_id": 2, "address": "+43 15752982212"}
    land_records(published, 0, [raw(0, national), raw(1, foreign)])
    report = erase_everywhere(published, (NUMBER,), kafka)
    assert report.lines == []
    (line,) = report.remaining
    assert line.startswith("015752982212: not searched for, ")
    assert report.has_remaining_files is False
    assert "raw: 1 rows in 1 files" in erase_everywhere(published, (NUMBER, "015752982212"), kafka).lines
    assert erase_everywhere(published, (NUMBER, "015752982212"), kafka).remaining == []


def test_an_id_that_equals_the_number_is_kept_and_named(published: Path) -> None:
    land_records(published, 0, [raw(0, status(4915752982212, 6, device_id=4915752982212, sendto=OTHER))])
    report = erase_everywhere(published, (NUMBER,), kafka)
    assert "raw: 1 rows have it as their device_id, by which they are counted" in report.remaining
    assert "raw: 1 rows have it as their sms_id, by which they are counted" in report.remaining


def test_an_invalid_number_is_refused(data: Path) -> None:
    with pytest.raises(EraseError, match=r"\+49 has too few digits"):
        erase_everywhere(data, ("+49",), kafka)


def test_the_command_prints_the_changed_files_and_those_that_still_have_the_number(data: Path) -> None:
    (data / "notes.txt").write_text(f"x{NUMBER}x")
    arguments = [
        "erase",
        "--data",
        str(data),
        "--broker",
        "127.0.0.1:1",
        "--number",
        NUMBER,
        "--number",
        "015752982212",
    ]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 1, result.output
    assert "messages: 1 rows in 1 files" in result.output
    assert "sms.messages: 2 messages deleted by key" in result.output
    assert f"left: {data / 'notes.txt'} still holds it" in result.output
    (data / "notes.txt").unlink()
    again = CliRunner().invoke(cli, arguments)
    assert (again.exit_code, again.output) == (0, "spool: 0 webhooks that wait for Kafka\n")
