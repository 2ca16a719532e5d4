"""The body of a webhook's request: read within bounds of size and time, and decoded."""

import asyncio

from aiohttp import StreamReader, hdrs, web

from ingest.content_coding import CorruptBodyError, DecodedBodyTooLargeError, decode_body
from ingest.settings import IngestSettings


class RefusedBodyError(Exception):
    """A body that ingest does not take. The text is for the sender.

    Args:
        status: HTTP status of the answer.
        text: Reason.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def too_large_error(settings: IngestSettings) -> RefusedBodyError:
    """Return the error of a body above the limit."""
    return RefusedBodyError(413, f"the body is larger than {settings.max_body_bytes} bytes")


async def read_body(request: web.BaseRequest, settings: IngestSettings) -> bytes:
    """Return the bytes of a body as they were sent.

    Raises:
        RefusedBodyError: The body is too large, too late or incomplete.
    """
    if request.content.is_eof():
        # Most bodies arrive with their headers.
        return await _read_chunks(request.content, settings)
    try:
        async with asyncio.timeout(settings.body_timeout_s):
            if request.headers.get(hdrs.EXPECT, "").lower() == "100-continue":
                await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                # It is not a part of the answer.
                request.writer.output_size = 0
            return await _read_chunks(request.content, settings)
    except TimeoutError as error:
        raise RefusedBodyError(408, f"the body took longer than {settings.body_timeout_s:g} s") from error
    except (web.RequestPayloadError, ConnectionError) as error:
        raise RefusedBodyError(400, "the body did not arrive whole") from error


async def _read_chunks(content: StreamReader, settings: IngestSettings) -> bytes:
    chunk = await content.readany()
    if content.at_eof() and len(chunk) <= settings.max_body_bytes:
        return chunk
    # A bytes object would be copied with each chunk, and a chunk may be one byte.
    body = bytearray()
    while chunk:
        body += chunk
        if len(body) > settings.max_body_bytes:
            raise too_large_error(settings)
        chunk = await content.readany()
    return bytes(body)


def remove_codings(body: bytes, codings: tuple[str, ...], settings: IngestSettings) -> tuple[bytes, tuple[str, ...]]:
    """Return a body without its content codings, and the codings that were removed.

    A body that does not match its header is kept as it was received, like every body that cannot be read.

    Raises:
        RefusedBodyError: The decoded body is too large.
    """
    if not codings:
        return body, ()
    try:
        return decode_body(body, codings, settings.max_body_bytes), codings
    except CorruptBodyError:
        return body, ()
    except DecodedBodyTooLargeError as error:
        raise too_large_error(settings) from error
