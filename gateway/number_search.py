r"""Search for phone numbers in texts and in bodies of webhooks, in every notation of digits.

Digits can have separators between them, belong to any script, or be escaped as in JSON (`\u0034`), HTML (`&#52;`) or
URLs (`%34`). A body can be in any charset that ingest reads, and need not be JSON.
"""

import html
import re
import unicodedata
import zlib
from collections.abc import Iterator
from contextlib import suppress
from typing import Final
from urllib.parse import unquote

from gateway.json_body import charset_of
from gateway.phone_numbers import list_spellings

ENCODED_TEXT: Final = r"[^\x01-\x7f]|\\u|%[0-9A-Fa-f]{2}|&#"
"""Regular expression, for RE2 and Python, of texts in which `NumberSearch.expression` alone can miss a number."""

_MIN_DIGITS: Final = 5
_MIN_ID_DIGITS: Final = 9
# Every number with that many digits fits into 63 bits.
_MAX_ID_DIGITS: Final = 18
# At most four separators, such as `) - `. Between the values of two fields of JSON there are at least five characters.
# A trunk zero in brackets is allowed too.
_BETWEEN_DIGITS: Final = r"[^0-9]{0,4}(?:\(0\)[^0-9]{0,4})?"
# Prefix before a country code in most countries, in North America, in Australia and in Japan.
_CALLED_ABROAD: Final = r"(?:00|011|0011|010)?"
# Matches also in a JSON text within a JSON text, which doubles each backslash.
_JSON_ESCAPE: Final = re.compile(r"\\+u([0-9a-fA-F]{4})")
_SURROGATE: Final = re.compile(r"[\ud800-\udfff]")
_WIDE_CODECS: Final = ("utf_16_le", "utf_16_be", "utf_32_le", "utf_32_be")
_WIDE_MARKS: Final = (b"\xff\xfe", b"\xfe\xff")
_GZIP_MAGIC: Final = b"\x1f\x8b"
# zlib reads a gzip header if 16 is added to the size of the window.
_GZIP_WINDOW: Final = 16 + zlib.MAX_WBITS
# Bytes: the largest size of a record.
_MAX_INFLATED: Final = 1 << 20


class NumberSearch:
    """Searches for given phone numbers.

    Args:
        numbers: The numbers, in every spelling that differs by more than punctuation.
        national: Further digits, as `gateway.phone_numbers.national_form` returns them.

    Attributes:
        expression: Regular expression, for RE2 and Python, that finds them in texts that `ENCODED_TEXT` does not match.
        ids: The numbers as whole numbers, without short ones, which can also be ids of messages.

    Raises:
        ValueError: A number has fewer than five digits, which would match text that is not a phone number.
    """

    def __init__(self, numbers: tuple[str, ...], national: tuple[str, ...] = ()) -> None:
        written: dict[str, None] = {}
        for number in numbers:
            forms = list_spellings(number)
            if any(len(digits) < _MIN_DIGITS for digits in forms):
                raise ValueError(number)
            written |= dict.fromkeys(forms)
        written |= dict.fromkeys(national)
        spelled = "|".join(_BETWEEN_DIGITS.join(digits) for digits in written)
        self.expression = f"(?:^|[^0-9]){_CALLED_ABROAD}(?:{spelled})(?:[^0-9]|$)"
        self.ids = tuple(int(digits) for digits in written if _MIN_ID_DIGITS <= len(digits) <= _MAX_ID_DIGITS)
        self._search = re.compile(self.expression).search

    def is_in(self, text: str) -> bool:
        """Return whether a text contains one of the numbers."""
        return any(self._search(reading) for reading in _decoded_variants(text))

    def is_in_body(self, body: bytes, content_type: bytes | None = None) -> bool:
        """Return whether a body contains one of the numbers, in its declared charset or another plausible one."""
        return any(self.is_in(text) for text in _decode_candidates(body, content_type))


def _decoded_variants(text: str) -> Iterator[str]:
    """Yield a text with ASCII digits: unchanged, and without each kind of escapes."""
    yield _with_ascii_digits(text)
    if "\\u" in text:
        text = _without_json_escapes(text)
        yield _with_ascii_digits(text)
    if "%" in text:
        yield _with_ascii_digits(unquote(text))
    if "&" in text:
        yield _with_ascii_digits(html.unescape(text))


def _decode_candidates(body: bytes, content_type: bytes | None) -> Iterator[str]:
    yield body.decode("utf-8", "replace")
    charset = charset_of(content_type)
    if charset is not None:
        yield body.decode(charset, "replace")
    if 0 in body or body.startswith(_WIDE_MARKS):
        for codec in _WIDE_CODECS:
            yield body.decode(codec, "replace")
    if body.startswith(_GZIP_MAGIC):
        yield _decompress_prefix(body).decode("utf-8", "replace")


def _decompress_prefix(body: bytes) -> bytes:
    """Return the readable part of a gzip body. A proxy can cut a body, or drop the header that names its coding."""
    decompressor = zlib.decompressobj(_GZIP_WINDOW)
    found = b""
    with suppress(zlib.error):
        for start in range(0, len(body), 1024):
            found += decompressor.decompress(body[start : start + 1024], _MAX_INFLATED)
            if len(found) > _MAX_INFLATED:
                break
    return found


def _without_json_escapes(text: str) -> str:
    decoded = _JSON_ESCAPE.sub(lambda escape: chr(int(escape[1], 16)), text)
    if not _SURROGATE.search(decoded):
        return decoded
    # Two escapes can be the halves of one character.
    return decoded.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _with_ascii_digits(text: str) -> str:
    """Return a text with ASCII digits in place of those of all scripts, also full-width, superscript and circled."""
    return text if text.isascii() else "".join(str(unicodedata.digit(char, char)) for char in text)
