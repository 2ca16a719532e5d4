"""The JSON text of a webhook's body: its charset, and the repair of common errors.

A body is stored as it was received. Ingest, stream, lander, erasure and `smspulse check payload` all read it with
`gateway.payloads`, which uses this module, so they agree on each body.

- A charset that `Content-Type` declares is decoded. If the result is not JSON, the declaration counts as wrong, and
  the body is read as UTF-8.
- A byte order mark means UTF-8, whatever is declared. One is removed for every reader. A body with a second one is
  not JSON.
- A charset that is not in the list below counts as not declared. The body is then read as UTF-8, the encoding of every
  JSON text by RFC 8259.
- Invalid UTF-8 and lone surrogates become U+FFFD: a cut emoji costs one character, and not the report.
"""

import json
import re
from contextlib import suppress
from encodings.aliases import aliases
from functools import lru_cache
from typing import Any, Final

import orjson

_BOM: Final = b"\xef\xbb\xbf"

# Python's names of codecs. Their decoders take linear time, and only decode text.
_ASCII_BASED: Final = frozenset(
    {
        *("latin_1", "cp437", "cp850", "cp866", "cp874", "cp932", "cp949", "mac_roman"),
        *(f"iso8859_{part}" for part in (2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 14, 15, 16)),
        *(f"cp{page}" for page in range(1250, 1259)),
        *("koi8_r", "koi8_u", "gb2312", "gbk", "gb18030", "big5", "shift_jis", "euc_jp", "euc_kr"),
    }
)
_OF_WIDE_UNITS: Final = frozenset({"utf_16", "utf_16_le", "utf_16_be", "utf_32", "utf_32_le", "utf_32_be"})
_OF_UNKNOWN_BYTE_ORDER: Final = frozenset({"utf_16", "utf_32"})

_CHARSET: Final = re.compile(rb";\s*charset\s*=\s*\"?([\w.:+-]+)", re.IGNORECASE)
# Without one, a `Content-Type` names no charset. A number, because `bytes in bytes` raises an exception internally.
_EQUALS_SIGN: Final = ord("=")
_CACHED_TYPES: Final = 256
# Bytes. With the number of entries, it bounds the cache at about 64 KiB.
_LONGEST_CACHED_TYPE: Final = 128

# Every escape is matched, so that the end of `\\ud800`, a backslash and a word, does not count as one. Runs of escapes
# that stay and runs of those that do not are matched together: one by one, 260 kB would take a tenth of a second.
_PAIR: Final = rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_LONE: Final = rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}"
_LONE_BYTES: Final = 6
_ESCAPE: Final = re.compile(
    rb"(?:\\[^u]|\\u(?![dD][89a-fA-F])|%b)++|((?:(?!%b)%b)++)|\\." % (_PAIR, _PAIR, _LONE), re.DOTALL
)
_REPLACEMENT: Final = rb"\ufffd"


def charset_of(content_type: bytes | None) -> str | None:
    """Return Python's name of the charset that a `Content-Type` declares, or None if that is UTF-8 or unknown."""
    if not content_type:
        return None
    if len(content_type) > _LONGEST_CACHED_TYPE:
        return _find_charset(content_type)
    return _cached_charset(content_type)


def _find_charset(content_type: bytes) -> str | None:
    declared = _CHARSET.search(content_type)
    if declared is None:
        return None
    # `codecs.lookup` is not used: it caches every name that it gets, without a limit.
    name = declared[1].decode("ascii", "replace").lower().replace("-", "_")
    codec = aliases.get(name, name)
    return codec if codec in _ASCII_BASED or codec in _OF_WIDE_UNITS else None


_cached_charset: Final = lru_cache(_CACHED_TYPES)(_find_charset)


def to_utf8(body: bytes, content_type: bytes | None) -> bytes:
    """Return a body in UTF-8, decoded by the charset that its `Content-Type` declares, rightly or not.

    Raises nothing: a body that cannot be decoded, for whatever reason, is returned unchanged.

    Args:
        body: The bytes received.
        content_type: The header `Content-Type`.
    """
    # Runs for each report, and nearly no `Content-Type` has a parameter.
    if not content_type or _EQUALS_SIGN not in content_type:
        return body
    charset = charset_of(content_type)
    if charset is None or body.startswith(_BOM) or (charset in _ASCII_BASED and body.isascii()):
        return body
    try:
        if charset in _OF_UNKNOWN_BYTE_ORDER:
            # The byte order follows from a mark, or else from the zero bytes: a JSON text begins with ASCII.
            charset = json.detect_encoding(body)
        return body.decode(charset, "replace").encode("utf-8", "replace")
    except Exception:
        # No error of a decoder may stop a reader of bodies.
        return body


def load_json(body: bytes, content_type: bytes | None = None) -> Any:
    """Return the value of a JSON text in the declared charset, or in UTF-8 if the declaration is wrong.

    Raises:
        ValueError: The text is not JSON.
    """
    text = to_utf8(body, content_type)
    if text is not body:
        # As a rule a ValueError. What the wrong charset makes of a body may raise anything.
        with suppress(Exception):
            return _load_utf8_json(text)
    return _load_utf8_json(body)


def _load_utf8_json(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        repaired = _repair_json(body)
        if repaired == body:
            raise
        return orjson.loads(repaired)


def _repair_json(body: bytes) -> bytes:
    """Return a body without its byte order mark, and with U+FFFD for invalid Unicode."""
    text = body.removeprefix(_BOM)
    if not text.lstrip().startswith(b"{"):
        return text
    valid = text.decode("utf-8", "replace").encode()
    return _ESCAPE.sub(_replace_lone_surrogates, valid)


def _replace_lone_surrogates(escapes: re.Match[bytes]) -> bytes:
    return _REPLACEMENT * (len(escapes[1]) // _LONE_BYTES) if escapes[1] else escapes[0]
