"""Errors of alerting."""

from core.errors import SmspulseError


class AlertSettingsError(SmspulseError):
    """A setting of alerts cannot be used. The text names it and has the valid format."""


class NoReceiverError(SmspulseError):
    """No receiver is set."""


class ReceiverError(SmspulseError):
    """A receiver did not accept an alert. The text names the receiver and the reason."""

    def __init__(self, text: str, retry_after_s: float = 0.0) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s


class ReceiverGoneError(ReceiverError):
    """The receiver answered 410: it refuses all further alerts."""


class DispatcherError(SmspulseError):
    """Kafka does not serve the topic of alerts. Unsent alerts are sent after the next start."""


class SilenceError(SmspulseError):
    """Silences cannot be read or written."""


class NoSuchAlertError(SmspulseError):
    """The warehouse has no alert of that id."""


class PictureError(SmspulseError):
    """A picture could not be drawn."""
