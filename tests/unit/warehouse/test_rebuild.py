"""Lifecycles from the log agree with the stream row for row, and errors in either are detected."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rebuilt_streams import DAY, Stream, dense_history, messages, rebuild, rows, simulated_history, stream_history
from warehouse_records import status

from gateway import payloads
from streams import lifecycle
from warehouse import catalog, lifecycle_comparison, lifecycle_sql
from warehouse.schemas import SCHEMAS
from warehouse.sql_text import load_sql

pytestmark = pytest.mark.usefixtures("published_views")


@pytest.fixture
def data(published: Path) -> Path:
    return published


HISTORIES: dict[str, Callable[[], list[tuple[float, Any]]]] = {
    "dense": lambda: dense_history(5, 800),
    "simulated": lambda: simulated_history(3, 800),
}


@pytest.mark.parametrize("name", HISTORIES)
def test_stream_and_log_agree_row_for_row(data: Path, name: str) -> None:
    stream_history(data, HISTORIES[name]())
    before = messages(data)
    found = rebuild(data)
    assert (found.differing, found.repaired) == (0, 0)
    assert found.messages == len(before) > 750
    assert messages(data) == before
    assert_base_files_equal_the_stream(data)


def assert_base_files_equal_the_stream(data: Path) -> None:
    """Compare the base files with the stream, field by field, without the comparison of the rebuild."""
    columns = ", ".join(name for name in SCHEMAS["base"].names if name != "recorded_at")
    base, streamed = "dataset('base')", "dataset('messages')"
    order = 'row_number() OVER (PARTITION BY message_key ORDER BY version DESC, "offset" DESC) = 1'
    newest = f"SELECT * FROM {streamed} WHERE NOT is_forgotten QUALIFY {order}"  # noqa: S608 - names of ours
    for one, other in ((base, f"({newest})"), (f"({newest})", base)):
        assert rows(data, f"SELECT {columns} FROM {one} EXCEPT SELECT {columns} FROM {other}") == []  # noqa: S608


@pytest.mark.parametrize("seed", [11, 12])
@pytest.mark.parametrize("limit", [1, 4])
def test_stream_and_log_agree_on_messages_with_too_many_reports(data: Path, seed: int, limit: int) -> None:
    stream_history(data, dense_history(seed, 200), 1, limit)
    found = rebuild(data, max_observations=limit)
    assert (found.differing, found.repaired) == (0, 0)
    observed = dict(rows(data, "SELECT len(observations), count(*) FROM messages GROUP BY ALL"))
    assert max(observed) == limit
    assert observed[limit] > 50
    assert_base_files_equal_the_stream(data)
    assert rebuild(data, everything=True).differing > 50  # with the usual limit


MULTI_ATTEMPT, SIMPLE, SUMMARY = "lifecycle_multi_attempt", "lifecycle_simple", "message_summary"


def change_sql(monkeypatch: pytest.MonkeyPatch, file: str, right: str, wrong: str) -> None:
    """Replace a text in a file of the lifecycle's SQL."""
    assert right in load_sql("lifecycle", file)

    def load_changed_sql(*path: str) -> str:
        return load_sql(*path).replace(right, wrong) if path == ("lifecycle", file) else load_sql(*path)

    for module in (lifecycle_sql, lifecycle_comparison):
        monkeypatch.setattr(module, "load_sql", load_changed_sql)


EXCESS_MUTATIONS = {
    "the last observations are held": ("excess", "ORDER BY first_position", "ORDER BY first_position DESC"),
    "those received first are held": (
        "excess",
        "min(position) AS first_position",
        "min(reported_at) AS first_position",
    ),
    "those reported again last are held": ("excess", "min(position)", "max(position)"),
    "one more is held": ("excess", "> getvariable('max_observations')\n", "> getvariable('max_observations') + 1\n"),
}


@pytest.mark.parametrize("name", EXCESS_MUTATIONS)
def test_an_error_in_the_choice_of_observations_is_detected(
    data: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    file, right, wrong = EXCESS_MUTATIONS[name]
    stream_history(data, dense_history(13, 120), 1, 4)
    change_sql(monkeypatch, file, right, wrong)
    assert rebuild(data, max_observations=4).differing > 0


MUTATIONS = {
    "a step behind a failure begins an attempt": (
        MULTI_ATTEMPT,
        "min(stretch) OVER (PARTITION BY message, status_id) < stretch",
        "stretch > 0",
    ),
    "each repeated step begins an attempt": (
        MULTI_ATTEMPT,
        "GROUP BY message, stretch",
        "GROUP BY message, stretch, status_id",
    ),
    "attempts begin disorder": (MULTI_ATTEMPT, " AND NOT is_restart", ""),
    "the first end wins": (
        MULTI_ATTEMPT,
        "arg_max(status_id, place) AS status_id",
        "arg_min(status_id, place) AS status_id",
    ),
    "an end reported again wins": (
        MULTI_ATTEMPT,
        "min(place) AS place,\n        min(first_at)",
        "max(place) AS place,\n        min(first_at)",
    ),
    "an end is when it was reported again": (
        MULTI_ATTEMPT,
        "place,\n        min(first_at)",
        "place,\n        max(first_at)",
    ),
    "latencies of another step": (
        MULTI_ATTEMPT,
        "FILTER (attempted.status_id = 2)",
        "FILTER (attempted.status_id = 3)",
    ),
    "another phone begins no attempt": (MULTI_ATTEMPT, "later.device_id <> ended.known_device_id OR ", ""),
    "another SIM card begins no attempt": (MULTI_ATTEMPT, " OR later.channel_id <> ended.known_channel_id", ""),
    "the newest phone is charged": (
        MULTI_ATTEMPT,
        "coalesce(any_value(ended.device_id), arg_max(attempted.device_id, place))",
        "arg_max(attempted.device_id, place)",
    ),
    "no order within a millisecond": (
        MULTI_ATTEMPT,
        "first_at, coalesce(rank, -1)",
        "first_at, -coalesce(rank, -1)",
    ),
    "no contradictions": (MULTI_ATTEMPT, "min(outcome) <> max(outcome) AS contradicted", "false AS contradicted"),
    "the last recipient": (SUMMARY, "min(recipient)", "max(recipient)"),
    "a change of phone is plain": (SUMMARY, "min(hash(", "max(hash("),
    "another time of sending is plain": (SUMMARY, "said_at = max(sent_at)", "true"),
    "a status with and without a time of sending is plain": (SUMMARY, "(steps >> 6)", "0"),
    "an unknown status is plain": (SUMMARY, "(1 << 5) | (1 << 11)", "0"),
    "two ends are plain": (SUMMARY, "winner = max(", "winner <= max("),
    "an overtaken report is in order": (SIMPLE, "handed_at > ended_at", "false"),
    "plain reports of a millisecond are in no order": (SIMPLE, "'nth': nth", "'nth': -nth"),
    "plain observations are as documented": (
        "lifecycle_simple",
        "WHEN reordered THEN list_select",
        "WHEN false THEN list_select",
    ),
    "a time of sending is of all reports": (SIMPLE, "steps & 8 > 0", "true"),
    "a plain message has no duplicates": (SIMPLE, "handed_until > handed_at", "false"),
    "plain messages end undelivered": (SIMPLE, "winner = 7", "winner = 8"),
    "nothing expires": ("lifecycle", "<= getvariable('horizon')", "> getvariable('horizon')"),
    "missing steps are no flag": ("lifecycle", "'network_missing'", "NULL"),
}


@pytest.fixture(scope="module")
def landed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A warehouse whose stream and log agree."""
    folder = tmp_path_factory.mktemp("landed")
    catalog.publish_views(folder)
    stream_history(folder, [*dense_history(7, 150), *simulated_history(3, 100)], 1)
    assert rebuild(folder).differing == 0
    return folder


@pytest.mark.parametrize("name", MUTATIONS)
def test_an_error_in_the_second_implementation_is_detected(
    landed: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    file, right, wrong = MUTATIONS[name]
    change_sql(monkeypatch, file, right, wrong)
    assert rebuild(landed, everything=True).differing > 0


def test_observations_may_be_read_in_any_order(landed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change_sql(monkeypatch, MULTI_ATTEMPT, "places = range(1, observed + 1)", "false")
    assert rebuild(landed, everything=True).differing == 0


@pytest.mark.parametrize("lands", ["earlier release", "this release"])
@pytest.mark.parametrize("streams", ["earlier release", "this release"])
def test_stream_and_log_agree_on_long_addresses_of_any_release(
    data: Path, monkeypatch: pytest.MonkeyPatch, lands: str, streams: str
) -> None:
    stream, address = Stream(data), "+" + "4" * 300
    bodies = [status(n, step, sendto=address if n < 3 else "+4915700000001") for n in range(5) for step in (1, 6)]
    with monkeypatch.context() as patch:
        if lands == "earlier release":
            patch.setattr(payloads.events, "MAX_NAME_LENGTH", 10**6)
        records = stream.receive(*enumerate(bodies))
    with monkeypatch.context() as patch:
        if streams == "earlier release":
            patch.setattr(payloads.events, "MAX_NAME_LENGTH", 10**6)
            patch.setattr(lifecycle, "MAX_NAME_LENGTH", 10**6)
        stream.process(records)
    stream.report((60, status(0, 7, sendto=address)), (61, status(1, 6, sendto=address)), (62, status(3, 7)))
    with monkeypatch.context() as patch:
        if streams == "earlier release":
            patch.setattr(lifecycle, "MAX_NAME_LENGTH", 10**6)
        stream.on_timer(2 * DAY)  # message 2 expires, and has no further reports
    stream.settle(3 * DAY)
    found = rebuild(data)
    assert (found.differing, found.messages) == (0, 6)
    held = rows(data, "SELECT sms_id, recipient, outcome FROM messages WHERE sms_id < 10 ORDER BY sms_id")
    assert [row[:2] for row in held] == [(0, None), (1, None), (2, None), *((n, "+4915700000001") for n in (3, 4))]
    assert [row[2] for row in held] == ["delivered", "expired", "expired", "delivered", "expired"]
