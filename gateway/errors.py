"""Errors of payloads, and their reasons."""

from enum import StrEnum


class Reason(StrEnum):
    """Stable reasons for counting."""

    NOT_JSON = "not_json"
    NOT_AN_OBJECT = "not_an_object"
    MISSING_FIELD = "missing_field"
    WRONG_TYPE = "wrong_type"
    OUT_OF_RANGE = "out_of_range"
    UNVERIFIED_SHAPE = "unverified_shape"
    """An `event` payload, as one help article shows it. The gateway's test button may send it."""
    UNKNOWN_SHAPE = "unknown_shape"
    FAULT = "processing_failed"
    """Reading or processing raised an unexpected error. This is a fault of smspulse, whatever the record is."""


class UnreadablePayload(ValueError):  # noqa: N818 - a class of payloads, reported as a result
    """A webhook's body that is not a known payload.

    Args:
        reason: Stable reason for counting, a `Reason` for a body.
        detail: Explanation. It names the field, never its value, which may be personal.
        field: The field at fault, or None if the body as a whole is.
    """

    def __init__(self, reason: str, detail: str, field: str | None = None) -> None:
        super().__init__(f"{reason}: {detail}")
        # A plain text, also of a `Reason`: it becomes a value in Arrow and a header in Kafka.
        self.reason = str(reason)
        self.detail = detail
        self.field = field


def unforeseen_error(error: Exception) -> UnreadablePayload:
    """Return the error for a record whose reading or processing raised an unexpected one, such as RecursionError.

    It names only the type: the text of an error can quote input of a sender.
    """
    return UnreadablePayload(Reason.FAULT, f"{type(error).__name__} while it was processed")
