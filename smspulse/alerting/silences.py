"""Silences: alerts that are not sent for a while. `{data}/silences.json` has the end of each by alert id."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
import orjson

from core.atomic_file import lock_folder, write_file_atomically
from core.errors import SmspulseError

_log = logging.getLogger(__name__)

_decode: Final = msgspec.json.Decoder(dict[str, float]).decode


class SilenceError(SmspulseError):
    """Silences cannot be read or written."""


class SilenceStore:
    """The silences of a data folder.

    Processes see each other's changes at once. A silence is durable when `set_silence` returns.

    Args:
        data: The data folder, which must exist to set one.
        clock: Returns the seconds since 1970.
    """

    def __init__(self, data: Path, clock: Callable[[], float] = time.time) -> None:
        self._data, self._path, self._clock = data, data / "silences.json", clock

    def active_silences(self, now: float | None = None) -> dict[str, float]:
        """Return the end of each active silence, in seconds since 1970, by alert id.

        Args:
            now: Seconds since 1970; the present by default.

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
        moment = self._clock() if now is None else now
        return {id_: until for id_, until in sorted(found.items()) if until > moment}

    def set_silence(self, alert_id: str, seconds: float) -> float:
        """Silence an alert, whether it fires or not; return the end of its silence. 0 seconds lift the silence.

        Raises:
            SilenceError: It cannot be written.
        """
        until = self._clock() + seconds
        try:
            # Two commands at once must not lose one of their silences.
            with lock_folder(self._data):
                kept = {id_: end for id_, end in self.active_silences().items() if id_ != alert_id}
                kept |= {alert_id: until} if seconds else {}
                write_file_atomically(self._path, orjson.dumps(kept))
        except OSError as error:
            msg = f"{self._path} cannot be written: {error.strerror}"
            raise SilenceError(msg) from error
        return until

    def silenced_ids(self, now: float) -> frozenset[str]:
        """Return the ids of alerts that are silenced at a time in seconds since 1970.

        There is none if the file cannot be read, so that no alert is missed.
        """
        try:
            return frozenset(self.active_silences(now))
        except SilenceError as error:
            _log.error("%s; until then all alerts are sent", error)
            return frozenset()
