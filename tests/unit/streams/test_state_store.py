"""The local store: states, what is due when, and whose copy it is."""

import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from streams import state_store
from streams.errors import StateError
from streams.processor import ProcessorOutput
from streams.state_store import StateStore

MINUTE = 60_000
NOON = 1_760_000_040_000  # a whole minute


def test_what_is_due_is_found_in_order_from_its_minute_on(tmp_path: Path) -> None:
    store = StateStore(tmp_path, "a")
    store.write_states(
        ProcessorOutput([(b"gw:2", b"two", NOON + MINUTE), (b"gw:1", b"one", NOON + 1), (b"gw:3", b"three", None)]), 3
    )
    assert store.due_timers(NOON + MINUTE - 1, 10) == {}
    assert list(store.due_timers(NOON + MINUTE, 10).values()) == [b"gw:1"]
    assert list(store.due_timers(NOON + 2 * MINUTE, 10).values()) == [b"gw:1", b"gw:2"]
    assert list(store.due_timers(NOON + 2 * MINUTE, 1).values()) == [b"gw:1"]


def test_what_was_done_is_due_no_more_and_what_was_set_meanwhile_is(tmp_path: Path) -> None:
    store = StateStore(tmp_path, "a")
    store.write_states(ProcessorOutput([(b"gw:1", b"one", NOON), (b"gw:2", b"two", NOON + 5 * MINUTE)]), 2)
    entries = store.due_timers(NOON + MINUTE, 10)
    # Due again in the past: the clock was far behind.
    store.write_states(ProcessorOutput([(b"gw:1", b"expired", NOON - 9 * MINUTE)]), 4, entries)
    again = store.due_timers(NOON + MINUTE, 10)
    assert list(again.values()) == [b"gw:1"]
    store.write_states(ProcessorOutput(), done=again)
    assert store.due_timers(NOON + MINUTE, 10) == {}
    assert list(store.due_timers(NOON + 9 * MINUTE, 10).values()) == [b"gw:2"]
    assert (store.get(b"gw:1"), store.offset) == (b"expired", 4)


def test_an_evicted_state_is_distinguished_from_a_missing_one_until_it_is_purged(tmp_path: Path) -> None:
    store = StateStore(tmp_path, "a")
    store.write_states(ProcessorOutput([(b"gw:1", b"one", NOON)]), 1)
    store.write_states(ProcessorOutput([(b"gw:1", None, NOON)]), 2)
    assert (store.get(b"gw:1"), store.get(b"gw:2")) == (b"", None)
    store.write_states(ProcessorOutput(expired=[b"gw:1"]))
    assert store.get(b"gw:1") is None


def test_it_is_kept_for_the_same_topic_alone(tmp_path: Path) -> None:
    first = StateStore(tmp_path, "a")
    first.write_states(ProcessorOutput([(b"gw:1", b"one", NOON)]), 7)
    first.close()
    same = StateStore(tmp_path, "a")
    assert (same.get(b"gw:1"), same.offset, list(same.due_timers(NOON + MINUTE, 9).values())) == (b"one", 7, [b"gw:1"])
    same.close()
    other = StateStore(tmp_path, "b")
    assert (other.get(b"gw:1"), other.offset, other.due_timers(NOON + MINUTE, 9)) == (None, 0, {})


@pytest.mark.parametrize("due", [-(10**15), 10**16])
def test_times_that_cannot_be_are_kept_as_well(tmp_path: Path, due: int) -> None:
    store = StateStore(tmp_path, "a")
    store.write_states(ProcessorOutput([(b"gw:1", b"one", due)]), 1)
    assert len(store.due_timers(NOON, 9)) == (due < 0)


def test_two_open_stores_are_distinguished(tmp_path: Path) -> None:
    first = StateStore(tmp_path, "a")
    with pytest.raises(StateError, match="give this one a folder of its own"):
        StateStore(tmp_path, "a")
    first.close()


@pytest.mark.parametrize(
    ("name", "content"), [("000004.log", b""), ("CURRENT", b""), ("CURRENT", b"MANIFEST-000005\n")]
)
def test_a_store_that_was_killed_while_it_was_made_is_made_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    store = StateStore(tmp_path, "a")
    assert (store.offset, "read again from Kafka" in caplog.text) == (0, True)


def test_what_was_written_is_there_after_a_clean_end(tmp_path: Path) -> None:
    store = StateStore(tmp_path, "a")
    store.write_states(ProcessorOutput([(b"gw:1", b"one", NOON)]), 7, source=3)
    store.close()
    again = StateStore(tmp_path, "a")
    assert (again.get(b"gw:1"), again.offset, again.source_offset) == (b"one", 7, 3)


def test_few_new_states_become_a_file_after_some_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(state_store, "time", SimpleNamespace(monotonic=lambda: now))
    store = StateStore(tmp_path, "a")
    store.write_states(ProcessorOutput([(b"a:1", b"one", None)]), 1)
    assert not list(tmp_path.glob("*.sst"))
    now += 301
    store.write_states(ProcessorOutput([(b"a:2", b"two", None)]), 2)
    while not list(tmp_path.glob("*.sst")):
        time.sleep(0.01)
    files = len(list(tmp_path.glob("*.sst")))
    store.write_states(ProcessorOutput([(b"a:3", b"three", None)]), 3)
    assert len(list(tmp_path.glob("*.sst"))) == files
    assert [store.get(key) for key in (b"a:1", b"a:2", b"a:3")] == [b"one", b"two", b"three"]
