"""The history of one message, as data and as text: outcome, reports and latencies."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gateway.statuses import get_status_name
from smspulse.processes.terminal import format_duration
from warehouse.reader import fetch_rows, open_warehouse
from warehouse.status_codes import load_known_statuses

# Flags of a message that a person needs to know. Others are left out.
_FLAGS = {
    "duplicated": "a report was delivered more than once",
    "reordered": "reports came out of order",
    "unknown_status": "a report has a status that is not documented",
    "late_after_forgetting": "reports came after the stream had forgotten the message",
}
# Columns of the view `messages` without personal data, and the reports.
_MESSAGE_SQL = """
    SELECT message_key, source, sms_id, outcome, failure_class, is_ended, attempts, contradicted, flags,
        strftime(first_seen_at, '%Y-%m-%dT%H:%M:%S.%gZ') AS first_seen_at,
        strftime(last_seen_at, '%Y-%m-%dT%H:%M:%S.%gZ') AS last_seen_at,
        strftime(ended_at, '%Y-%m-%dT%H:%M:%S.%gZ') AS ended_at,
        queue_s, device_s, network_s, total_s, device_id, channel_id, last_status_id,
        list_transform(observations, lambda each: {
            'status_id': each.status_id,
            'device_id': each.device_id,
            'channel_id': each.channel_id,
            'at': strftime(each.first_received_at, '%Y-%m-%dT%H:%M:%S.%gZ'),
            'after_s': (epoch_ms(each.first_received_at) - epoch_ms(first_seen_at)) / 1000,
            'again_s': (epoch_ms(each.last_received_at) - epoch_ms(each.first_received_at)) / 1000
        }) AS reports
    FROM messages WHERE message_key = ?
"""


def find_message(data: Path, key: str) -> dict[str, Any] | None:
    """Return a message, ready for JSON: columns of `messages` and its `reports`; None if it is unknown.

    Its recipient and text are not included.

    Args:
        data: The data folder.
        key: `SOURCE:SMS_ID`.

    Raises:
        NoWarehouseError: Nothing was published there.
    """
    statuses = load_known_statuses(data)
    with open_warehouse(data) as connection:
        rows = fetch_rows(connection, _MESSAGE_SQL, [key])
    if not rows:
        return None
    found = rows[0]
    # In order of receipt, which can differ from the order of the lifecycle.
    found["reports"] = sorted(found["reports"] or (), key=lambda report: report["after_s"])
    for report in found["reports"]:
        report["status"] = get_status_name(report["status_id"], statuses)
    found |= dict.fromkeys(("likely_cause", "what_to_do", "retry"))
    status = statuses.get(found["last_status_id"])
    if status is not None and status.is_failure:
        found |= {"likely_cause": status.likely_cause, "what_to_do": status.what_to_do, "retry": status.retry.value}
    return found


def format_history(message: dict[str, Any]) -> str:
    """Return a message of `find_message` as lines of text."""
    lines = [f"{message['message_key']} {_describe_outcome(message)}."]
    if message["likely_cause"]:
        lines += [f"Likely cause: {message['likely_cause']}", f"What to do: {message['what_to_do']}"]
    lines += ["", *_format_reports(message)]
    steps = [
        f"{format_duration(message[f'{step}_s'])} {where}"
        for step, where in (("queue", "in the queue"), ("device", "on the phone"), ("network", "in the network"))
        if message[f"{step}_s"] is not None
    ]
    notes = [_FLAGS[flag] for flag in message["flags"] if flag in _FLAGS]
    notes += ["reports contradict each other on how it ended"] if message["contradicted"] else []
    notes += [f"{message['attempts']} attempts"] if message["attempts"] > 1 else []
    if steps or notes:
        lines.append("")
    if steps:
        lines.append(f"It spent {', '.join(steps)}, as the reports were received.")
    if notes:
        lines.append(f"Note: {'; '.join(notes)}.")
    return "\n".join(lines)


def _format_reports(message: dict[str, Any]) -> Iterator[str]:
    """Yield a line for each report, and for the expiry."""
    shown = None
    for report in message["reports"]:
        when = f"+{report['after_s']:.1f} s" if report["after_s"] else _format_utc(report["at"])
        place = (report["device_id"], report["channel_id"])
        through = f", phone {place[0]}, channel {place[1]}" if place not in (shown, (None, None)) else ""
        again = f"; repeated up to {format_duration(report['again_s'])} later" if report["again_s"] else ""
        yield f"  {when:>27}  {report['status']}{through}{again}"
        shown = place
    if message["outcome"] == "expired":
        yield f"  {_format_utc(message['ended_at']):>27}  expired, because no report came"


def _format_utc(timestamp: str) -> str:
    """Return an ISO 8601 time, such as `2026-11-30T08:00:00.000Z`, as people read it."""
    return timestamp.replace("T", " ").removesuffix("Z") + " UTC"


def _describe_outcome(message: dict[str, Any]) -> str:
    match message["outcome"]:
        case "delivered":
            return f"was delivered {format_duration(message['total_s'] or 0)} after its first report"
        case "undelivered" | "not_sent" | "not_permitted":
            return f"failed: {_name_last_status(message)}"
        case "expired":
            return "expired: it has no end, and no further report came"
        case "incoming":
            return "is an incoming message"
        case _:
            return f"is open: {_name_last_status(message)}"


def _name_last_status(message: dict[str, Any]) -> str:
    """Return the decisive status as its report names it: a setting may have given it a meaning."""
    id_ = message["last_status_id"]
    named = (report["status"] for report in message["reports"] if report["status_id"] == id_)
    return next(named, get_status_name(id_))
