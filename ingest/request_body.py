"""The body of a webhook's request: read within bounds of size and time, and decoded."""

import asyncio
from typing import Final

from aiohttp import StreamReader, hdrs, web

from ingest.content_coding import CorruptBodyError, DecodedBodyTooLargeError, UnknownCodingError, decode_body
from ingest.settings import IngestSettings


class BodyTooLargeError(Exception):
    """The body grew over the limit while it was read."""


class BrokenBodyError(Exception):
    """The body did not arrive whole."""


class LateBodyError(Exception):
    """The body took too long."""


BODY_ERRORS: Final = (
    BodyTooLargeError,
    BrokenBodyError,
    LateBodyError,
    DecodedBodyTooLargeError,
    UnknownCodingError,
)


async def read_body(request: web.BaseRequest, settings: IngestSettings) -> bytes:
    """Return the bytes of a body.

    Raises:
        BodyTooLargeError, BrokenBodyError, LateBodyError: It cannot be taken.
    """
    if request.content.is_eof():  # it came with its headers, as most do
        return await _read_chunks(request.content, settings.max_body_bytes)
    try:
        async with asyncio.timeout(settings.body_timeout_s):
            if request.headers.get(hdrs.EXPECT, "").lower() == "100-continue":
                await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                request.writer.output_size = 0  # no part of the answer
            return await _read_chunks(request.content, settings.max_body_bytes)
    except TimeoutError as error:
        raise LateBodyError from error
    except (web.RequestPayloadError, ConnectionError) as error:
        raise BrokenBodyError from error


async def _read_chunks(content: StreamReader, max_bytes: int) -> bytes:
    chunk = await content.readany()
    if content.at_eof() and len(chunk) <= max_bytes:
        return chunk
    # Not bytes: they would be copied with each chunk, and a chunk may be one byte.
    body = bytearray()
    while chunk:
        body += chunk
        if len(body) > max_bytes:
            raise BodyTooLargeError
        chunk = await content.readany()
    return bytes(body)


def remove_codings(body: bytes, codings: tuple[str, ...], max_bytes: int) -> tuple[bytes, tuple[str, ...]]:
    """Return a body without its content codings, and the codings that were removed.

    A body that is not what its header says is kept as it came, like everything that cannot be read.
    """
    if not codings:
        return body, ()
    try:
        return decode_body(body, codings, max_bytes), codings
    except CorruptBodyError:
        return body, ()
