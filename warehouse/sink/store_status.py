"""Whether the data folder or bucket takes data, and how long the sink waits before the next attempt."""

import logging
from typing import Final

from core.stop_request import StopRequest
from warehouse import metrics
from warehouse.sink.parquet_files import LandingStore

_log = logging.getLogger(__name__)

_MAX_RETRY_S: Final = 10.0


class StoreStatus:
    """State of a store. Logs when it stops taking data and when it takes data again.

    Args:
        store: The data folder or bucket.
        first_retry_s: Seconds before the first attempt after a failure. The pause doubles up to 10 seconds.
        stop: Ends waiting.
    """

    def __init__(self, store: LandingStore, first_retry_s: float, stop: StopRequest) -> None:
        self.store, self._first_retry_s, self._stop = store, first_retry_s, stop
        self.retry_s = 0.0
        """Seconds until the next attempt; 0 while the store takes data."""

    def handle_failure(self, error: OSError) -> None:
        """Record a failure, and lengthen the pause."""
        if not self.retry_s:
            _log.error(
                "cannot write to %s (%s): landing waits and goes on when it can; nothing is lost while Kafka keeps it",
                *(self.store, error.strerror or error),
            )
        self.retry_s = min(max(self.retry_s * 2, self._first_retry_s), _MAX_RETRY_S)
        metrics.BLOCKED.set(1)

    def wait_after_failure(self, error: OSError) -> bool:
        """Record a failure, and wait for the next attempt; return whether a stop is requested."""
        self.handle_failure(error)
        return self._stop.wait(self.retry_s)

    def probe(self) -> bool:
        """Write a probe; return whether the store takes data.

        There may be nothing to land that would show that the store has recovered.
        """
        try:
            self.store.probe_write()
        except OSError as error:
            self.handle_failure(error)
            return False
        _log.warning("%s takes data again", self.store)
        self.retry_s = 0.0
        metrics.BLOCKED.set(0)
        return True

    def wait_until_writable(self) -> None:
        """Prepare the store, and return once it takes data or a stop is requested."""
        while not self._stop.is_set():
            try:
                deleted = self.store.prepare_store()
                self.store.probe_write()
            except OSError as error:
                self.wait_after_failure(error)
            else:
                if deleted:
                    _log.info("deleted %d unfinished files of landers that were killed", deleted)
                if self.retry_s:
                    self.probe()
                return
