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


@dataclass(frozen=True, slots=True)
class StatusCode:
    """One status id.

    Args:
        id: Id that the gateway sends.
        name: Short English name.
        rank: Place in the documented order, from 0. All ends share the last place. None: it is no stage of a message.
        outcome: Outcome of a message whose decisive report has this status.
        failure_class: Class of the failure; None for other statuses.
    """

    id: int
    name: str
    rank: int | None
    outcome: Outcome
    failure_class: str | None = None

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

STATUSES: Final[Mapping[int, StatusCode]] = MappingProxyType(
    {
        status.id: status
        for status in (
            StatusCode(PENDING, "pending", 0, Outcome.PENDING),
            StatusCode(QUEUED, "queued for sending", 1, Outcome.QUEUED),
            StatusCode(ACCEPTED, "taken by the phone", 2, Outcome.ACCEPTED),
            StatusCode(SENT, "sent by the phone", 3, Outcome.SENT),
            StatusCode(DELIVERED, "delivered", END_RANK, Outcome.DELIVERED),
            StatusCode(8, "not delivered", END_RANK, Outcome.UNDELIVERED, "undelivered"),
            StatusCode(9, "not sent: generic failure", END_RANK, Outcome.NOT_SENT, "generic"),
            StatusCode(10, "not sent: no service", END_RANK, Outcome.NOT_SENT, "no_service"),
            StatusCode(11, "not sent: null PDU", END_RANK, Outcome.NOT_SENT, "null_pdu"),
            StatusCode(12, "not sent: radio off", END_RANK, Outcome.NOT_SENT, "radio_off"),
            StatusCode(100, "not sent: not allowed", END_RANK, Outcome.NOT_PERMITTED, "not_permitted"),
            StatusCode(101, "not sent: not allowed", END_RANK, Outcome.NOT_PERMITTED, "not_permitted"),
            StatusCode(INCOMING, "incoming message", None, Outcome.INCOMING),
        )
    }
)
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
        id_: StatusCode(id_, outcome.value, END_RANK, outcome, "other" if outcome in FAILURES else None)
        for id_, outcome in meanings.items()
    }
    return MappingProxyType({**STATUSES, **further})


def get_status_name(status_id: int, statuses: Mapping[int, StatusCode] = STATUSES) -> str:
    """Return the name of a status."""
    status = statuses.get(status_id)
    return status.name if status else f"undocumented status {status_id}"
