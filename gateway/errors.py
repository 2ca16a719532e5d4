"""Errors of payloads, and their reasons."""

from typing import Final

REASON_NOT_JSON: Final = "not_json"
REASON_NOT_AN_OBJECT: Final = "not_an_object"
REASON_MISSING_FIELD: Final = "missing_field"
REASON_WRONG_TYPE: Final = "wrong_type"
REASON_OUT_OF_RANGE: Final = "out_of_range"
REASON_UNVERIFIED_SHAPE: Final = "unverified_shape"
"""An `event` payload, as one help article shows it: perhaps what the gateway's test button sends."""
REASON_UNKNOWN_SHAPE: Final = "unknown_shape"
REASON_FAULT: Final = "processing_failed"
"""Reading or processing it raised an error that nobody foresaw: a fault of smspulse, whatever the record is."""

REASONS: Final = (
    REASON_NOT_JSON,
    REASON_NOT_AN_OBJECT,
    REASON_MISSING_FIELD,
    REASON_WRONG_TYPE,
    REASON_OUT_OF_RANGE,
    REASON_UNVERIFIED_SHAPE,
    REASON_UNKNOWN_SHAPE,
    REASON_FAULT,
)


class UnreadablePayload(ValueError):  # noqa: N818 - it names what was found, and handlers read better for it
    """A webhook's body that is no known payload.

    Args:
        reason: Stable, for counting: one of the constants `REASON_*`.
        detail: For people: names the field, never its value, which may be personal.
        field: The field at fault, or None where the body as a whole is.
    """

    def __init__(self, reason: str, detail: str, field: str | None = None) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.field = field


def unforeseen_error(error: Exception) -> UnreadablePayload:
    """Return the error of a record whose reading or processing raised one that nobody foresaw, such as RecursionError.

    It names the error's type and no more: the text of an error can quote what a sender wrote.
    """
    return UnreadablePayload(REASON_FAULT, f"{type(error).__name__} while it was processed")
