"""Bodies of simulated webhooks: every payload generation, every format of its values, every malformed body."""

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any, Final, Literal, NamedTuple

import orjson

from gateway.statuses import DELIVERED, STATUSES
from smspulse.simulator.ground_truth import SimulatedReport
from smspulse.simulator.options import FIRST_DEVICE_ID

JSON: Final = "application/json"
_FORM: Final = "application/x-www-form-urlencoded"
# Payloads with a zone have another one than UTC, so that a reader that ignores the zone is found.
_LOCAL: Final = timezone(timedelta(hours=2))


class PayloadFormat(NamedTuple):
    """The payload format of one message. `middle` differs from `current` only in incoming messages."""

    generation: Literal["old", "middle", "current"] = "current"
    numeric_strings: bool = False
    spaced_numbers: bool = False
    times: Literal["sql", "iso", "object"] = "sql"

    def encode_phone(self, number: str) -> str:
        """Return the text of a phone number of 13 characters."""
        return f"{number[:3]} {number[3:7]} {number[7:]}" if self.spaced_numbers else number

    def encode_time(self, moment: datetime | None) -> str | dict[str, Any] | None:
        """Return the JSON value of a time in UTC. The SQL style has no zone."""
        if moment is None:
            return None
        if self.times == "sql":
            return f"{moment:%Y-%m-%d %H:%M:%S}"
        local = moment.astimezone(_LOCAL)
        if self.times == "iso":
            return local.isoformat()
        return {"date": f"{local:%Y-%m-%d %H:%M:%S.%f}", "timezone_type": 1, "timezone": "+02:00"}

    @property
    def channel_field(self) -> str:
        """The field of the channel. The old generation calls it `sim`."""
        return "sim" if self.generation == "old" else "channel_id"

    def encode_numbers(self, payload: dict[str, Any]) -> dict[str, Any]:
        """Return a payload with its numbers as this format has them."""
        if not self.numeric_strings:
            return payload
        return {name: str(value) if type(value) is int else value for name, value in payload.items()}


def build_status_body(payload_format: PayloadFormat, sms_id: int, recipient: str, report: SimulatedReport) -> bytes:
    """Return the body of a status report."""
    status = STATUSES.get(report.status_id)
    payload = {
        "sms_id": sms_id,
        "status_id": report.status_id,
        "status_message": status.name if status else "other error",
        "sendto": payload_format.encode_phone(recipient),
        "senttime": payload_format.encode_time(report.sent_at),
        payload_format.channel_field: report.channel_id,
        "device_id": report.device_id,
    }
    return orjson.dumps(payload_format.encode_numbers(payload))


def _build_report_body(id_: int, /, **changes: object) -> bytes:
    report = SimulatedReport(0.0, DELIVERED, FIRST_DEVICE_ID, 0, None, "end")
    payload = orjson.loads(build_status_body(PayloadFormat(), id_, "+447700900000", report)) | changes
    return orjson.dumps({name: value for name, value in payload.items() if value is not ...})


# An event of another gateway.
_EVENT: Final = {"event": "sms.delivered", "id": "", "timestamp": "2026-01-05T08:00:00Z"}

# Body and content type of webhooks that cannot be read, by name; each takes an id.
MALFORMED_BODIES: Final[dict[str, Callable[[int], tuple[bytes, str]]]] = {
    "form": lambda id_: (f"sms_id={id_}&status_id=7".encode(), _FORM),
    "truncated": lambda id_: (_build_report_body(id_)[:-9], JSON),
    "not_an_object": lambda id_: (b"[" + _build_report_body(id_) + b"]", JSON),
    "missing_sms_id": lambda id_: (_build_report_body(id_, sms_id=...), JSON),
    "null_sms_id": lambda id_: (_build_report_body(id_, sms_id=None), JSON),
    "object_for_sms_id": lambda id_: (_build_report_body(id_, sms_id={"id": id_}), JSON),
    "negative_sms_id": lambda id_: (_build_report_body(id_, sms_id=-id_), JSON),
    "words_for_status_id": lambda id_: (_build_report_body(id_, status_id="delivered"), JSON),
    "fraction_for_status_id": lambda id_: (_build_report_body(id_, status_id=7.5), JSON),
    "event": lambda id_: (orjson.dumps(_EVENT | {"id": f"msg_{id_}"}), JSON),
    "unknown_shape": lambda id_: (orjson.dumps({"ping": id_}), JSON),
    "empty": lambda _: (b"", JSON),
    "error_page": lambda id_: (f"<html><body>502 Bad Gateway (request {id_})</body></html>".encode(), "text/html"),
}
