"""Silences: alerts that are not sent for a while. `{data}/silences.json` has the end of each by alert id."""

import logging
import time
from pathlib import Path
from typing import Final

import msgspec
import orjson

from core.atomic_file import lock_folder, write_file_atomically
from smspulse.alerting.errors import SilenceError

_log = logging.getLogger(__name__)

_decode: Final = msgspec.json.Decoder(dict[str, float]).decode


class SilenceStore:
    """The silences of a data folder.

    Processes see each other's changes at once. A silence is durable when `set_silence` returns.

    Args:
        data: The data folder, which must exist to set one.
    """

    def __init__(self, data: Path) -> None:
        self._data, self._path = data, data / "silences.json"

    def active_silences(self, now: float) -> dict[str, float]:
        """Return the end of each silence that is active at a time, by alert id. Times are in seconds since 1970.

        Raises:
            SilenceError: The file is damaged, or cannot be read.
        """
        try:
            found = _decode(self._path.read_bytes())
        except FileNotFoundError:
            return {}
        except (msgspec.DecodeError, OSError) as error:
            msg = f"{self._path} cannot be read ({error}): remove it, and set the silences again"
            raise SilenceError(msg) from error
        return {id_: until for id_, until in sorted(found.items()) if until > now}

    def set_silence(self, alert_id: str, seconds: float) -> None:
        """Silence an alert from now on, whether it fires or not. 0 seconds lift the silence.

        Raises:
            SilenceError: It cannot be written.
        """
        now = time.time()
        try:
            # Two commands at once must not lose one of their silences.
            with lock_folder(self._data):
                kept = self.active_silences(now) | {alert_id: now + seconds}
                write_file_atomically(
                    self._path, orjson.dumps({id_: until for id_, until in kept.items() if until > now})
                )
        except OSError as error:
            msg = f"{self._path} cannot be written: {error.strerror}"
            raise SilenceError(msg) from error

    def silenced_ids(self, now: float) -> frozenset[str]:
        """Return the ids of alerts that are silenced at a time in seconds since 1970.

        There is none if the file cannot be read, so that no alert is missed.
        """
        try:
            return frozenset(self.active_silences(now))
        except SilenceError as error:
            _log.error("%s; until then all alerts are sent", error)
            return frozenset()
