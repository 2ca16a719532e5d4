from ipaddress import ip_network

import pytest

from ingest.client_limits import (
    ClientFilter,
    HttpLimits,
    OpenConnections,
    RateLimiter,
    TooManyConnectionsError,
    parse_address,
)
from ingest.settings import IngestSettings

PROXIES = [ip_network("10.0.0.0/8"), ip_network("2001:db8:1::/48")]


def test_a_rate_lets_a_burst_pass_and_then_as_many_as_it_says() -> None:
    now = 0.0
    rate = RateLimiter(2.0, 3, clock=lambda: now)
    assert [rate.take_or_wait_s("a") for _ in range(4)] == [0, 0, 0, 0.5]
    assert rate.take_or_wait_s("b") == 0  # each source has its own
    now = 0.25
    assert rate.take_or_wait_s("a") == pytest.approx(0.25)
    now = 0.5
    assert [rate.take_or_wait_s("a"), rate.take_or_wait_s("a")] == [0, 0.5]
    now = 1000
    assert [rate.take_or_wait_s("a") for _ in range(4)] == [0, 0, 0, 0.5]
    served = 0
    for _ in range(10_000):
        now += 0.01
        served += not rate.take_or_wait_s("a")
    assert served == pytest.approx(200, abs=1)  # refused tries cost nothing


def test_who_takes_more_than_there_is_waits_until_it_is_paid() -> None:
    now = 0.0
    rate = RateLimiter(100.0, 1_000, clock=lambda: now)
    rate.take_tokens("a", 2_999)
    assert rate.take_or_wait_s("a") == pytest.approx(20.0)
    assert rate.take_or_wait_s("b") == 0
    now = 19.9
    assert rate.take_or_wait_s("a") == pytest.approx(0.1)
    now = 20.1
    assert rate.take_or_wait_s("a") == 0
    now = 1_000.0
    rate.take_tokens("a", 999)  # a pause gives no more than a burst
    assert [rate.take_or_wait_s("a"), rate.take_or_wait_s("a")] == pytest.approx([0, 0.01])


def test_in_the_long_run_nobody_sends_more_bytes_than_the_rate() -> None:
    now, sent, settings = 0.0, 0, IngestSettings()
    rate = RateLimiter(settings.rate_bytes_per_s, settings.rate_burst_bytes, clock=lambda: now)
    # 309 bodies of 250 kB at once filled 169 MB of a disk.
    for _ in range(309):
        if not rate.take_or_wait_s("flood"):
            rate.take_tokens("flood", 250_000)
    assert rate.take_or_wait_s("flood") > 0
    while now < 600:
        if not rate.take_or_wait_s("a"):
            rate.take_tokens("a", 250_000)
            sent += 250_000
        now += 0.01  # 25 MB/s are offered
    assert sent == pytest.approx(33_554_432 + 600 * 8_000_000, rel=0.001)


def test_without_a_rate_nobody_waits() -> None:
    rate = RateLimiter(None, 1)
    assert not any(rate.take_or_wait_s("a") for _ in range(100))


@pytest.mark.parametrize(
    ("peer", "forwarded", "sender"),
    [
        ("198.51.100.1", [], "198.51.100.1"),
        ("198.51.100.1", ["192.0.2.1"], "198.51.100.1"),  # nobody's word but a proxy's
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["192.0.2.1"], "192.0.2.1"),
        ("10.0.0.1", ["192.0.2.66, 192.0.2.1"], "192.0.2.1"),  # what stands left of it is the sender's own claim
        ("10.0.0.1", ["192.0.2.66", "192.0.2.1,10.9.9.9"], "192.0.2.1"),
        ("10.0.0.1", ["192.0.2.66", "unknown"], "unknown"),
        ("10.0.0.1", ["192.0.2.1", ""], ""),
        ("10.0.0.1", ["10.0.0.2"], "10.0.0.2"),
        ("2001:db8:1::1", ["2001:db8:2::2"], "2001:db8:2::2"),
        ("::ffff:10.0.0.1", ["192.0.2.1:4711"], "192.0.2.1:4711"),
    ],
)
def test_only_a_trusted_proxy_is_believed_and_only_its_own_word(peer: str, forwarded: list[str], sender: str) -> None:
    assert ClientFilter([], PROXIES).find_sender(peer, forwarded) == sender
    assert ClientFilter([], []).find_sender(peer, forwarded) == peer


@pytest.mark.parametrize("sender", ["192.0.2.1", "192.0.2.1:80", "::ffff:192.0.2.1", "2001:db8::7", "[2001:db8::7]:80"])
def test_the_allow_list_knows_an_address_in_each_spelling(sender: str) -> None:
    assert ClientFilter([ip_network("192.0.2.0/24"), ip_network("2001:db8::/32")], []).may_send(sender)
    assert not ClientFilter([ip_network("198.51.100.0/24"), ip_network("2001:db9::/32")], []).may_send(sender)


@pytest.mark.parametrize("sender", ["", "unknown", "192.0.2", "192.0.2.1.5", "_hidden", "1" * 5000])
def test_who_has_no_address_is_on_no_list(sender: str) -> None:
    assert parse_address(sender) is None
    assert not ClientFilter([ip_network("0.0.0.0/0"), ip_network("::/0")], []).may_send(sender)
    assert ClientFilter([], []).may_send(sender)


class Open:
    """A connection."""

    def __init__(self, idle_since: float | None = None) -> None:
        self.since, self.is_closed = idle_since, False

    def idle_since(self) -> float | None:
        return self.since

    def force_close(self) -> None:
        self.is_closed = True


def test_connections_are_counted_by_address_and_of_ipv6_by_site() -> None:
    connections = OpenConnections(HttpLimits(per_address=2, total=1_000, proxies=PROXIES))
    counted = [Open() for _ in range(5)]
    for each, peer in zip(counted, ("192.0.2.1", "192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"), strict=True):
        connections.add_connection(each, peer)
    for full in ("192.0.2.1", "::ffff:192.0.2.1", "2001:db8::3"):
        with pytest.raises(TooManyConnectionsError, match="one address has 2"):
            connections.add_connection(Open(), full)
    connections.add_connection(other := Open(), "2001:db8:0:1::1")
    for each in (*counted, other, Open()):
        connections.remove_connection(each)
    assert len(connections._sites) == 0
    for _ in range(100):
        connections.add_connection(Open(), "10.0.0.1")
    assert len(connections._sites) == 100


def test_the_connection_that_is_idle_the_longest_gives_way_first_of_the_same_address() -> None:
    connections = OpenConnections(HttpLimits(per_address=2, total=4))
    first, second, elsewhere, used = Open(20), Open(10), Open(5), Open()
    for each, peer in ((first, "192.0.2.1"), (second, "192.0.2.1"), (elsewhere, "192.0.2.2"), (used, "192.0.2.2")):
        connections.add_connection(each, peer)
    connections.add_connection(Open(), "192.0.2.1")
    assert [each.is_closed for each in (first, second, elsewhere, used)] == [False, True, False, False]
    connections.add_connection(Open(), "192.0.2.3")  # nobody's address is full, but all together
    assert [each.is_closed for each in (first, second, elsewhere, used)] == [False, True, True, False]
    connections.add_connection(Open(), "192.0.2.4")
    assert first.is_closed
    with pytest.raises(TooManyConnectionsError, match="there are 4"):
        connections.add_connection(Open(), "192.0.2.5")
    assert len(connections._sites) == 4
