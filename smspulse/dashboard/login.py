"""Check of the page's password, with a limit on guesses."""

import hmac
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from core.basic_auth import basic_auth_password
from ingest.client_limits import Site, site_of

_log = logging.getLogger(__name__)

# Wrong passwords of an address before it must wait, because people mistype.
_FREE_GUESSES: Final = 5
# Seconds until an address has one more guess, up to the free ones. That is some 3 million guesses a year.
_GUESS_S: Final = 10.0
# Addresses that are kept. One more replaces the address with the oldest wrong password.
_MAX_ADDRESSES: Final = 4_096


class PasswordGuard:
    """Checks the password. An address that guesses must wait; other addresses need not.

    While an address waits, its passwords are not checked. Otherwise its guesses would still be answered.

    Args:
        password: The password; an empty one authorizes everybody.
        clock: Returns monotonic seconds.
    """

    def __init__(self, password: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._password, self._clock = password.encode(), clock
        # The time at which an address has all its free guesses again. The address that guessed last is at the end.
        self._recovered_at: OrderedDict[Site | str, float] = OrderedDict()

    def wait_s(self, address: str) -> float:
        """Return the seconds until an address may try again; 0 if it may now."""
        recovered_at = self._recovered_at.get(site_of(address) or address, 0.0)
        return max(0.0, recovered_at - self._clock() - (_FREE_GUESSES - 1) * _GUESS_S)

    def is_authorized(self, authorization: str, address: str) -> bool:
        """Return whether a header `Authorization` has the password. A wrong one counts as a guess."""
        if not self._password:
            return True
        if not authorization:
            return False
        if hmac.compare_digest(basic_auth_password(authorization).encode(), self._password):
            return True
        self._record_wrong_guess(address)
        return False

    def _record_wrong_guess(self, address: str) -> None:
        # An IPv6 client has a whole network of addresses, so its network counts.
        site, now = site_of(address) or address, self._clock()
        # Removed and added again, the address is the newest.
        self._recovered_at[site] = max(now, self._recovered_at.pop(site, now)) + _GUESS_S
        if len(self._recovered_at) > _MAX_ADDRESSES:
            self._recovered_at.popitem(last=False)
        _log.warning("a wrong password for the page came from %s", address)
