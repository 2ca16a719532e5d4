"""Status codes of outgoing messages, and the outcome and rank of each.

Source: smsgateway24's webhook documentation (delivery status webhook). The documented order of the open stages is
1, 3, 2, then 6: the ids are historical. The list of failures is open-ended ("other, less frequent errors"). So an id
that is not in the table is kept and counted, and has no effect on a message until a setting gives its meaning.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from core.errors import SettingError


class Outcome(StrEnum):
    """Outcome of a message by its reports."""

    PENDING = "pending"
    QUEUED = "queued"
    ACCEPTED = "accepted"
    SENT = "sent"
    DELIVERED = "delivered"
    UNDELIVERED = "undelivered"
    NOT_SENT = "not_sent"
    NOT_PERMITTED = "not_permitted"
    EXPIRED = "expired"
    UNKNOWN = "unknown"
    """Open, and no report so far had an id in the table."""
    INCOMING = "incoming"
    """Status 5: an incoming message, which counts in no rate."""


FAILURES: Final = frozenset({Outcome.UNDELIVERED, Outcome.NOT_SENT, Outcome.NOT_PERMITTED})
"""Outcomes that a gateway reports as a failure. `expired` is not one of them: it is the absence of a report."""

ENDS: Final = FAILURES | {Outcome.DELIVERED, Outcome.EXPIRED}
"""Outcomes after which a message is no longer open."""


class Retry(StrEnum):
    """Whether to send a message of a status again."""

    NO = "no"
    YES = "yes"
    AFTER_FIX = "after_fix"
    """Once its cause is fixed."""


@dataclass(frozen=True, slots=True)
class StatusCode:
    """One status id.

    Args:
        id: Id that the gateway sends.
        name: Short English name.
        rank: Place in the documented order, from 0. All ends share the last place. None: it is no stage of a message.
        outcome: Outcome of a message whose decisive report has this status.
        failure_class: Class of the failure; None for other statuses.
        likely_cause: What the status says, or why a message stays at it or failed with it.
        what_to_do: What a person does about it.
        retry: Whether to send the message again.
    """

    id: int
    name: str
    rank: int | None
    outcome: Outcome
    failure_class: str | None = None
    likely_cause: str = ""
    what_to_do: str = ""
    retry: Retry = Retry.NO

    @property
    def is_end(self) -> bool:
        """Whether a report of this status ends the message."""
        return self.outcome in ENDS

    @property
    def is_failure(self) -> bool:
        """Whether a report of this status is a failure."""
        return self.outcome in FAILURES


PENDING: Final = 1
ACCEPTED: Final = 2
QUEUED: Final = 3
INCOMING: Final = 5
SENT: Final = 6
DELIVERED: Final = 7

END_RANK: Final = 4

# Causes: Android reports 9 to 12 to the app (`SmsManager`, RESULT_ERROR_GENERIC_FAILURE, NO_SERVICE, NULL_PDU,
# RADIO_OFF), and refuses 100 and 101 itself. The gateway's documentation says that a message with 9 can be sent again.
STATUSES: Final[Mapping[int, StatusCode]] = MappingProxyType(
    {
        status.id: status
        for status in (
            StatusCode(
                PENDING, "pending", 0, Outcome.PENDING,
                likely_cause="The gateway has the message, and no phone has taken it yet.",
                what_to_do="Wait. If it stays so: check that the phone is online and its app runs.",
            ),
            StatusCode(
                QUEUED, "queued for sending", 1, Outcome.QUEUED,
                likely_cause="The message waits for its turn at the gateway.",
                what_to_do="Wait. If it stays so: check that the phone is online, and its limits of messages.",
            ),
            StatusCode(
                ACCEPTED, "taken by the phone", 2, Outcome.ACCEPTED,
                likely_cause="The phone has the message and has not sent it yet.",
                what_to_do="Wait. If it stays so: open the app on the phone, and exempt it from battery saving.",
            ),
            StatusCode(
                SENT, "sent by the phone", 3, Outcome.SENT,
                likely_cause="The operator has the message. Some networks never report a delivery.",
                what_to_do="Wait. Read `observable_share` to see whether the network reports deliveries.",
            ),
            StatusCode(
                DELIVERED, "delivered", END_RANK, Outcome.DELIVERED,
                likely_cause="The recipient's phone has confirmed the message.",
                what_to_do="Nothing.",
            ),
            StatusCode(
                8, "not delivered", END_RANK, Outcome.UNDELIVERED, "undelivered",
                likely_cause="The network or the recipient: a wrong or blocked number, or a phone that was off.",
                what_to_do="Check the number, and `delivery_by_prefix` for a country or carrier that fails.",
                retry=Retry.AFTER_FIX,
            ),
            StatusCode(
                9, "not sent: generic failure", END_RANK, Outcome.NOT_SENT, "generic",
                likely_cause="No credit, or a limit of the SIM card's contract.",
                what_to_do="Send it again. If it fails again: check the credit and the limits of the SIM card.",
                retry=Retry.YES,
            ),
            StatusCode(
                10, "not sent: no service", END_RANK, Outcome.NOT_SENT, "no_service",
                likely_cause="No signal, or a blocked SIM card.",
                what_to_do="Check the phone's signal, and that the SIM card can make a call.",
                retry=Retry.AFTER_FIX,
            ),
            StatusCode(
                11, "not sent: null PDU", END_RANK, Outcome.NOT_SENT, "null_pdu",
                likely_cause="The app or the phone's firmware could not encode the message.",
                what_to_do="Restart the phone. If it fails again: update the app, and look at the text of the message.",
                retry=Retry.AFTER_FIX,
            ),
            StatusCode(
                12, "not sent: radio off", END_RANK, Outcome.NOT_SENT, "radio_off",
                likely_cause="Flight mode, or the phone was restarting.",
                what_to_do="Switch flight mode off, and send it again.",
                retry=Retry.YES,
            ),
            StatusCode(
                100, "not sent: not allowed", END_RANK, Outcome.NOT_PERMITTED, "not_permitted",
                likely_cause="The app lacks the permission to send SMS, or the account does not let the device send.",
                what_to_do="Check the device's licence at the gateway, and the permission to send SMS on the phone.",
                retry=Retry.AFTER_FIX,
            ),
            StatusCode(
                101, "not sent: not allowed", END_RANK, Outcome.NOT_PERMITTED, "not_permitted",
                likely_cause="The app lacks the permission to send SMS, or the account does not let the device send.",
                what_to_do="Check the device's licence at the gateway, and the permission to send SMS on the phone.",
                retry=Retry.AFTER_FIX,
            ),
            StatusCode(
                INCOMING, "incoming message", None, Outcome.INCOMING,
                likely_cause="A text or an image came in. It is no stage of an outgoing message.",
                what_to_do="Nothing.",
            ),
        )
    }
)  # fmt: skip
"""Every documented status by id."""


def parse_status_meanings(text: str) -> dict[int, Outcome]:
    """Return the meanings of further ids in a setting such as `"13=not_sent,102=not_permitted"`.

    Raises:
        SettingError: An id is documented or is not a whole number, or no report can have the outcome.
    """
    meanings: dict[int, Outcome] = {}
    reportable = {outcome.value for outcome in FAILURES | {Outcome.DELIVERED}}
    for part in filter(None, (part.strip() for part in text.split(","))):
        id_text, _, outcome = (piece.strip() for piece in part.partition("="))
        if not id_text.isdecimal() or int(id_text) in STATUSES:
            msg = f"status meaning {part!r}: {id_text!r} is not the id of an undocumented status, such as 13"
            raise SettingError(msg)
        if outcome not in reportable:
            msg = f"status meaning {part!r}: {outcome!r} is not one of {', '.join(sorted(reportable))}"
            raise SettingError(msg)
        meanings[int(id_text)] = Outcome(outcome)
    return meanings


def build_status_table(meanings: Mapping[int, Outcome]) -> Mapping[int, StatusCode]:
    """Return the documented statuses with the given further ids, each an end with the failure class `other`."""
    further = {
        id_: StatusCode(
            id_, outcome.value, END_RANK, outcome, "other" if outcome in FAILURES else None,
            likely_cause="The gateway does not document this status. A setting gives its outcome.",
            what_to_do="Ask the gateway's support, or read `status_message` in `status_events`.",
        )
        for id_, outcome in meanings.items()
    }  # fmt: skip
    return MappingProxyType({**STATUSES, **further})


def get_status_name(status_id: int, statuses: Mapping[int, StatusCode] = STATUSES) -> str:
    """Return the name of a status."""
    status = statuses.get(status_id)
    return status.name if status else f"undocumented status {status_id}"
