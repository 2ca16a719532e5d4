"""Options of the simulated gateway: its fleet, its failures, and the rate of each known misbehaviour."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from core.errors import SettingError
from gateway.statuses import STATUSES

FIRST_DEVICE_ID: Final = 8001
# SIM slots of each phone, numbered from 0.
CHANNELS: Final = 2

Shares = tuple[tuple[int, float], ...]


def _rate_field(default: float, help_: str) -> float:
    return field(default=default, metadata={"help": help_})


@dataclass(frozen=True, slots=True)
class GatewayBehaviour:
    """The fleet, the failures and the misbehaviours of a simulated gateway.

    Every float is a rate from 0 to 1: the share of affected outgoing messages, unless the `help` in the field's
    metadata names another base. Misbehaviours combine, except where a combination has no agreed meaning: a multipart
    message is neither reordered, late, resent under its own id nor contradicted beyond its parts.

    Args:
        devices: Phones, numbered from 8001, each with the channels 0 and 1.
        failure_mix: Weight of each status id among the failures.
        unhealthy: Phones with their own failure rates. They are slower, too.

    Raises:
        SettingError: The rates of resends exceed 1, a failure is not documented, or a phone is not in the fleet.
    """

    failing: float = _rate_field(0.12, "messages that fail")
    missing_ends: float = _rate_field(0.03, "messages whose end is never reported")
    duplicates: float = _rate_field(0.08, "messages with reports that arrive again, unchanged, soon or later")
    reordering: float = _rate_field(0.06, "messages with two reports that arrive in swapped order")
    skipped_stages: float = _rate_field(0.10, "messages with stages that are never reported")
    late_reports: float = _rate_field(0.02, "messages with a report that arrives hours late")
    resends: float = _rate_field(0.30, "failed messages that are sent again under their id, some by another phone")
    resends_new_id: float = _rate_field(0.10, "failed messages that are sent again under another id")
    contradictions: float = _rate_field(
        0.01, "messages that are delivered and then fail, or the reverse, in one attempt"
    )
    multipart: float = _rate_field(0.05, "messages in parts, each part reported for itself")
    old_payloads: float = _rate_field(0.10, "messages, also incoming ones, reported in older payload generations")
    numeric_strings: float = _rate_field(0.05, "messages whose numbers arrive as strings")
    spaced_numbers: float = _rate_field(0.20, "messages whose phone number holds spaces")
    other_datetimes: float = _rate_field(0.20, "messages whose times are ISO-8601 or objects instead of SQL style")
    null_senttime: float = _rate_field(0.10, "messages not resent whose senttime is null: until sent, or always")
    unknown_codes: float = _rate_field(0.01, "messages with an undocumented status id, some with nothing else")
    stray_incoming: float = _rate_field(0.005, "messages with a status 5, some with nothing else")
    incoming: float = _rate_field(0.15, "incoming messages for each outgoing one")
    images: float = _rate_field(0.20, "incoming messages that are images")
    malformed: float = _rate_field(0.015, "webhooks that cannot be read for each outgoing message")
    devices: int = 6
    failure_mix: Shares = ((8, 0.5), (9, 0.2), (10, 0.15), (11, 0.02), (12, 0.08), (100, 0.03), (101, 0.02))
    unhealthy: Shares = ((8003, 0.5),)

    def __post_init__(self) -> None:
        if self.resends + self.resends_new_id > 1:
            msg = "resends and resends_new_id are shares of the same failed messages: their sum cannot exceed 1"
            raise SettingError(msg)
        for status_id, weight in self.failure_mix:
            if status_id not in STATUSES or not STATUSES[status_id].is_failure or weight < 0:
                msg = f"failure_mix {status_id}={weight}: use documented failures and weights from 0, such as 8=0.5"
                raise SettingError(msg)
        if not sum(weight for _, weight in self.failure_mix):
            msg = "failure_mix has no weight above 0: use for example 8=1"
            raise SettingError(msg)
        for device_id, ratio in self.unhealthy:
            if device_id not in self.device_ids:
                msg = f"unhealthy device {device_id} is not in the fleet: {self.device_ids[0]} to {self.device_ids[-1]}"
                raise SettingError(msg)
            if not 0 <= ratio <= 1:
                msg = f"rate unhealthy {device_id} is {ratio}: use a share from 0 to 1"
                raise SettingError(msg)

    @property
    def device_ids(self) -> Sequence[int]:
        """The ids of all devices."""
        return range(FIRST_DEVICE_ID, FIRST_DEVICE_ID + self.devices)


def parse_shares(text: str) -> Shares:
    """Parse a text such as `8003=0.5,8004=0.1`.

    Raises:
        SettingError: A part is not a whole number with a share.
    """
    shares = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        id_text, _, share = part.partition("=")
        try:
            shares.append((int(id_text), float(share)))
        except ValueError as error:
            msg = f"share {part!r} cannot be read: write ID=RATIO, such as 8003=0.5"
            raise SettingError(msg) from error
    return tuple(shares)


# A single message that is not permitted makes an alert, and the next permitted one ends it. So healthy phones have
# none.
# The gateway of `smspulse up --demo`. One of its phones is unhealthy.
DEMO_BEHAVIOUR: Final = GatewayBehaviour(failure_mix=((8, 0.5), (9, 0.2), (10, 0.2), (11, 0.02), (12, 0.08)))
# Scenarios a second.
DEMO_RATE: Final = 60.0
# The demo is faster than life, so that a minute shows whole lifecycles.
DEMO_TIME_SCALE: Final = 0.3
DEMO_LONGEST_DELAY_S: Final = 12.0
