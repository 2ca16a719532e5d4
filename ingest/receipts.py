"""Webhooks to store, and receipts: the ids of stored webhooks that are answered 202, for the reconciliation.

    {data}/accepted/YYYY-MM-DDTHH/{source}        16 bytes per ingest_id, by the hour (UTC) of the receipt

An id is appended before the answer, so it survives a kill of the process: each answer 202 has its receipt. A receipt
can be missing for a stored webhook without an answer, if ingest is killed between the two; after an error of the disk,
which is logged; and after a power failure, because receipts are not fsynced. So a stored webhook can lack a receipt,
but a webhook with a receipt was stored and must be found.
"""

import asyncio
import logging
import os
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from math import inf
from pathlib import Path
from typing import Final, NamedTuple

from core.records import HEADER_INGEST_ID, HEADER_SOURCE, WebhookRecord

log = logging.getLogger(__name__)

NEVER_LATE: Final = inf
"""Time of arrival of forwarded webhooks. They are durable, so their acknowledgement is never late."""
ID_BYTES: Final = 16
_FOLDER: Final = "accepted"
_HOUR_MS: Final = 3_600_000
_HOUR: Final = "%Y-%m-%dT%H"
# A day more than the retention of sms.raw in Kafka.
_KEPT_MS: Final = 8 * 24 * _HOUR_MS


class PendingWebhook(NamedTuple):
    """A webhook to store, the time of its arrival on the loop's clock, and the future of its acknowledgement."""

    webhook: WebhookRecord
    queued_at: float
    stored: asyncio.Future[None]

    def fail_with(self, error: Exception) -> None:
        """Report that it is not stored, if a request still waits."""
        if not self.stored.done():
            self.stored.set_exception(error)
            # Marks the exception as retrieved, so that asyncio does not log it if no request waits any more.
            self.stored.exception()


class ReceiptLog:
    """Writer of receipts. Several processes can share a data folder: a write appends whole receipts."""

    def __init__(self, data: Path) -> None:
        self._folder = data / _FOLDER
        self._hour = -1
        self._files: dict[bytes, int] = {}
        self._has_logged_error = False

    def confirm_webhooks(self, stored: Sequence[PendingWebhook]) -> None:
        """Write the receipts of stored webhooks, and report to their requests that they are stored.

        A webhook whose request waits no more gets no receipt, and one that was forwarded has one.
        """
        waiting = [pending for pending in stored if not pending.stored.done()]
        self.append_receipts([pending.webhook for pending in waiting if pending.queued_at < NEVER_LATE])
        for pending in waiting:
            pending.stored.set_result(None)

    def append_receipts(self, webhooks: Sequence[WebhookRecord]) -> None:
        """Append the receipts of stored webhooks, those of a source by one write. Errors are logged and not raised."""
        ids = defaultdict[tuple[int, bytes], bytearray](bytearray)
        for webhook in webhooks:
            headers = dict(webhook.headers)
            ingest_id = headers[HEADER_INGEST_ID].replace(b"-", b"").decode()
            ids[webhook.received_at // _HOUR_MS, headers[HEADER_SOURCE]] += bytes.fromhex(ingest_id)
        try:
            for (hour, source), of_source in ids.items():
                os.write(self._open_file(hour, source), of_source)
            self._has_logged_error = False
        except OSError as error:
            if not self._has_logged_error:
                log.error("receipts cannot be written to %s (%s): reconciliation misses them", self._folder, error)
            self._has_logged_error = True

    def _open_file(self, hour: int, source: bytes) -> int:
        if hour != self._hour:
            self._rotate_hour(hour)
        file = self._files.get(source)
        if file is None:
            path = self._folder / _hour_name(hour) / source.decode()
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            file = self._files[source] = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        return file

    def _rotate_hour(self, hour: int) -> None:
        self.close()
        self._hour = hour
        oldest = _hour_name(hour - _KEPT_MS // _HOUR_MS)
        for folder in self._folder.glob("*T*"):
            if folder.name < oldest:
                shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """Close its files."""
        for file in self._files.values():
            os.close(file)
        self._files.clear()


def read_receipts(data: Path, since: datetime) -> Iterator[tuple[str, datetime, bytes]]:
    """Yield source, hour and the joined ids, of the hours from `since` on.

    Raises:
        PermissionError: This user may not read them.
    """
    for folder in sorted((data / _FOLDER).glob("*T*")):
        hour = datetime.strptime(folder.name, _HOUR).replace(tzinfo=UTC)
        if hour < since.replace(minute=0, second=0, microsecond=0):
            continue
        # A glob would skip a folder without permission.
        for path in sorted(folder.iterdir()):
            found = path.read_bytes()
            # The last id can be incomplete, while it is written.
            yield path.name, hour, found[: len(found) // ID_BYTES * ID_BYTES]


def _hour_name(hour: int) -> str:
    return datetime.fromtimestamp(hour * _HOUR_MS / 1000, UTC).strftime(_HOUR)
