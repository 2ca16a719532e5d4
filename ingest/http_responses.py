"""Plain HTTP answers that every server of smspulse gives."""

from typing import Final

import orjson
from aiohttp import web

JSON: Final = {"Content-Type": "application/json"}


def error_response(status: int, text: str, **headers: str) -> web.Response:
    """Return an answer that is `{"error": text}`; `Retry_After` is the header `Retry-After`."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return web.Response(status=status, body=orjson.dumps({"error": text}), headers=JSON | named)


def close_connection_after(response: web.Response) -> web.Response:
    """Let an answer be the last of its connection."""
    response.force_close()
    return response
