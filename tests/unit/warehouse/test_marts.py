"""Marts on data made by hand, with numbers computed by hand, and on none."""

import math
import time
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from landing import land_records
from warehouse_records import NOON, MadeRecord, at, moment, raw, status, version

from gateway.statuses import STATUSES
from warehouse.reader import open_warehouse
from warehouse.views import VIEWS

HOUR = 3600
TODAY = moment(0).date()


def present() -> float:
    """Return the present, in seconds after noon of the day on which all else is."""
    return time.time() - NOON / 1000


@pytest.fixture
def data(published: Path) -> Path:
    return published


def land(data: Path, *records: MadeRecord) -> None:
    numbered = [record._replace(offset=n) for n, record in zip(count(), records, strict=False)]
    land_records(data, 0, numbered)


def rows(data: Path, sql: str) -> list[tuple[Any, ...]]:
    with open_warehouse(data) as connection:
        found = connection.execute(sql).fetchall()
    for value in (value for row in found for value in row if isinstance(value, float)):
        assert math.isfinite(value)
    return found


def seen(*status_ids: int) -> dict[str, Any]:
    return {"observations": [[status_id, 1, 2, None, at(0), at(0)] for status_id in status_ids]}


@pytest.mark.parametrize("name", [*VIEWS, "messages_as_of('2026-11-24')"])
def test_nothing_that_can_be_computed_is_nan_or_infinite(data: Path, name: str) -> None:
    assert len(rows(data, f"FROM {name}")) == {"freshness": 3, "statuses": len(STATUSES)}.get(name, 0)
    land(data, version(0, 1, "pending", device_id=None, channel_id=None, recipient=None, seconds=present()))
    land_records(data, 0, [raw(0, {"sms_id": 5, "body": "Hi"}), raw(1, b"{")])
    rows(data, f"FROM {name}")


RATES = ("delivered_per_attempted", "delivered_per_ended", "open_share")


def test_a_rate_has_its_wilson_interval(data: Path) -> None:
    ended = ["delivered"] * 8 + ["undelivered"] * 2
    land(data, *(version(0, n, outcome) for n, outcome in enumerate(ended)))
    columns = ", ".join(f"{rate}{end}" for rate in RATES for end in ("", "_low", "_high"))
    (found,) = rows(data, f"SELECT {columns} FROM delivery_hourly")  # noqa: S608 - names of ours
    # Newcombe (1998): 8 of 10 is 0.4902 to 0.9433; 0 of 10 is 0 to 0.2775.
    assert found == pytest.approx((0.8, 0.4902, 0.9433, 0.8, 0.4902, 0.9433, 0, 0, 0.2775), abs=5e-5)


def test_a_day_is_the_sum_of_its_hours(data: Path) -> None:
    land(
        data,
        version(0, 1, "delivered"),
        version(0, 2, "not_sent", failure_class="no_service", seconds=11 * HOUR, device_id=2),
        version(0, 3, "undelivered", failure_class="other", seconds=11 * HOUR, device_id=2),
        version(0, 4, "sent", seconds=12 * HOUR),
    )
    columns = "day, devices, attempted, ended, delivered, no_service, other, open, delivered_per_ended"
    assert rows(data, f"SELECT {columns} FROM delivery_daily ORDER BY day") == [  # noqa: S608 - names of ours
        (TODAY, 2, 3, 3, 1, 1, 1, 0, 1 / 3),
        (moment(12 * HOUR).date(), 1, 1, 0, 0, 0, 0, 1, None),
    ]


def test_deliveries_by_prefix_name_networks_and_never_numbers(data: Path) -> None:
    numbers = ["+4915730000001", "+4915730000002", "+4930123456", "+447700900123", "+99912", "12345", "Shop", None]
    land(data, *(version(0, n, "delivered" if n else "sent", recipient=r) for n, r in enumerate(numbers)))
    sql = "SELECT country, network_prefix, attempted, delivered, open FROM delivery_by_prefix ORDER BY ALL"
    assert rows(data, sql) == [
        ("DE", "491573", 2, 1, 1), ("DE", None, 1, 1, 0), ("GB", "44770", 1, 1, 0), (None, None, 4, 4, 0),
    ]  # fmt: skip
    text = str(rows(data, "FROM delivery_by_prefix"))
    assert not any(number[:9] in text for number in numbers if number and number.startswith("+4"))


def test_the_funnel_narrows_and_a_skipped_stage_loses_nobody(data: Path) -> None:
    land(
        data,
        version(0, 1, "delivered", **seen(1, 7)),
        version(0, 2, "undelivered", **seen(8)),
        version(0, 3, "not_sent", **seen(1, 3, 2, 9)),
        version(0, 4, "queued", **seen(1, 3)),
        version(0, 5, "pending", **seen(1)),
        version(0, 6, "incoming", **seen(5)),
    )
    sql = "SELECT place, stage, messages, share_of_attempted, share_of_stage_before FROM funnel ORDER BY place"
    assert rows(data, sql) == [
        (1, "attempted", 5, 1.0, None), (2, "queued", 4, 0.8, 0.8), (3, "accepted", 3, 0.6, 0.75),
        (4, "sent", 2, 0.4, 2 / 3), (5, "delivered", 1, 0.2, 0.5),
    ]  # fmt: skip


def test_a_stuck_message_is_open_and_silent(data: Path) -> None:
    land(
        data,
        version(0, 1, "sent", seconds=present() - HOUR),
        version(0, 2, "sent", seconds=present() - HOUR, last_seen_at=at(present() - 60)),
        version(0, 3, "delivered", seconds=present() - HOUR),
        version(0, 4, "incoming", seconds=present() - HOUR),
    )
    ((message, outcome, waiting),) = rows(data, "SELECT sms_id, outcome, waiting_s FROM stuck_messages")
    assert (message, outcome) == (1, "sent")
    assert waiting == pytest.approx(HOUR, abs=60)


def test_the_health_of_a_device_is_held_against_its_own_past_and_its_fleet(data: Path) -> None:
    numbers = count()

    def sent(device: int, hours_ago: float, *outcomes: str, **fields: Any) -> list[MadeRecord]:
        # From the middle of an hour: hours of the past differ from the clock's.
        seconds = (present() + NOON / 1000) // HOUR * HOUR - NOON / 1000 - (hours_ago - 0.5) * HOUR
        return [version(0, next(numbers), o, seconds=seconds, device_id=device, **fields) for o in outcomes]

    land(
        data,
        *sent(1, 2, "delivered", "sent"),
        *sent(1, 3, "undelivered", failure_class="undelivered"),
        *sent(1, 5, "not_sent", "not_sent", failure_class="no_service"),
        *sent(1, 100, "delivered", "delivered", "delivered", "undelivered"),
        *sent(2, 2, "delivered", "delivered", "delivered", "not_sent"),
        *sent(3, 29 * 24, "delivered"),
    )
    columns = "device_id, attempted, ended, delivered, rate, own_rate, fleet_rate, usual_quiet_s, open"
    first, second = rows(data, f"SELECT {columns} FROM device_health ORDER BY device_id")  # noqa: S608 - names of ours
    assert first[:7] == (1, 5, 4, 1, 1 / 4, 3 / 4, 3 / 4)
    assert first[7] == pytest.approx(HOUR * (2 + (95 - 2) * 0.98))  # pauses of 1, 2 and 95 hours
    assert first[8] == 1
    assert second == (2, 4, 4, 3, 3 / 4, None, 1 / 4, None, 0)
    ((errors, quiet, oldest, last),) = rows(
        data, "SELECT errors, quiet_s, oldest_open_hour, last_seen_at FROM device_health WHERE device_id = 1"
    )
    assert {name: n for name, n in errors.items() if n} == {"undelivered": 1, "no_service": 2}
    assert oldest == last.replace(minute=0, second=0, microsecond=0)
    assert 1.5 * HOUR <= quiet <= 2.5 * HOUR + 60


def test_a_conversation_has_its_response_rate_and_its_first_reply(data: Path) -> None:
    def incoming(n: int, seconds: float, number: str) -> MadeRecord:
        return raw(n, {"sms_id": 100 + n, "type": "text", "address": number, "body": "x"}, seconds=seconds)

    land(
        data,
        version(0, 1, "delivered", recipient="+491"),
        version(0, 2, "delivered", recipient="+491", seconds=50),  # answered twice, counted once
        version(0, 3, "delivered", recipient="+491", seconds=500),
        version(0, 4, "delivered", recipient="+492"),
    )
    land_records(data, 0, [incoming(0, 80, "+49 1"), incoming(1, 90, "+491"), incoming(2, 5, "+493")])
    columns = "number, outgoing, incoming, answered, response_rate, first_reply_s, last_at"
    assert rows(data, f"SELECT {columns} FROM conversations ORDER BY number") == [  # noqa: S608 - names of ours
        ("+491", 3, 2, 1, 1 / 3, 30.0, moment(500)),
        ("+492", 1, 0, 0, 0.0, None, moment(0)),
        ("+493", 0, 1, 0, None, None, moment(5)),
    ]


def test_the_quality_of_webhooks_counts_each_once(data: Path) -> None:
    landed_twice = raw(0, status(1, 6))
    land_records(data, 0, [
        landed_twice,
        landed_twice._replace(offset=1),
        raw(2, status(1, 6), seconds=9),  # delivered again: it has an ingest_id of its own
        raw(3, status(1, 55)),
        raw(4, status(2, 7, device_id="?")),
        raw(5, {"sms_id": 5, "body": "Hi"}),
        raw(6, b"{"),
    ])  # fmt: skip
    land(
        data,
        version(0, 1, "delivered", flags=["reordered"], network_s=4000.0, contradicted=True),
        version(0, 2, "delivered", queue_s=3.0),
    )
    names = "webhooks, status_reports, incoming, unreadable, flawed, duplicates, unknown, reordered, late, contradicted"
    found = rows(data, f"SELECT day, {names} FROM webhook_quality")  # noqa: S608 - names of ours
    assert found == [(TODAY, 6, 4, 1, 1, 1, 1, 1, 1, 1, 1)]


KNOWN = {
    "'2026-11-24 11:59'": [],
    "'2026-11-24 12:00'": [(1, "sent")],
    "'2026-11-24 13:01+01'": [(1, "delivered"), (2, "sent")],
    "TIMESTAMPTZ '2026-11-24 12:01Z'": [(1, "delivered"), (2, "sent")],
    "DATE '2026-11-25'": [(1, "undelivered"), (2, "sent")],
}


@pytest.mark.parametrize("zone", ["UTC", "America/St_Johns"])
def test_as_of_a_moment_is_what_was_known_then(data: Path, zone: str) -> None:
    made = [(1, "sent", 0, 1), (1, "delivered", 60, 2), (2, "sent", 60, 1), (1, "undelivered", 600, 3)]
    land(data, *(version(0, n, o, version=v)._replace(timestamp=at(s)) for n, o, s, v in made))
    with open_warehouse(data) as connection:
        connection.execute(f"SET TimeZone = '{zone}'")
        for asked, known in KNOWN.items():
            sql = f"SELECT sms_id, outcome FROM messages_as_of({asked}) ORDER BY 1"  # noqa: S608 - moments of ours
            assert connection.execute(sql).fetchall() == known, asked


def test_sums_as_of_a_moment_agree_while_versions_land(data: Path) -> None:
    def land_from(offset: int, seconds: float, messages: int) -> None:
        made = [version(offset + number, offset + number) for number in range(messages)]
        land_records(data, offset, [record._replace(timestamp=at(seconds)) for record in made])

    land_from(0, 0, 9)
    as_of = "messages_as_of(TIMESTAMPTZ '2026-11-24 12:01Z')"
    by_device = f"SELECT count(*) AS attempted FROM {as_of} GROUP BY device_id"  # noqa: S608 - ours
    found = {}
    with open_warehouse(data) as connection:
        for view, by_part, offset in ((as_of, f"({by_device})", 9), ("messages", "delivery_by_device", 13)):
            (count,) = connection.execute(f"SELECT count(*) FROM {view}").fetchall()[0]  # noqa: S608 - ours
            land_from(offset, 120, 4)
            (total,) = connection.execute(f"SELECT sum(attempted) FROM {by_part}").fetchall()[0]  # noqa: S608 - ours
            found[view] = (count, total)
    # The views list the files at each read, so the second sum has four messages more.
    assert found == {as_of: (9, 9), "messages": (13, 17)}


def test_a_number_has_one_conversation_however_it_is_spelled(data: Path) -> None:
    land(data, version(0, 1, "delivered", recipient="+4915755500199"))
    spelled = [4915755500199, "004915755500199", "+49 157 5550-0199"]
    land_records(data, 0, [
        raw(n, {"sms_id": 100 + n, "address": number, "body": "x", "device_id": 1}, seconds=60 + n)
        for n, number in enumerate(spelled)
    ])  # fmt: skip
    assert rows(data, "SELECT number, outgoing, incoming, answered FROM conversations") == [("+4915755500199", 1, 3, 1)]


def test_device_health_counts_the_same_24_hours_as_devices_now(data: Path) -> None:
    numbers = count()
    ages = [*(minutes * 60.0 + 30 for minutes in range(5, 50 * 60, 35)), 24 * HOUR - 90, 24 * HOUR + 90]
    land(
        data,
        *(version(0, next(numbers), "delivered", seconds=present() - age, device_id=1) for age in ages),
        *(version(0, next(numbers), "not_sent", seconds=present() - age, device_id=1) for age in ages[::4]),
    )
    health = rows(data, "SELECT attempted, ended, delivered, rate_before FROM device_health")
    now = rows(data, "SELECT attempted, ended, delivered FROM devices_now")
    assert [row[:3] for row in health] == now
    day_before = [age for age in ages if 24 * HOUR < age < 48 * HOUR]
    failed_before = [age for age in ages[::4] if 24 * HOUR < age < 48 * HOUR]
    assert health[0][3] == len(day_before) / (len(day_before) + len(failed_before))


def test_a_device_that_got_worse_has_an_interval_below_zero(data: Path) -> None:
    numbers = count()
    yesterday, today = present() - 30 * HOUR, present() - 2 * HOUR
    outcomes = [(yesterday, "delivered")] * 95 + [(yesterday, "not_sent")] * 5
    outcomes += [(today, "delivered")] * 60 + [(today, "not_sent")] * 40
    land(data, *(version(0, next(numbers), outcome, seconds=at_s) for at_s, outcome in outcomes))
    ((rate, before, low, high),) = rows(data, "SELECT rate, rate_before, change_low, change_high FROM device_health")
    assert (rate, before) == (0.6, 0.95)
    assert -0.5 < low < rate - before < high < -0.2


def test_no_count_of_a_view_is_wider_than_a_bigint(data: Path) -> None:
    wide = rows(
        data, "SELECT table_name, column_name FROM duckdb_columns() WHERE data_type = 'HUGEINT' AND NOT internal"
    )
    assert wide == []
