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
        self.host = host
        self.port = port
        # A port becomes free when its owner ends, so a later start can succeed.
        self.is_permanent = why != PORT_TAKEN


class KafkaFilesError(SmspulseError):
    """A PEM file of the TLS settings cannot be read."""

    is_permanent = True

    def __init__(self, why: str) -> None:
        super().__init__(
            f"a TLS file for Kafka cannot be read: {why}; see SMSPULSE_KAFKA_SSL_CAFILE, _CERTFILE and _KEYFILE"
        )


class CertificateError(SmspulseError):
    """The certificate for HTTPS or its key cannot be used."""

    is_permanent = True

    def __init__(self, cert: Path, key: Path | None, why: str) -> None:
        files = f"{cert} with the key {key}" if key else f"{cert}, which must contain its key too,"
        super().__init__(f"the certificate {files} cannot be used: {why}; see SMSPULSE_INGEST_TLS_CERT and _TLS_KEY")


class SourcesError(SmspulseError):
    """The sources cannot be read or changed."""

    is_permanent = True

    def __init__(self, place: Path | str, problem: str) -> None:
        super().__init__(f"{place}: {problem}")


class SourceExistsError(SourcesError):
    """A source of that name exists already."""

    def __init__(self, place: Path, name: str) -> None:
        super().__init__(place, f"source {name!r} exists already: choose another name")


class NotStoredError(SmspulseError):
    """A webhook is not durable, so it must not be answered 2xx. The text names no address: senders read it."""


class SpoolError(SmspulseError):
    """The spool cannot be used."""

    def __init__(self, folder: Path, why: str) -> None:
        super().__init__(f"the spool in {folder} cannot be used: {why}; fix that, or move the folder away and keep it")


class SpoolFullError(NotStoredError):
    """The spool accepts no more webhooks. The text names no path: senders read it."""
