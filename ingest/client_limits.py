"""Limits of clients: allowed addresses, open connections, rates, and results that requests share."""

import asyncio
import resource
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ingest.http_connection import HttpConnection

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Site = Address | int
"""Identity of one client for limits: an address of IPv4, or the number of a /64 of IPv6."""

# Bits of an address within a /64, the network of one IPv6 customer, who has all addresses in it.
_SITE_BITS: Final = 64


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Limits of an HTTP server. The defaults are those of every server of smspulse.

    Args:
        header_timeout_s: Seconds for the TLS handshake, and as many for the headers of a first request.
        idle_timeout_s: Seconds from an answer to the headers of the next request.
        per_address: Connections of one address; in IPv6, of one /64.
        total: Connections of all addresses.
        proxies: Networks of proxies. Their connections count only in the total.
        advice: Remedy in the log line about the limits of connections.
    """

    header_timeout_s: float = 10.0
    idle_timeout_s: float = 135.0
    per_address: int = 256
    total: int = 2_048
    proxies: Sequence[Network] = ()
    advice: str = "if they are legitimate clients, put a proxy in front"


def parse_address(text: str) -> Address | None:
    """Return the address of a socket or of `X-Forwarded-For`, where some proxies add a port; None if it is invalid."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


class ClientFilter:
    """Filter of addresses that may send.

    Args:
        allowed: Allowed networks; empty allows all.
        proxies: Networks of trusted proxies. `X-Forwarded-For` of other clients is ignored.
    """

    def __init__(self, allowed: Sequence[Network], proxies: Sequence[Network]) -> None:
        self._allowed, self._proxies = allowed, proxies

    def is_proxy(self, peer: str) -> bool:
        """Return whether an address belongs to a trusted proxy."""
        return _is_in_networks(peer, self._proxies)

    def find_sender(self, peer: str, forwarded: Iterable[str]) -> str:
        """Return the sender of a request: the peer, or the last address named by a trusted proxy that is not a proxy.

        Args:
            peer: Address of the other end of the connection.
            forwarded: The values of `X-Forwarded-For`. Each proxy appends to the right.
        """
        sender = peer
        if self._proxies:
            hops = [hop.strip() for value in forwarded for hop in value.split(",")]
            while hops and self.is_proxy(sender):
                sender = hops.pop()
        return sender

    def may_send(self, sender: str) -> bool:
        """Return whether the allow-list has that sender, or is empty."""
        return not self._allowed or _is_in_networks(sender, self._allowed)


def _is_in_networks(text: str, networks: Sequence[Network]) -> bool:
    address = parse_address(text)
    return address is not None and any(address in network for network in networks)


# A shorter wait is a rounding error of times.
_ROUNDING_S: Final = 1e-9


class RateLimiter:
    """A token bucket for each source. A token is a webhook or a byte.

    Args:
        per_s: Sustained tokens per second; None for no limit.
        burst: Tokens at once after a pause.
        clock: Monotonic clock in seconds.
    """

    def __init__(self, per_s: float | None, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        # Without a limit, tokens take no time.
        self._token_s = 0.0 if per_s is None else 1 / per_s
        self._burst_s = burst * self._token_s
        self._clock = clock
        # The whole state of a bucket is the time when it is full again if no more tokens are taken (as in GCRA).
        self._full_at: dict[str, float] = {}

    def take_or_wait_s(self, source: str) -> float:
        """Take a token of the source and return 0, or return the seconds until one is available."""
        now = self._clock()
        full_at = max(self._full_at.get(source, 0.0), now) + self._token_s
        wait = full_at - now - self._burst_s
        if wait > _ROUNDING_S:
            return wait
        self._full_at[source] = full_at
        return 0.0

    def take_tokens(self, source: str, tokens: int) -> None:
        """Take that many tokens of the source. If it has fewer, its next webhooks wait for the difference."""
        self._full_at[source] = max(self._full_at.get(source, 0.0), self._clock()) + tokens * self._token_s


class TooManyConnectionsError(Exception):
    """A connection exceeds a limit. The text is `there are 2048 connections`, or `one address has …`."""


def site_of(peer: str) -> Site | None:
    """Return the identity of a client for limits: an address, or a /64 of IPv6; None for an invalid address."""
    address = parse_address(peer)
    if not isinstance(address, IPv6Address):
        return address
    return int(address) >> _SITE_BITS


class OpenConnections:
    """The open connections of a server: by address (in IPv6 by /64), and in total.

    At a limit, a new connection replaces the one that has been idle the longest. So clients that keep connections open
    do not block others behind the same NAT, and in effect only connections in use count. Those of a trusted proxy
    count only in the total, because it has many senders.

    Args:
        limits: Limits of connections. That of all is reduced to half of the files that the process may open.
    """

    def __init__(self, limits: HttpLimits) -> None:
        self._per_address, self._client_filter = limits.per_address, ClientFilter((), limits.proxies)
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._total = limits.total if files == resource.RLIM_INFINITY else max(1, min(limits.total, files // 2))
        # The site of trusted proxies is None.
        self._sites: dict[HttpConnection, Site | None] = {}
        self._by_site: defaultdict[Site | None, set[HttpConnection]] = defaultdict(set)

    def add_connection(self, connection: "HttpConnection", peer: str) -> None:
        """Count a connection.

        Raises:
            TooManyConnectionsError: The limit of its address or of all is reached, and no connection is idle.
        """
        site = None if self._client_filter.is_proxy(peer) else site_of(peer)
        if site is not None and len(self._by_site.get(site, ())) >= self._per_address:
            self._close_longest_idle(self._by_site[site], "one address has", self._per_address)
        if len(self._sites) >= self._total:
            self._close_longest_idle(self._sites, "there are", self._total)
        self._sites[connection] = site
        self._by_site[site].add(connection)

    def remove_connection(self, connection: "HttpConnection") -> None:
        """Stop counting a connection, if it was counted."""
        if connection in self._sites:
            site = self._sites.pop(connection)
            self._by_site[site].remove(connection)
            if not self._by_site[site]:
                del self._by_site[site]

    def _close_longest_idle(self, connections: "Iterable[HttpConnection]", whose: str, limit: int) -> None:
        idle = {each: since for each in connections if (since := each.idle_since()) is not None}
        if not idle:
            msg = f"{whose} {limit} connections"
            raise TooManyConnectionsError(msg)
        longest = min(idle, key=idle.__getitem__)
        self.remove_connection(longest)
        # In favour of the new one.
        longest.force_close()


class PieceQueue:
    """Connections with a piece of a chunked body to parse. Few are parsed in one iteration of the event loop."""

    # A piece takes up to 1 ms: 170 chunks of one byte at about 5 µs each.
    _PER_ITERATION: Final = 8

    def __init__(self) -> None:
        self._waiting: deque[HttpConnection] = deque()

    def add_connection(self, connection: "HttpConnection") -> None:
        """Add a connection, which continues in its turn, never at once."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._continue_next)
        self._waiting.append(connection)

    def _continue_next(self) -> None:
        connections = [self._waiting.popleft() for _ in range(min(self._PER_ITERATION, len(self._waiting)))]
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._continue_next)
        for connection in connections:
            connection.continue_parsing()


# Computing takes at most one part in this many of the time.
_SHARE: Final = 5


class SharedResult:
    """Computes a result for all requests before its start, in the thread of the event loop.

    The first request after a pause is answered at once. A result is never older than its request.

    Args:
        compute: Returns the result. All waiting requests get its exception.
    """

    def __init__(self, compute: Callable[[], bytes]) -> None:
        self._compute = compute
        self._next: asyncio.Task[bytes] | None = None
        self._not_before = 0.0

    async def get(self) -> bytes:
        """Return a result that is computed after this call."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_task(self._compute_next())
        # Cancellation of one request must not cancel the result of the others.
        return await asyncio.shield(self._next)

    async def _compute_next(self) -> bytes:
        await asyncio.sleep(max(0.0, self._not_before - time.monotonic()))
        # Later requests need a new result.
        self._next = None
        begun = time.monotonic()
        try:
            return self._compute()
        finally:
            ended = time.monotonic()
            self._not_before = ended + (ended - begun) * (_SHARE - 1)
