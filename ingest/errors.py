"""Errors of the receiver."""

from pathlib import Path
from typing import Final

from core.errors import SmspulseError

PORT_TAKEN: Final = "the port is taken"


class CannotListenError(SmspulseError):
    """Ingest cannot listen on the address."""

    def __init__(self, host: str, port: int, why: str) -> None:
        super().__init__(
            f"ingest cannot listen on {host}, port {port}: {why}; "
            "choose another with SMSPULSE_INGEST_HOST and SMSPULSE_INGEST_PORT"
        )
        # A port becomes free when its owner ends, so a later start can succeed.
        self.is_permanent = why != PORT_TAKEN


class SourcesError(SmspulseError):
    """The sources cannot be read or changed."""

    is_permanent = True

    def __init__(self, place: Path | str, problem: str) -> None:
        super().__init__(f"{place}: {problem}")


class SourceExistsError(SourcesError):
    """A source of that name exists already."""


class NotStoredError(SmspulseError):
    """A webhook is not durable, so it must not be answered 2xx. The text names no address: senders read it."""


class SpoolError(SmspulseError):
    """The spool cannot be used."""

    def __init__(self, folder: Path, why: str) -> None:
        super().__init__(f"the spool in {folder} cannot be used: {why}; fix that, or move the folder away and keep it")


class SpoolFullError(NotStoredError):
    """The spool accepts no more webhooks. The text names no path: senders read it."""
