"""Alerts that nobody is to be told of for a while: `{data}/silences.json`, the end of each silence by alert id."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
import orjson

from core.errors import SmspulseError
from warehouse.durable_files import lock_folder, replace_file

_log = logging.getLogger(__name__)

_decode: Final = msgspec.json.Decoder(dict[str, float]).decode


class SilenceError(SmspulseError):
    """Silences cannot be read or kept."""


class SilenceStore:
    """The silences of a data folder. Processes see each other's changes at once; what is set is durable on return.

    Args:
        data: The data folder, which must exist to set one.
        clock: Returns the seconds since 1970.
    """

    def __init__(self, data: Path, clock: Callable[[], float] = time.time) -> None:
        self._data, self._path, self._clock = data, data / "silences.json", clock

    def active_silences(self, now: float | None = None) -> dict[str, float]:
        """Return the end of each that lasts, in seconds since 1970, by the alert's id.

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
            msg = f"{self._path} cannot be read ({error}): remove it, and set the silences anew"
            raise SilenceError(msg) from error
        moment = self._clock() if now is None else now
        return {id_: until for id_, until in sorted(found.items()) if until > moment}

    def set_silence(self, alert_id: str, seconds: float) -> float:
        """Silence an alert, whether it fires or not, and return until when; 0 seconds lift its silence.

        Raises:
            SilenceError: It cannot be kept.
        """
        until = self._clock() + seconds
        try:
            with lock_folder(self._data):
                kept = {id_: end for id_, end in self.active_silences().items() if id_ != alert_id}
                kept |= {alert_id: until} if seconds else {}
                with replace_file(self._data, self._path) as file:
                    file.write(orjson.dumps(kept))
        except OSError as error:
            msg = f"{self._path} cannot be written: {error.strerror}"
            raise SilenceError(msg) from error
        return until

    def silenced_ids(self, now: float) -> frozenset[str]:
        """Return the ids that nobody is to be told of at a time in seconds since 1970.

        None if the file cannot be read, so that nothing is missed.
        """
        try:
            return frozenset(self.active_silences(now))
        except SilenceError as error:
            _log.error("%s; meanwhile all is told", error)
            return frozenset()
