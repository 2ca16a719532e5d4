"""The spool on a real file system, without Kafka."""

import shutil
import sqlite3
from pathlib import Path

import pytest

from core.records import WebhookRecord
from ingest.errors import SpoolError, SpoolFullError
from ingest.settings import IngestSettings
from ingest.spool import WebhookSpool

NOW_MS = 4_102_444_800_000  # in the year 2100: younger than any age limit


def webhook(number: int, body: bytes = b"{}", at: int = NOW_MS) -> WebhookRecord:
    return WebhookRecord(b"acme:%d" % number, body, [("ingest_id", b"%d" % number)], at)


def opened(data: Path, **settings: object) -> WebhookSpool:
    return WebhookSpool(data, IngestSettings.model_validate({"spool_reserve_bytes": 0} | settings))


def keys(spool: WebhookSpool) -> list[bytes | None]:
    return [each.key for each in spool.read_webhooks(0, 1_000_000)[1]]


def test_webhooks_are_returned_unchanged_and_in_order_also_after_a_restart(tmp_path: Path) -> None:
    odd = WebhookRecord(None, bytes(range(256)), [("source", "ä".encode()), ("content_type", b"")], NOW_MS)
    groups = [[webhook(1), odd], [webhook(2)], [webhook(3), webhook(4)]]
    spool = opened(tmp_path)
    for group in groups:
        spool.append(group)
    assert not spool.is_empty()
    assert spool.read_state().webhooks == 5
    spool.close()
    spool = opened(tmp_path)
    assert spool.read_webhooks(0, 100) == (5, [each for group in groups for each in group])
    assert spool.read_webhooks(0, 1) == (2, groups[0])
    assert spool.read_webhooks(2, 2) == (5, [*groups[1], *groups[2]])
    assert spool.read_webhooks(5, 100) == (5, [])


def test_removed_webhooks_are_gone_and_the_rest_stays_in_order(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    for number in range(4):
        spool.append([webhook(number)])
    spool.delete_forwarded(2)
    assert keys(spool) == [b"acme:2", b"acme:3"]
    assert spool.read_state().webhooks == 2
    spool.append([webhook(4)])
    assert keys(spool) == [b"acme:2", b"acme:3", b"acme:4"]
    spool.delete_forwarded(5)
    assert spool.is_empty()
    assert spool.read_state()[::2] == (0, 0.0)


def test_an_emptied_spool_frees_the_disk(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    for number in range(8):
        spool.append([webhook(number, bytes(1_000_000))])
    spool.delete_forwarded(8)
    assert sum(path.stat().st_size for path in (tmp_path / "spool").iterdir()) < 200_000
    spool.append([webhook(9)])
    assert keys(spool) == [b"acme:9"]


@pytest.mark.parametrize("damage", ["cut", "garbled"])
def test_a_truncated_tail_loses_only_unanswered_webhooks(tmp_path: Path, damage: str) -> None:
    spool = opened(tmp_path)
    for number in range(20):
        spool.append([webhook(number, bytes(5_000))])
    before = (tmp_path / "spool" / "spool.sqlite-wal").stat().st_size
    spool.append([webhook(20, bytes(5_000))])  # the power failure prevents its fsync
    torn = tmp_path / "after power loss"
    shutil.copytree(tmp_path / "spool", torn / "spool", ignore=shutil.ignore_patterns("*-shm"))
    log = torn / "spool" / "spool.sqlite-wal"
    content = log.read_bytes()
    log.write_bytes(
        content[: before + 700] if damage == "cut" else content[: before + 700] + bytes(len(content) - before)
    )
    survived = opened(torn)
    assert keys(survived) == [b"acme:%d" % number for number in range(20)]
    survived.append([webhook(21)])
    assert keys(survived)[-1] == b"acme:21"


def test_webhooks_beyond_the_size_limit_are_refused_until_space_is_free(tmp_path: Path) -> None:
    spool = opened(tmp_path, spool_max_bytes=3_000_000)
    spool.append([webhook(1, bytes(200_000))])  # a zero byte takes six in JSON
    assert spool.read_state().full_reason is None
    spool.append([webhook(2, bytes(200_000))])
    assert spool.read_state().full_reason == "the spool is full"
    with pytest.raises(SpoolFullError, match=r"^the spool is full$"):
        spool.append([webhook(3, bytes(200_000))])
    assert keys(spool) == [b"acme:1", b"acme:2"]
    spool.delete_forwarded(1)
    assert spool.read_state().full_reason is None
    spool.append([webhook(3, bytes(200_000))])
    assert keys(spool) == [b"acme:2", b"acme:3"]


def test_a_webhook_beyond_the_age_limit_is_kept_and_new_ones_are_refused(tmp_path: Path) -> None:
    spool = opened(tmp_path, spool_max_age_s=60)
    spool.append([webhook(1, at=NOW_MS)])
    spool.append([webhook(2, at=1_000)])
    spool.delete_forwarded(1)
    assert spool.read_state().full_reason == "the spool has waited for Kafka for too long"
    with pytest.raises(SpoolFullError, match="too long"):
        spool.append([webhook(3)])
    assert keys(spool) == [b"acme:2"]


def test_the_reserve_of_the_disk_is_not_used(tmp_path: Path) -> None:
    spool = opened(tmp_path, spool_reserve_bytes=1 << 62)
    assert spool.read_state().full_reason == "the disk of the spool is full"
    with pytest.raises(SpoolFullError, match="disk"):
        spool.append([webhook(1)])
    assert spool.is_empty()


def test_processes_share_their_webhooks_and_one_at_a_time_forwards(tmp_path: Path) -> None:
    one, other = opened(tmp_path), opened(tmp_path)
    one.append([webhook(1)])
    other.append([webhook(2)])
    one.append([webhook(3)])
    assert keys(one) == keys(other) == [b"acme:1", b"acme:2", b"acme:3"]
    with one.lock_forwarding() as ours, other.lock_forwarding() as theirs:
        assert (ours, theirs) == (True, False)
    with other.lock_forwarding() as theirs:
        assert theirs
        other.delete_forwarded(3)
    assert one.is_empty()


def test_a_damaged_spool_is_reported_in_one_line_and_not_changed(tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir()
    file = tmp_path / "spool" / "spool.sqlite"
    file.write_bytes(b"no database, but nobody's to delete" * 1000)
    with pytest.raises(SpoolError, match="move the folder away and keep it") as caught:
        opened(tmp_path)
    assert "\n" not in str(caught.value)
    assert file.stat().st_size == 35_000


def test_a_spool_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    spool.append([webhook(1)])
    for path in (tmp_path / "spool").iterdir():
        assert path.stat().st_mode & 0o077 == 0, path
    assert (tmp_path / "spool").stat().st_mode & 0o077 == 0
    with sqlite3.connect(tmp_path / "spool" / "spool.sqlite") as db:
        assert db.execute("SELECT webhooks, data FROM spool").fetchone() == (
            1,
            b'[["acme:1","{}",[["ingest_id","1"]],4102444800000]]',
        )
