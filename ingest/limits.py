"""Who may connect, from where, how often: addresses, connections, rates."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_SITE_BITS: Final = 64
"""One customer's part of IPv6: whoever has one address there has all of them."""


def parse_address(text: str) -> Address | None:
    """Return the address of a socket or of `X-Forwarded-For`, where some proxies add a port; None if it is none."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


class Senders:
    """Which addresses may send.

    Args:
        allowed: Networks that may; empty for every one.
        proxies: Networks whose word on whom they forward for is taken, and nobody else's.
    """

    def __init__(self, allowed: Sequence[Network], proxies: Sequence[Network]) -> None:
        self._allowed, self._proxies = allowed, proxies

    def is_proxy(self, address: Address | None) -> bool:
        """Return whether that is a trusted proxy."""
        return address is not None and any(address in network for network in self._proxies)

    def sender(self, peer: str, forwarded: Iterable[str]) -> str:
        """Return who sent a request: the peer, or the last address a trusted proxy names that is no such proxy itself.

        Args:
            peer: The other end of the connection.
            forwarded: The values of its `X-Forwarded-For`, of which each proxy appends to the right.
        """
        sender = peer
        if self._proxies:
            hops = [hop.strip() for value in forwarded for hop in value.split(",")]
            while hops and self.is_proxy(parse_address(sender)):
                sender = hops.pop()
        return sender

    def may_send(self, sender: str) -> bool:
        """Return whether the allow-list has that sender, or there is none."""
        if not self._allowed:
            return True
        address = parse_address(sender)
        return address is not None and any(address in network for network in self._allowed)


class Rate:
    """A token bucket for each source. A token is a webhook, or a byte.

    Args:
        per_s: Tokens a second in the long run; None for any number.
        burst: Tokens at once after a pause.
        clock: Seconds, growing.
    """

    def __init__(self, per_s: float | None, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s, self._burst, self._clock = per_s, burst, clock
        self._buckets: dict[str, tuple[float, float]] = {}

    def wait_s(self, source: str) -> float:
        """Take a token of the source and return 0, or return the seconds until there is one."""
        if self._per_s is None:
            return 0.0
        tokens, now = self._tokens(source, self._per_s)
        taken = tokens >= 1
        self._buckets[source] = (tokens - taken, now)
        return 0.0 if taken else (1 - tokens) / self._per_s

    def take(self, source: str, tokens: int) -> None:
        """Take that many tokens of the source. Where it has fewer, it waits until the debt is paid."""
        if self._per_s is None:
            return
        held, now = self._tokens(source, self._per_s)
        self._buckets[source] = (held - tokens, now)

    def _tokens(self, source: str, per_s: float) -> tuple[float, float]:
        """Return what the source has, and the time of it."""
        now = self._clock()
        tokens, since = self._buckets.get(source, (float(self._burst), now))
        return min(self._burst, tokens + (now - since) * per_s), now


class Connections:
    """Counts connections by address, of IPv6 by /64. Those of a trusted proxy are not counted: it has many senders.

    Args:
        per_address: How many one address may have.
        senders: Knows the proxies.
    """

    def __init__(self, per_address: int, senders: Senders) -> None:
        self._per_address, self._senders = per_address, senders
        self._open: Counter[int | Address] = Counter()

    def enter(self, peer: str) -> int | Address | None:
        """Count a connection and return what `leave` takes.

        Raises:
            OverflowError: The address has as many as it may.
        """
        address = parse_address(peer)
        if address is None or self._senders.is_proxy(address):
            return None
        site = int(address) >> _SITE_BITS if address.version == 6 else address  # noqa: PLR2004 - IPv6
        if self._open[site] >= self._per_address:
            raise OverflowError
        self._open[site] += 1
        return site

    def leave(self, site: int | Address | None) -> None:
        """Count a connection no more."""
        if site is not None:
            self._open[site] -= 1
            if not self._open[site]:
                del self._open[site]
