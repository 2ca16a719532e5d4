"""Content codings of HTTP bodies: gzip and deflate, decoded within a bound of memory."""

import zlib
from collections.abc import Iterable
from typing import Final

ACCEPTED_CODINGS: Final = "gzip, deflate"
"""Value of `Accept-Encoding` in an answer 415, as RFC 9110 (15.5.16) requires."""

_GZIP: Final = "gzip"
_ALIASES: Final = {"x-gzip": _GZIP, "gzip": _GZIP, "deflate": "deflate"}
# Each coding costs the decoding of a whole body. Real senders use one at most.
_MAX_CODINGS: Final = 2
# zlib reads a gzip header if 16 is added to the size of the window.
_GZIP_WINDOW: Final = 16 + zlib.MAX_WBITS
# The rest behind each member is copied, so thousands of empty members would take seconds.
_MAX_GZIP_MEMBERS: Final = 8
_EMPTY: Final = "identity"


class UnknownCodingError(Exception):
    """A `Content-Encoding` is not supported. The text is for the sender."""

    def __init__(self) -> None:
        super().__init__(f"Content-Encoding must be one of {ACCEPTED_CODINGS}, or left out")


class CorruptBodyError(Exception):
    """The body does not match its `Content-Encoding`, or ends too early."""


class DecodedBodyTooLargeError(Exception):
    """The decoded body is larger than the limit."""


def parse_codings(values: Iterable[str]) -> tuple[str, ...]:
    """Return the codings of `Content-Encoding` headers, in the order in which they were applied.

    Raises:
        UnknownCodingError: A coding is not supported, or there are too many.
    """
    named = [name.strip().lower() for value in values for name in value.split(",")]
    codings = tuple(_ALIASES.get(name, "") for name in named if name not in {"", _EMPTY})
    if len(codings) > _MAX_CODINGS or "" in codings:
        raise UnknownCodingError
    return codings


def decode_body(body: bytes, codings: tuple[str, ...], limit: int) -> bytes:
    """Return a body without its codings. It never takes more memory than the limit, whatever its decoded size.

    Args:
        body: The bytes received.
        codings: As `parse_codings` returns them.
        limit: The largest decoded size, in bytes.

    Raises:
        CorruptBodyError: The body does not match its codings.
        DecodedBodyTooLargeError: The body is larger than the limit after one of the codings.
    """
    for coding in reversed(codings):
        try:
            body = _decode_gzip(body, limit) if coding == _GZIP else _decode_deflate(body, limit)
        except zlib.error as error:
            raise CorruptBodyError from error
    return body


def _decode_gzip(body: bytes, limit: int) -> bytes:
    """Decode gzip, which can have several members."""
    decoded = b""
    rest = body
    for _ in range(_MAX_GZIP_MEMBERS):
        decompressor = zlib.decompressobj(_GZIP_WINDOW)
        decoded += _decompress_bounded(decompressor, rest, limit - len(decoded))
        rest = decompressor.unused_data
        if not rest:
            return decoded
    raise CorruptBodyError


def _decode_deflate(body: bytes, limit: int) -> bytes:
    """Decode deflate: in a zlib container, as RFC 9110 defines it, or bare, as many clients send it."""
    try:
        return _decompress_bounded(zlib.decompressobj(zlib.MAX_WBITS), body, limit)
    except zlib.error:
        return _decompress_bounded(zlib.decompressobj(-zlib.MAX_WBITS), body, limit)


def _decompress_bounded(decompressor: "zlib._Decompress", body: bytes, limit: int) -> bytes:
    # One byte above the limit shows that there is more. zlib stops there.
    decoded = decompressor.decompress(body, limit + 1)
    if len(decoded) > limit:
        raise DecodedBodyTooLargeError
    if not decompressor.eof:
        raise CorruptBodyError
    return decoded
