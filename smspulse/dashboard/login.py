"""The password of the page: checked, and slow to guess."""

import hmac
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from aiohttp import BasicAuth

from ingest.client_limits import Site, site_of

_log = logging.getLogger(__name__)

_FREE_GUESSES: Final = 5
"""Wrong passwords of an address before it has to wait; a person mistypes."""
_GUESS_S: Final = 10.0
"""Time after which an address has one more, up to those. Some 3 million a year."""
_MAX_ADDRESSES: Final = 4_096
"""Addresses that are remembered; with one more, that with the oldest wrong password is forgotten."""


class PasswordGuard:
    """Checks the password. Whoever guesses waits; an address with the password elsewhere does not.

    While an address waits, no password of it is looked at: else its guesses would still be answered.

    Args:
        password: What is right; empty lets everybody in.
        clock: Seconds, growing.
    """

    def __init__(self, password: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._password, self._clock = password.encode(), clock
        # The time at which an address has all its free guesses again, the one that guessed last at the end.
        self._recovered_at: OrderedDict[Site | str, float] = OrderedDict()

    def wait_s(self, address: str) -> float:
        """Return the seconds until an address may try again; 0 if it may now."""
        recovered_at = self._recovered_at.get(site_of(address) or address, 0.0)
        return max(0.0, recovered_at - self._clock() - (_FREE_GUESSES - 1) * _GUESS_S)

    def is_authorized(self, authorization: str, address: str) -> bool:
        """Return whether a header `Authorization` has the password. A wrong one counts, none does not."""
        if not self._password:
            return True
        if not authorization:
            return False
        if hmac.compare_digest(_basic_password(authorization), self._password):
            return True
        self._record_wrong_guess(address)
        return False

    def _record_wrong_guess(self, address: str) -> None:
        site, now = site_of(address) or address, self._clock()
        self._recovered_at[site] = max(now, self._recovered_at.pop(site, now)) + _GUESS_S
        if len(self._recovered_at) > _MAX_ADDRESSES:
            self._recovered_at.popitem(last=False)
        _log.warning("a wrong password for the page came from %s", address)


def _basic_password(authorization: str) -> bytes:
    try:
        password: str = BasicAuth.decode(authorization, "utf-8").password
        return password.encode()
    except ValueError:
        return b""
