"""Errors of payloads."""


class UnreadablePayload(ValueError):  # noqa: N818 - it names what was found, and handlers read better for it
    """A webhook's body that is no known payload.

    Args:
        reason: Stable, for counting: one of the constants `REASON_*` of `gateway.payloads`.
        detail: For people: names the field, never its value, which may be personal.
        field: The field at fault, or None where the body as a whole is.
    """

    def __init__(self, reason: str, detail: str, field: str | None = None) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.field = field
