import json
import logging
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from ingest.errors import SourceExistsError, SourcesError
from ingest.sources import (
    SourceRegistry,
    add_source,
    list_sources,
    retire_tokens,
    rotate_source,
    sources_path,
    webhook_url,
)


def test_an_added_source_is_accepted_only_with_its_token(tmp_path: Path) -> None:
    token = add_source(tmp_path, "acme")
    other = add_source(tmp_path, "other")
    sources = SourceRegistry(tmp_path)
    assert sources.accepts_token("acme", token)
    assert not sources.accepts_token("acme", other)
    assert not sources.accepts_token("acme", "")
    assert not sources.accepts_token("acme", token + "\udce9")
    assert not sources.accepts_token("nobody", token)
    assert list_sources(tmp_path) == {"acme": 1, "other": 1}


def test_the_file_has_no_token_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    token = add_source(tmp_path, "acme")
    path = sources_path(tmp_path)
    assert token not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_name_is_unique(tmp_path: Path) -> None:
    token = add_source(tmp_path, "acme")
    with pytest.raises(SourceExistsError, match="'acme' exists already"):
        add_source(tmp_path, "acme")
    assert SourceRegistry(tmp_path).accepts_token("acme", token)


@pytest.mark.parametrize("name", ["", "Acme", "-a", "a/b", "a" * 64, "é", "a\n"])
def test_a_name_that_is_invalid_in_a_path_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SourcesError, match="must be 1 to 63"):
        add_source(tmp_path, name)
    assert list_sources(tmp_path) == {}


def test_several_tokens_of_a_source_are_valid_at_once(tmp_path: Path) -> None:
    tokens = [add_source(tmp_path, name) for name in ("old", "new")]
    path = sources_path(tmp_path)
    entries = json.loads(path.read_text())["sources"]
    path.write_text(json.dumps({"sources": {"acme": {"tokens": entries["old"]["tokens"] + entries["new"]["tokens"]}}}))
    sources = SourceRegistry(tmp_path, "acme=third")
    assert all(sources.accepts_token("acme", token) for token in [*tokens, "third"])
    assert list_sources(tmp_path) == {"acme": 2}


def test_a_source_added_at_run_time_is_accepted_at_once(tmp_path: Path) -> None:
    sources = SourceRegistry(tmp_path)
    assert not sources.accepts_token("acme", "x")
    assert sources.accepts_token("acme", add_source(tmp_path, "acme"))


def test_a_file_damaged_at_run_time_changes_nothing_and_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    token = add_source(tmp_path, "acme")
    sources = SourceRegistry(tmp_path)
    sources_path(tmp_path).write_text("{ broken")
    with caplog.at_level(logging.INFO):
        assert not any(sources.accepts_token("nobody", "x") for _ in range(3))
        assert sources.accepts_token("acme", token)
    assert len(caplog.records) == 1
    assert "stay valid" in caplog.text
    assert str(sources_path(tmp_path)) in caplog.text


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"sources": []}', '{"sources": {"a": {"tokens": 1}}}', '{"sources": {"a": {"tokens": ["plain"]}}}'],
)
def test_a_damaged_file_is_named_at_the_start_and_never_overwritten(tmp_path: Path, content: str) -> None:
    path = sources_path(tmp_path)
    path.write_text(content)
    for read in (
        lambda: SourceRegistry(tmp_path),
        lambda: list_sources(tmp_path),
        lambda: add_source(tmp_path, "acme"),
    ):
        with pytest.raises(SourcesError, match=r"sources\.json"):
            read()
    assert path.read_text() == content


@pytest.mark.parametrize("setting", ["s3cret", "=s3cret", "acme=", "Acme=s3cret", "ok=s3cret-1,s3cret"])
def test_an_invalid_setting_is_refused_and_not_shown(tmp_path: Path, setting: str) -> None:
    with pytest.raises(SourcesError, match=r"SMSPULSE_INGEST_SOURCES: entry \d is not of the form") as caught:
        SourceRegistry(tmp_path, setting)
    assert "s3cret" not in str(caught.value)


def test_a_url_is_valid_with_any_characters_in_the_token() -> None:
    assert webhook_url("http://127.0.0.1:8080/", "acme", "a-_b") == "http://127.0.0.1:8080/webhooks/acme/a-_b"
    assert webhook_url("https://x.example", "acme", "a/b?c") == "https://x.example/webhooks/acme/a%2Fb%3Fc"


def test_a_rotated_token_and_its_successor_are_both_valid_until_the_rotation_is_finished(tmp_path: Path) -> None:
    old, other = add_source(tmp_path, "acme"), add_source(tmp_path, "other")
    sources = SourceRegistry(tmp_path)
    new = rotate_source(tmp_path, "acme")
    assert sources.accepts_token("acme", new)
    assert sources.accepts_token("acme", old)
    assert list_sources(tmp_path) == {"acme": 2, "other": 1}
    assert new not in sources_path(tmp_path).read_text()
    assert retire_tokens(tmp_path, "acme") == 1
    running = SourceRegistry(tmp_path)
    assert [running.accepts_token("acme", token) for token in (old, new)] == [False, True]
    assert running.accepts_token("other", other)
    assert retire_tokens(tmp_path, "acme") == 0
    assert running.accepts_token("acme", new)


@pytest.mark.parametrize("change", [rotate_source, retire_tokens])
def test_an_unknown_source_has_nothing_to_rotate(tmp_path: Path, change: Callable[[Path, str], object]) -> None:
    add_source(tmp_path, "acme")
    before = sources_path(tmp_path).read_text()
    with pytest.raises(SourcesError, match="there is no source 'amce'"):
        change(tmp_path, "amce")
    assert sources_path(tmp_path).read_text() == before


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SourcesError, match="cannot be written"):
        add_source(tmp_path / "file", "acme")
