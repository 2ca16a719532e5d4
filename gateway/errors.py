"""Errors of payloads, and their reasons."""

from typing import Final

REASON_NOT_JSON: Final = "not_json"
REASON_NOT_AN_OBJECT: Final = "not_an_object"
REASON_MISSING_FIELD: Final = "missing_field"
REASON_WRONG_TYPE: Final = "wrong_type"
REASON_OUT_OF_RANGE: Final = "out_of_range"
REASON_UNVERIFIED_SHAPE: Final = "unverified_shape"
"""An `event` payload, as one help article shows it. The gateway's test button may send it."""
REASON_UNKNOWN_SHAPE: Final = "unknown_shape"
REASON_FAULT: Final = "processing_failed"
"""Reading or processing raised an unexpected error. This is a fault of smspulse, whatever the record is."""

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


class UnreadablePayload(ValueError):  # noqa: N818 - a class of payloads, reported as a result
    """A webhook's body that is not a known payload.

    Args:
        reason: Stable reason for counting, one of the constants `REASON_*`.
        detail: Explanation. It names the field, never its value, which may be personal.
        field: The field at fault, or None if the body as a whole is.
    """

    def __init__(self, reason: str, detail: str, field: str | None = None) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.field = field


def unforeseen_error(error: Exception) -> UnreadablePayload:
    """Return the error for a record whose reading or processing raised an unexpected one, such as RecursionError.

    It names only the type: the text of an error can quote input of a sender.
    """
    return UnreadablePayload(REASON_FAULT, f"{type(error).__name__} while it was processed")
