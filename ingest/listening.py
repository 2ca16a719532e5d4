"""Listening on an address, or on all addresses of both IPv6 and IPv4."""

import socket
from typing import Final

from aiohttp import web

BACKLOG: Final = 1_024
ASYNCIO_BACKLOG: Final = 128
"""For asyncio's own event loop: it accepts that many connections before it can refuse the first."""


async def start_listening(
    runner: web.BaseRunner,
    host: str,
    port: int,
    *,
    share_port: bool = False,
    backlog: int = BACKLOG,
) -> tuple[web.BaseSite, int]:
    """Let a server listen; return its site and port. `::` is every address, also of IPv4 if the system supports it.

    Args:
        runner: Runner of the server, set up.
        host: Name or address.
        port: Port; 0 takes a free one.
        share_port: Let other processes listen there too.
        backlog: Connections that wait in the system until they are accepted.

    Raises:
        OSError: The address is taken or not available.
    """
    if host == "::" and socket.has_dualstack_ipv6():
        # asyncio would restrict a socket of IPv6 to IPv6.
        listener = socket.create_server(
            (host, port), family=socket.AF_INET6, backlog=backlog, reuse_port=share_port, dualstack_ipv6=True
        )
        on_socket = web.SockSite(runner, listener, backlog=backlog)
        await on_socket.start()
        return on_socket, listener.getsockname()[1]
    site = web.TCPSite(runner, host, port, backlog=backlog, reuse_port=share_port or None)
    await site.start()
    return site, site.port
