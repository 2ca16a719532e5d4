"""Merges of recent versions change no number, whenever they run and wherever they end."""

import random
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from days import LAST, Days
from landing import land_records
from test_rollups import DAY, HOUR, Straight, assert_marts_equal_messages, land, news, rebuilt, simulated
from warehouse_records import MadeRecord, tombstone, version

from gateway.number_search import NumberSearch
from warehouse import catalog
from warehouse.base_files import list_rebuilt_files
from warehouse.datasets import RECENT_BASE, RECENT_UPDATES
from warehouse.errors import DamagedFileError
from warehouse.maintenance import atomic_replace, recent_base
from warehouse.maintenance.erasure import erase_from_files
from warehouse.maintenance.recent_files import merge_recent_files
from warehouse.reader import open_warehouse
from warehouse.watermark import WATERMARK_FILE, read_base_watermark, read_recent_watermark

__all__ = ["simulated"]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Straight]:
    made = Straight(tmp_path_factory.mktemp("empty") / "data")
    yield made
    made.close()


def messages(data: Path, where: str = "true") -> list[tuple[Any, ...]]:
    with open_warehouse(data) as connection:
        return connection.execute(f"FROM messages WHERE {where} ORDER BY ALL").fetchall()


def live_count(data: Path) -> int:
    """Return the number of messages that the views look for in landed versions and updates."""
    with open_warehouse(data) as connection:
        ((count,),) = connection.execute("SELECT count(*) FROM live_messages").fetchall()
    return int(count)


def merge_and_compare(data: Path, straight: Straight | None = None) -> recent_base.RecentBaseResult:
    """Merge, and assert that no message and no mart has changed."""
    before = messages(data)
    result = merge_recent_files(data)
    assert result is not None
    assert messages(data) == before
    if straight is not None:
        assert_marts_equal_messages(data, straight)
    return result.base


def test_a_merge_changes_no_message_and_no_mart(simulated: Days, straight: Straight) -> None:
    data = simulated.data
    assert merge_and_compare(data, straight).rows == len(messages(data))  # without base files
    assert live_count(data) == 0
    simulated.simulate_day(LAST - timedelta(2), files=2)
    merge_and_compare(data, straight)  # some versions are of messages of the days before
    rebuilt(data)
    assert list_rebuilt_files(data / RECENT_BASE) == []
    assert read_recent_watermark(data) is None
    land(data, 8, 0, *news(data))
    assert merge_and_compare(data, straight).versions
    assert 0 < live_count(data) < 10  # updates of messages in base files
    late = version(0, 1_002, "delivered", flags=["late_after_forgetting"], version=2)
    land(data, 8, 9, tombstone(0, "acme:1001"), late)
    merge_and_compare(data)
    rebuilt(data, day=LAST - timedelta(3))
    assert_marts_equal_messages(data, straight)
    land(data, 8, 11, version(0, 2_000, "delivered", seconds=-3 * DAY))
    merge_and_compare(data)
    rebuilt(data)
    assert_marts_equal_messages(data, straight)
    assert live_count(data) == 0


def test_a_rebuild_of_one_day_keeps_the_recent_messages_of_others(simulated: Days, straight: Straight) -> None:
    data = simulated.data
    rebuilt(data)
    simulated.simulate_day(LAST - timedelta(2))
    merge_and_compare(data)
    before = messages(data)
    files = {path.parent.name for path in list_rebuilt_files(data / RECENT_BASE)}
    rebuilt(data, day=LAST - timedelta(2))
    left = {path.parent.name for path in list_rebuilt_files(data / RECENT_BASE)}
    assert left < files
    assert [row[:3] for row in messages(data)] == [row[:3] for row in before]
    assert_marts_equal_messages(data, straight)


def random_versions(chance: random.Random, count: int) -> list[MadeRecord]:
    """Return versions of few messages: newer, older and equal ones, in other states, of other devices and days."""
    made = []
    for _ in range(count):
        outcome = chance.choice(["sent", "delivered", "undelivered", "not_sent", "incoming", "expired"])
        fields: dict[str, Any] = {"device_id": chance.randrange(1, 4), "version": chance.randrange(1, 9)}
        if chance.random() < 0.1:
            fields["flags"] = ["late_after_forgetting"]
        first = -chance.randrange(4) * DAY - chance.randrange(30) * HOUR
        made.append(version(0, chance.randrange(40), outcome, seconds=first, network_s=chance.random(), **fields))
        if chance.random() < 0.1:
            made.append(tombstone(0, f"acme:{chance.randrange(40)}"))
    return made


@pytest.mark.parametrize("seed", range(2))
def test_merges_at_random_times_change_no_number(published: Path, straight: Straight, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - repeatable on purpose
    ends = {0: 0, 1: 0}
    for _ in range(10):
        for record in random_versions(chance, chance.randrange(1, 12)):
            partition = int(str(record.key).rpartition(":")[2].rstrip("'")) % 2
            land(published, partition, ends[partition], record)
            ends[partition] += 1
        if chance.random() < 0.25:
            rebuilt(published)
        merge_and_compare(published)
    land(published, 2, 0, version(0, 100, "delivered", recipient="+12025550123"))
    with open_warehouse(published) as connection:
        keys = connection.execute("SELECT count(*), count(DISTINCT sms_id) FROM dataset('base')").fetchall()
        assert keys[0][0] == keys[0][1]
        expected = straight.marts(published)
        for name in ("delivery_hourly", "failure_reasons", "latency_hourly", "device_health", "delivery_by_prefix"):
            columns = "* EXCLUDE (quiet_s, last_seen_at)" if name == "device_health" else "*"
            assert connection.execute(f"SELECT {columns} FROM {name} ORDER BY ALL").fetchall() == expected[name], name  # noqa: S608


def test_the_number_of_files_grows_with_the_logarithm_of_the_messages(published: Path) -> None:
    counts = []
    rows = 0
    for number in range(24):
        land_records(published, 3 * number, [version(3 * number + n, 3 * number + n, "delivered") for n in range(3)])
        result = merge_recent_files(published)
        assert result is not None
        counts.append(result.base.files)
        rows += result.base.rows
    assert max(counts) <= 6
    assert rows <= 72 * 5  # of all rows each time, it would be 72 * 12
    assert len(messages(published)) == 72


def test_a_merge_that_ends_before_the_views_are_published_changes_no_number(
    simulated: Days, straight: Straight, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = simulated.data
    rebuilt(data)
    simulated.simulate_day(LAST - timedelta(2))
    before = messages(data)
    published = iter((catalog.publish_views, None))

    def publish_once(folder: Path) -> Path:
        publish = next(published)
        if publish is None:
            raise OSError(28, "No space left on device")
        return publish(folder)

    monkeypatch.setattr(recent_base.catalog, "publish_views", publish_once)
    with pytest.raises(OSError, match="No space"):
        merge_recent_files(data)
    monkeypatch.undo()
    assert list_rebuilt_files(data / RECENT_BASE)
    assert messages(data) == before
    assert_marts_equal_messages(data, straight)
    merge_and_compare(data, straight)


def test_a_merge_that_cannot_exchange_the_folder_changes_nothing(
    simulated: Days, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = simulated.data
    before = messages(data)

    def fail(*_: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(atomic_replace, "_exchange_folders", fail)
    with pytest.raises(OSError, match="Input/output"):
        merge_recent_files(data)
    monkeypatch.undo()
    assert read_recent_watermark(data) is None
    assert messages(data) == before
    merge_and_compare(data)


def test_versions_that_no_base_file_can_hold_stay(published: Path) -> None:
    faulty = [version(0, 1, first_seen_at=None), version(0, 2, source=None), version(0, 3)]
    land(published, 0, 0, *faulty)
    merge_and_compare(published)
    land(
        published, 0, 3, *(version(0, number) for number in range(4, 12)), version(0, 1, version=2, first_seen_at=None)
    )
    merge_and_compare(published)
    assert len(messages(published)) == 11
    assert live_count(published) == 2


def test_an_open_connection_sees_each_merge(published: Path) -> None:
    land(published, 0, 0, version(0, 1), version(0, 2))
    with open_warehouse(published) as connection:
        for number in range(3, 9):
            land(published, 0, number - 1, version(0, number), version(0, 1, "delivered", version=number))
            merge_recent_files(published)
            rows = connection.execute("SELECT sms_id, version FROM messages ORDER BY ALL").fetchall()
            assert rows == [(1, number), *((sms_id, 1) for sms_id in range(2, number + 1))]


def test_counts_of_another_release_are_written_again(simulated: Days, straight: Straight) -> None:
    data = simulated.data
    merge_recent_files(data)
    watermark = read_recent_watermark(data)
    assert watermark is not None
    (data / RECENT_BASE / WATERMARK_FILE).write_text(watermark._replace(sums="of another release").to_json())
    catalog.publish_views(data)
    assert_marts_equal_messages(data, straight)
    land(data, 8, 0, version(0, 3_000))
    merge_and_compare(data, straight)
    current = read_recent_watermark(data)
    assert current is not None
    assert current.sums == watermark.sums
    assert len({path.name.partition("-")[0] for path in list_rebuilt_files(data / RECENT_BASE)}) == 1


def test_an_erasure_reaches_recent_files(simulated: Days, straight: Straight) -> None:
    data = simulated.data
    rebuilt(data)
    (sms_id,) = (row[1] for row in messages(data, "outcome = 'delivered' AND recipient LIKE '+%'")[:1])
    number = "+12025550177"
    land(
        data,
        8,
        0,
        version(0, sms_id, "delivered", version=99, recipient=number),
        version(0, 5_000, recipient=number),
    )
    merge_recent_files(data)
    erased = erase_from_files(data, NumberSearch((number,)))
    assert erased.rows[RECENT_BASE] == erased.rows[RECENT_UPDATES] == 1
    assert messages(data, f"recipient = '{number}'") == []
    assert_marts_equal_messages(data, straight)
    land(data, 8, 2, version(0, 5_001))
    merge_and_compare(data, straight)
    base = read_base_watermark(data)
    assert base is not None


def test_a_damaged_landed_file_is_named(published: Path) -> None:
    land(published, 0, 0, version(0, 1))
    path = land_records(published, 1, [version(1, 2)])
    path.write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(DamagedFileError, match=r"sms\.messages"):
        merge_recent_files(published)
