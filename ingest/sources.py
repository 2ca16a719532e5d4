"""Sources: gateway accounts that may send webhooks, and their tokens.

`{data}/sources.json`, mode 0600: `{"sources": {"<name>": {"tokens": ["sha256:<hex>", …]}}}`. Tokens are random and
long, so the token cannot be guessed from a plain hash. A source can have several valid tokens, the newest last, so a
token can be replaced without a gap.
"""

import contextlib
import hmac
import logging
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Final
from urllib.parse import quote

import orjson

from core.atomic_file import lock_folder, write_file_atomically
from ingest.errors import SourceExistsError, SourcesError

log = logging.getLogger(__name__)

Hashes = tuple[str, ...]
"""Hashes of the tokens of a source, in the form of the file."""

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_HASH: Final = re.compile(r"sha256:[0-9a-f]{64}")
# Hash for the comparison of tokens of unknown sources, so that it takes the same time. No token has this hash.
_NO_TOKEN: Final = (f"sha256:{0:064x}",)
_SETTING: Final = "SMSPULSE_INGEST_SOURCES"
# The file is checked for changes at most this often, except for an unknown source or token.
_CHECK_EVERY_S: Final = 1.0


def sources_path(data: Path) -> Path:
    """Return the path of the sources of a data folder."""
    return data / "sources.json"


def webhook_url(base_url: str, source: str, token: str) -> str:
    """Return the URL to paste into the gateway, both for delivery status and for incoming messages."""
    return f"{base_url.rstrip('/')}/webhooks/{quote(source, safe='')}/{quote(token, safe='')}"


def list_sources(data: Path) -> dict[str, int]:
    """Return the sources of the file by name, each with its number of valid tokens.

    Raises:
        SourcesError: The file cannot be read or is invalid.
    """
    return {name: len(hashes) for name, hashes in sorted(_read_sources(sources_path(data)).items())}


def add_source(data: Path, name: str) -> str:
    """Add a source and return its token, which is stored nowhere else. A running ingest loads it by itself.

    Raises:
        SourceExistsError: There is a source of that name.
        SourcesError: The name or the file is invalid, or the file cannot be written.
    """
    path = sources_path(data)
    if not _NAME.fullmatch(name):
        raise SourcesError(
            path, f"source name {name!r} must be 1 to 63 of a-z, 0-9, _ and -, and begin with a letter or a digit"
        )
    with _edit_sources(path) as table:
        if name in table:
            raise SourceExistsError(path, f"source {name!r} exists already: choose another name")
        return _add_token(table, name)


def rotate_source(data: Path, name: str) -> str:
    """Add a token to a source, and return it. Its other tokens stay valid until `retire_tokens`.

    Raises:
        SourcesError: The file has no such source, or cannot be read or written.
    """
    with _edit_sources(sources_path(data), name) as table:
        return _add_token(table, name)


def retire_tokens(data: Path, name: str) -> int:
    """Remove all tokens of a source but the newest; return the number of removed tokens.

    Raises:
        SourcesError: The file has no such source, or cannot be read or written.
    """
    with _edit_sources(sources_path(data), name) as table:
        *old, newest = table[name]
        table[name] = (newest,)
    return len(old)


class SourceRegistry:
    """The sources of a running ingest: those of the file, which is loaded again when it changes, and of the settings.

    Args:
        data: The data folder.
        fixed: The setting `sources`: `name=token`, several separated by commas.

    Raises:
        SourcesError: The file or the setting is invalid. Later, an invalid file is logged and the table is kept.
    """

    def __init__(self, data: Path, fixed: str = "") -> None:
        self._path = sources_path(data)
        self._fixed = _parse_fixed_sources(fixed)
        self._loaded_stamp = self._read_stamp()
        self.table = _merge_sources(self._fixed, _read_sources(self._path))
        """Hashes of the tokens by source, as of the last check of the file."""
        self._check_at = 0.0

    def accepts_token(self, source: str, token: str) -> bool:
        """Return whether the token is valid for the source, in a time that depends on neither."""
        hashed = _hash_token(token)
        if time.monotonic() >= self._check_at:
            self._reload_if_changed()
        # An unknown source or token can be added within the last second.
        return self._has_token(source, hashed) or (self._reload_if_changed() and self._has_token(source, hashed))

    def _has_token(self, source: str, hashed: str) -> bool:
        valid = False
        for known in self.table.get(source, _NO_TOKEN):
            valid |= hmac.compare_digest(known, hashed)
        return valid

    def _reload_if_changed(self) -> bool:
        """Read the file if it changed, and return whether the table changed."""
        self._check_at = time.monotonic() + _CHECK_EVERY_S
        stamp = self._read_stamp()
        if stamp == self._loaded_stamp:
            return False
        self._loaded_stamp = stamp
        try:
            self.table = _merge_sources(self._fixed, _read_sources(self._path))
        except SourcesError as error:
            log.error("%s; the present sources stay valid", error)
            return False
        log.info("sources loaded again: %d", len(self.table))
        return True

    def _read_stamp(self) -> tuple[int, int, int] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ino, status.st_size


def _hash_token(token: str) -> str:
    return f"sha256:{sha256(token.encode(errors='surrogatepass')).hexdigest()}"


def _merge_sources(one: Mapping[str, Hashes], other: Mapping[str, Hashes]) -> dict[str, Hashes]:
    return {name: one.get(name, ()) + other.get(name, ()) for name in one.keys() | other.keys()}


def _parse_fixed_sources(text: str) -> dict[str, Hashes]:
    table: dict[str, Hashes] = {}
    for number, part in enumerate(filter(None, (part.strip() for part in text.split(","))), start=1):
        name, _, token = (piece.strip() for piece in part.partition("="))
        if not _NAME.fullmatch(name) or not token:
            # The error does not quote the entry: without a name or `=`, all of it can be the token.
            raise SourcesError(_SETTING, f"entry {number} is not of the form name=token")
        table[name] = (*table.get(name, ()), _hash_token(token))
    return table


def _read_sources(path: Path) -> dict[str, Hashes]:
    try:
        content = orjson.loads(path.read_bytes())
        return {name: _parse_hashes(path, name, entry) for name, entry in content["sources"].items()}
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise SourcesError(path, f"cannot be read: {error.strerror}") from error
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        problem = 'is not of the form {"sources": {"name": {"tokens": ["sha256:…"]}}}: fix it, or move it away'
        raise SourcesError(path, problem) from error


def _parse_hashes(path: Path, name: str, entry: dict[str, list[str]]) -> Hashes:
    if not _NAME.fullmatch(name) or not all(map(_HASH.fullmatch, entry["tokens"])):
        raise SourcesError(path, f"source {name!r} has an invalid name or token: tokens are sha256:<64 hex digits>")
    return tuple(entry["tokens"])


def _add_token(table: dict[str, Hashes], name: str) -> str:
    token = secrets.token_urlsafe(32)
    table[name] = (*table.get(name, ()), _hash_token(token))
    return token


@contextlib.contextmanager
def _edit_sources(path: Path, name: str | None = None) -> Iterator[dict[str, Hashes]]:
    """Yield the table of the file, which must have the given name, and write the changed table. Locks the folder."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with lock_folder(path.parent):
            table = _read_sources(path)
            if name is not None and not table.get(name):
                raise SourcesError(path, f"there is no source {name!r} with a token; `smspulse source list` lists them")
            yield table
            content = {"sources": {name: {"tokens": hashes} for name, hashes in table.items()}}
            text = orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
            write_file_atomically(path, text, mode=0o600)
    except OSError as error:
        raise SourcesError(path, f"cannot be written: {error.strerror}") from error
