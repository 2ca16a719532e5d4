"""Listening on an address, also on every one of both IPv6 and IPv4."""

import socket
import ssl
from typing import Final

from aiohttp import web

_BACKLOG: Final = 1024


async def listen(
    runner: web.BaseRunner,
    host: str,
    port: int,
    *,
    ssl_context: ssl.SSLContext | None = None,
    share_port: bool = False,
) -> tuple[web.BaseSite, int]:
    """Have a server listen; return its site and port. `::` is every address, of IPv4 too where the system allows it.

    Args:
        runner: The server's, set up.
        host: Name or address.
        port: 0 takes a free one.
        ssl_context: Of HTTPS; None for plain HTTP.
        share_port: Let other processes listen there too.

    Raises:
        OSError: The address is taken or not available.
    """
    if host == "::" and socket.has_dualstack_ipv6():
        # asyncio restricts each socket of IPv6 to IPv6.
        listener = socket.create_server(
            (host, port), family=socket.AF_INET6, backlog=_BACKLOG, reuse_port=share_port, dualstack_ipv6=True
        )
        on_socket = web.SockSite(runner, listener, ssl_context=ssl_context, backlog=_BACKLOG)
        await on_socket.start()
        return on_socket, listener.getsockname()[1]
    site = web.TCPSite(runner, host, port, ssl_context=ssl_context, backlog=_BACKLOG, reuse_port=share_port or None)
    await site.start()
    return site, site.port
