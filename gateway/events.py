"""Events of SMS gateways: a status report or an incoming message, read from a webhook."""

from typing import Final, NamedTuple

MAX_NAME_LENGTH: Final = 255
"""Characters of an address, a device's name or a type, as received. The longest in use is the mail address of a sender,
with 254 characters (RFC 3696, erratum 1690)."""
MAX_STATUS_MESSAGE_LENGTH: Final = 1_024
"""Characters of the gateway's text about a status. The documented texts have about 40."""
MAX_LINK_LENGTH: Final = 8_000
"""Characters of the link to an image: the length of a URI that every program should support (RFC 9110, 4.1)."""


class StatusReport(NamedTuple):
    """The status of one outgoing message.

    Times are milliseconds since 1970-01-01 UTC. `sent_at` is the gateway's `senttime`. It belongs to the message and is
    not the time of this status; it is null in many reports.
    """

    sms_id: int
    status_id: int
    device_id: int | None
    channel_id: int | None
    sent_at: int | None
    recipient: str | None
    status_message: str | None
    flaws: tuple[str, ...]


class IncomingMessage(NamedTuple):
    """A text or an image that a phone received.

    Times are milliseconds since 1970-01-01 UTC: `phone_received_at` is the payload's `date`, `sent_at` its
    `date_sent` (Android's convention). `content_type` is `text`, `img`, or a type of a later generation.
    """

    sms_id: int
    content_type: str
    device_id: int | None
    channel_id: int | None
    sent_at: int | None
    phone_received_at: int | None
    sender: str | None
    text: str | None
    image_url: str | None
    internal_id: int | None
    device_name: str | None
    flaws: tuple[str, ...]


Event = StatusReport | IncomingMessage
