"""The bytes of the simulated webhooks: every payload generation, every spelling of its values, every malformed body."""

import random
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any, Final, Literal, NamedTuple

import orjson

from gateway.statuses import STATUSES
from smspulse.simulator.options import CHANNELS, FIRST_DEVICE_ID

JSON: Final = "application/json"
_FORM: Final = "application/x-www-form-urlencoded"
_LOCAL: Final = timezone(timedelta(hours=2))
_TEXTS: Final = ("Yes, please.", "Danke, bis morgen! \N{WAVING HAND SIGN}", "STOP", "Дякую", "Where are you?", "")


class Spelling(NamedTuple):
    """How one message's webhooks spell what they say. `generation` matters to incoming messages beyond `old`."""

    generation: Literal["old", "middle", "current"] = "current"
    numeric_strings: bool = False
    spaced_numbers: bool = False
    times: Literal["sql", "iso", "object"] = "sql"

    def number(self, value: int) -> int | str:
        """Spell a number."""
        return str(value) if self.numeric_strings else value

    def phone(self, number: str) -> str:
        """Spell a phone number of 13 characters."""
        return f"{number[:3]} {number[3:7]} {number[7:]}" if self.spaced_numbers else number

    def time(self, moment: datetime | None) -> str | dict[str, Any] | None:
        """Spell a time that is given in UTC; SQL style names no zone."""
        if moment is None:
            return None
        if self.times == "sql":
            return f"{moment:%Y-%m-%d %H:%M:%S}"
        local = moment.astimezone(_LOCAL)
        if self.times == "iso":
            return local.isoformat()
        return {"date": f"{local:%Y-%m-%d %H:%M:%S.%f}", "timezone_type": 1, "timezone": "+02:00"}

    def channel(self, channel_id: int) -> dict[str, int | str]:
        """Spell the channel, which the old generation calls `sim`."""
        return {"sim" if self.generation == "old" else "channel_id": self.number(channel_id)}


def status_body(
    spelling: Spelling,
    sms_id: int,
    status_id: int,
    *,
    recipient: str,
    sent_at: datetime | None,
    device_id: int,
    channel_id: int,
) -> bytes:
    """Return the body of a status report."""
    status = STATUSES.get(status_id)
    return orjson.dumps(
        {
            "sms_id": spelling.number(sms_id),
            "status_id": spelling.number(status_id),
            "status_message": status.name if status else "other error",
            "sendto": spelling.phone(recipient),
            "senttime": spelling.time(sent_at),
            **spelling.channel(channel_id),
            "device_id": spelling.number(device_id),
        }
    )


def incoming_body(
    rng: random.Random, spelling: Spelling, sms_id: int, *, sender: str, at: datetime, device_id: int, image: bool
) -> bytes:
    """Return the body of an incoming text or image."""
    channel_id = rng.randrange(CHANNELS)
    payload: dict[str, Any] = {
        "address": spelling.phone(sender),
        "date": spelling.time(at),
        "date_sent": spelling.time(at - timedelta(seconds=rng.randrange(1, 30))),
        "body": "" if image else rng.choice(_TEXTS),
        "internal_id": None if image else spelling.number(rng.randrange(1, 100_000)),
        "sms_id": spelling.number(sms_id),
    }
    if image:
        # The documented image names neither its device nor a channel_id.
        return orjson.dumps(
            payload
            | {"type": "img", "img_url": f"https://gateway.invalid/images/{rng.getrandbits(64):016x}.jpg"}
            | {"sim": spelling.number(channel_id)}
        )
    payload |= spelling.channel(channel_id)
    payload |= {"device_id": spelling.number(device_id), "device_name": f"phone {device_id}"}
    if spelling.generation == "old" and rng.random() < 0.5:  # noqa: PLR2004 - half of them
        payload["address"] = int(sender.removeprefix("+"))
    if spelling.generation == "current":
        payload["type"] = "text"
    return orjson.dumps(payload)


def _report(id_: int, /, **changes: object) -> bytes:
    body = status_body(
        Spelling(), id_, 7, recipient="+447700900000", sent_at=None, device_id=FIRST_DEVICE_ID, channel_id=0
    )
    payload = orjson.loads(body)
    return orjson.dumps({name: value for name, value in {**payload, **changes}.items() if value is not ...})


MALFORMED: Final[dict[str, Callable[[int], tuple[bytes, str]]]] = {
    "form": lambda id_: (f"sms_id={id_}&status_id=7".encode(), _FORM),
    "truncated": lambda id_: (_report(id_)[:-9], JSON),
    "not_an_object": lambda id_: (b"[" + _report(id_) + b"]", JSON),
    "missing_sms_id": lambda id_: (_report(id_, sms_id=...), JSON),
    "null_sms_id": lambda id_: (_report(id_, sms_id=None), JSON),
    "object_for_sms_id": lambda id_: (_report(id_, sms_id={"id": id_}), JSON),
    "negative_sms_id": lambda id_: (_report(id_, sms_id=-id_), JSON),
    "words_for_status_id": lambda id_: (_report(id_, status_id="delivered"), JSON),
    "fraction_for_status_id": lambda id_: (_report(id_, status_id=7.5), JSON),
    "event": lambda id_: (
        orjson.dumps({"event": "sms.delivered", "id": f"msg_{id_}", "timestamp": "2026-01-05T08:00:00Z"}),
        JSON,
    ),
    "unknown_shape": lambda id_: (orjson.dumps({"ping": id_}), JSON),
    "empty": lambda _: (b"", JSON),
    "error_page": lambda id_: (f"<html><body>502 Bad Gateway (request {id_})</body></html>".encode(), "text/html"),
}
"""Body and content type of webhooks that cannot be read, by name; each takes an id."""
