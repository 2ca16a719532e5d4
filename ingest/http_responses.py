"""Plain HTTP answers of every server of smspulse."""

from typing import Final

import orjson
from aiohttp import web

JSON: Final = {"Content-Type": "application/json"}


def error_response(status: int, text: str, **headers: str) -> web.Response:
    """Return the answer `{"error": text}`. The argument `Retry_After` is the header `Retry-After`."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return web.Response(status=status, body=orjson.dumps({"error": text}), headers=JSON | named)


def close_connection_after(response: web.Response) -> web.Response:
    """Return the answer, as the last one of its connection."""
    response.force_close()
    return response
