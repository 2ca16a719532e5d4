"""The rebuild of days: closed and open days, differences, kills, damage and the command."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from rebuilt_streams import DAY, SENT_MESSAGE, TODAY, Stream, messages, rebuild, rows
from warehouse_records import at, moment, raw, status, version

from core import topics
from smspulse.cli.main import cli
from warehouse import rebuild as run
from warehouse.errors import RebuildError, WarehouseError
from warehouse.maintenance import atomic_replace
from warehouse.maintenance.compaction import compact_files

pytestmark = pytest.mark.usefixtures("published_views")


@pytest.fixture
def data(published: Path) -> Path:
    return published


def test_a_closed_day_is_not_rebuilt_until_a_new_report_arrives(data: Path) -> None:
    stream = Stream(data)
    stream.report(*SENT_MESSAGE, (9, status(1, 7)))
    stream.settle(2 * DAY)
    assert rebuild(data).days == {TODAY, TODAY + timedelta(2)}
    (file,) = data.glob(f"base/date={TODAY}/0-*")
    before = file.stat().st_ino
    stream.report((2 * DAY, status(2, 1)))
    stream.settle(3 * DAY)
    assert TODAY not in rebuild(data).days
    assert file.stat().st_ino == before
    stream.report((3 * DAY, status(1, 8)))
    assert rows(data, "SELECT outcome FROM messages WHERE sms_id = 1") == [("undelivered",)]
    stream.settle(4 * DAY)
    assert TODAY in rebuild(data).days
    assert rows(data, "SELECT outcome, contradicted FROM messages WHERE sms_id = 1") == [("undelivered", True)]
    assert rows(data, "SELECT version - len(observations) FROM messages WHERE sms_id = 1") == [(1,)]


def test_files_of_a_closed_day_are_merged_and_replaced_after_a_new_report(data: Path) -> None:
    streams = [Stream(data, partition) for partition in (0, 1)]
    for number, stream in enumerate(streams):
        stream.report((0, status(number, 7)), (DAY, status(10 + number, 7)))
        stream.settle(3 * DAY)
    rebuild(data)
    before = messages(data)

    def files(day: int) -> list[str]:
        found = data.glob(f"base/date={TODAY + timedelta(day)}/*.parquet")
        return sorted(path.name.partition("-")[0] for path in found)

    def codecs() -> set[str]:
        written = (pq.read_metadata(path) for path in data.glob("base/date=2*/*.parquet"))
        return {file.row_group(0).column(0).compression for file in written}

    assert (files(0), files(1), files(3)) == (["0", "1"], ["0", "1"], ["0", "1"])
    assert codecs() == {"LZ4"}  # for look-ups, in merged and other files
    compact_files(data, datetime.now(UTC) + timedelta(days=9))
    assert codecs() == {"LZ4"}
    assert (files(0), files(1), files(3)) == (["all"], ["all"], ["0", "1"])
    assert messages(data) == before
    assert TODAY not in rebuild(data).days
    assert messages(data) == before
    streams[1].report((3 * DAY + 9, status(11, 8)))
    for stream in streams:
        stream.settle(5 * DAY)
    assert min(rebuild(data).days) == TODAY + timedelta(1)
    assert (files(0), files(1)) == (["all"], ["0", "1"])
    assert rows(data, "SELECT count(*), count(DISTINCT message_key) FROM messages") == [(8, 8)]
    assert rows(data, "SELECT outcome FROM messages WHERE sms_id = 11") == [("undelivered",)]


def test_an_open_message_keeps_its_day_open_until_it_expires(data: Path) -> None:
    stream = Stream(data)
    stream.report(*SENT_MESSAGE)
    stream.settle(DAY - 60)
    assert TODAY in rebuild(data).open_days
    assert rows(data, "SELECT outcome FROM messages WHERE sms_id = 1") == [("sent",)]
    stream.on_timer(2 * DAY)
    stream.settle(3 * DAY)
    found = rebuild(data)
    assert (found.differing, TODAY in found.open_days) == (0, False)
    assert rows(data, "SELECT outcome, ended_at FROM messages WHERE sms_id = 1") == [("expired", moment(5 + DAY))]


def test_a_message_reported_after_its_eviction_is_complete_again(data: Path) -> None:
    stream = Stream(data)
    stream.report(*SENT_MESSAGE)
    for seconds in (DAY + 60, 9 * DAY):
        stream.on_timer(seconds)
    stream.report((9 * DAY, status(1, 7)))
    stream.settle(10 * DAY)
    assert rows(data, "SELECT outcome FROM messages WHERE sms_id = 1") == [("expired",)]
    found = rebuild(data)
    assert (found.repaired, found.differing) == (1, 0)
    now = "SELECT outcome, delivered_at, network_s, flags FROM messages WHERE sms_id = 1"
    assert rows(data, now) == [("delivered", moment(9 * DAY), 9 * DAY - 5.0, [])]
    stream.report((10 * DAY, status(1, 7)))  # the stream has only the outcome
    assert [row[0] for row in rows(data, now)] == ["delivered"]


def test_a_version_after_a_rebuild_counts_also_if_it_adds_no_fact(data: Path) -> None:
    stream = Stream(data)
    stream.report(*SENT_MESSAGE, (6, status(1, 6)))
    stream.settle(DAY / 4)
    rebuild(data)
    stream.report((7, status(1, 6)), (7, status(1, 6, sendto="+4915")))
    latest = "SELECT recipient, last_seen_at, version FROM messages WHERE sms_id = 1"
    assert rows(data, latest) == [("+4915", moment(7), 6)]
    stream.settle(DAY / 3)
    assert rebuild(data).differing == 0
    assert rows(data, latest) == [("+4915", moment(7), 6)]


def test_a_difference_is_listed_by_message_and_field_and_the_log_is_right(data: Path) -> None:
    stream = Stream(data)
    stream.receive(*SENT_MESSAGE, (9, status(1, 7)))
    stream.receive((0, status(2, 7)), (0, status(3, 7)))
    wrong = {"observations": [[7, 1, 2, None, at(0), at(0)]], "last_status_id": 7, "total_s": 0.0, "version": 2}
    stream.land(topics.MESSAGES, [
        version(0, 1, "sent", version=6, observations=[[6, 1, 2, None, at(0), at(9)]] * 5, last_seen_at=at(9)),
        version(0, 2, "delivered", **wrong | {"device_id": 99}),
        version(0, 4, "sent"),
    ])  # fmt: skip
    stream.settle(DAY)
    assert rebuild(data).differing == 4
    listed = "SELECT sms_id, field, streamed, rebuilt FROM rebuild_differences WHERE sms_id > 1 ORDER BY ALL"
    assert rows(data, listed) == [
        (2, "device_id", "99", "1"),
        (2, "flags", "[]", "[queue_missing, device_missing, network_missing]"),
        (3, "message", None, "there"),
        (4, "message", "there", None),
    ]
    fields = "SELECT field FROM rebuild_differences WHERE sms_id = 1"
    assert {"outcome", "is_ended", "delivered_at", "observations"} <= {field for (field,) in rows(data, fields)}
    assert rows(data, "SELECT sms_id, outcome, device_id FROM messages WHERE sms_id < 9 ORDER BY 1") == [
        (1, "delivered", 1), (2, "delivered", 1), (3, "delivered", 1), (4, "sent", 1),
    ]  # fmt: skip


def test_neither_lagging_stream_nor_lagging_lander_is_a_difference(data: Path) -> None:
    stream = Stream(data)
    received = stream.receive(*SENT_MESSAGE)
    assert rebuild(data).differing == 0  # the stream has written nothing yet
    stream.process(received)
    records = [raw(0, status(5, 7), seconds=30)._replace(key=b"acme:5")]
    stream.process(records)  # this record of raw has not landed yet
    found = rebuild(data)
    assert (found.differing, found.unsettled, TODAY in found.open_days) == (0, 1, True)
    assert rows(data, "SELECT sms_id, outcome FROM messages ORDER BY 1") == [(1, "sent"), (5, "delivered")]
    stream.land(topics.RAW, records)
    stream.report((60, status(1, 7)))
    stream.settle(DAY)
    found = rebuild(data)
    assert (found.differing, found.unsettled) == (0, 0)


def test_a_webhook_twice_in_the_log_counts_once_and_a_repeated_one_is_a_duplicate(data: Path) -> None:
    stream = Stream(data)
    received = stream.receive(*SENT_MESSAGE)
    stream.process(received)
    stream.process(stream.land(topics.RAW, received[:1]))
    stream.settle(DAY / 4)
    assert rebuild(data).differing == 0
    assert rows(data, "SELECT flags FROM messages WHERE sms_id = 1") == [([],)]
    stream.report((7, status(1, 6)))
    stream.settle(DAY / 2)
    assert rebuild(data).differing == 0
    assert rows(data, "SELECT flags FROM messages WHERE sms_id = 1") == [(["duplicated"],)]


def test_a_single_day_can_be_rebuilt(data: Path) -> None:
    stream = Stream(data)
    stream.report(*SENT_MESSAGE, (DAY, status(2, 7)), (DAY + 1, status(1, 7)))
    stream.settle(3 * DAY)
    before = messages(data)
    assert rebuild(data, day=TODAY + timedelta(1)).messages == 1
    assert [path.parent.name for path in data.glob("base/*/0-*.parquet")] == ["date=2026-11-25"]
    assert messages(data) == before
    with pytest.raises(RebuildError, match="raw webhooks begin on 2026-11-24"):
        rebuild(data, day=TODAY - timedelta(1))


def test_an_empty_warehouse_has_nothing_to_rebuild(data: Path) -> None:
    assert rebuild(data) == run.RebuildResult(set(), set())
    assert messages(data) == []


def test_a_run_that_is_killed_at_any_step_changes_no_number(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream(data)
    stream.report(*SENT_MESSAGE, (DAY, status(2, 7)))
    stream.settle(3 * DAY)
    rebuild(data)
    stream.report((DAY + 1, status(1, 7)), (3 * DAY, status(3, 9)))
    before = messages(data)
    exchange, cut, left = atomic_replace._exchange_folders, 0, 0

    class Cut(BaseException):
        """A kill of the process."""

    def until_cut(*paths: Path) -> None:
        nonlocal left
        if not left:
            raise Cut
        left -= 1
        exchange(*paths)

    monkeypatch.setattr(atomic_replace, "_exchange_folders", until_cut)
    while True:
        left = cut
        try:
            rebuild(data, everything=True)
            break
        except Cut:
            assert messages(data) == before
        cut += 1
    assert cut >= 1
    assert messages(data) == before


def test_damage_is_reported_in_one_line(data: Path) -> None:
    (data / "base" / "covered.json").write_text("{")
    with pytest.raises(WarehouseError, match=r"covered\.json is damaged: remove it"):
        rebuild(data)
    (data / "base" / "covered.json").unlink()
    (data / "raw" / "date=1970-01-01" / "torn.parquet").write_bytes(b"PAR1")
    with pytest.raises(RebuildError, match=r"nothing was changed: .*torn\.parquet"):
        rebuild(data)


def test_the_command_prints_its_result_and_exits_with_1_for_a_difference(data: Path) -> None:
    stream = Stream(data)
    stream.report(*SENT_MESSAGE, (9, status(1, 7)))
    stream.settle(DAY)
    command = ["rebuild", "--data", str(data)]
    right = CliRunner().invoke(cli, command)
    assert right.exit_code == 0
    assert "2 messages of 2 days from 6 reports" in right.output
    stream.receive((DAY, status(2, 7)))
    stream.settle(2 * DAY)
    wrong = CliRunner().invoke(cli, [*command, "--all"])
    assert wrong.exit_code == 1
    assert "1 differ" in wrong.output
    assert rows(data, "SELECT sms_id, field FROM rebuild_differences") == [(2, "message")]
    assert CliRunner().invoke(cli, [*command, "--all", "--date", "2026-11-24"]).exit_code == 2
