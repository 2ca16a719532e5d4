"""How all alerts stand, in words and in sum: pure."""

from datetime import UTC, datetime
from typing import Final

from gateway.alerts import (
    DEVICE_DOWN,
    FAILURE_RATIO,
    LATENCY_SHIFT,
    NOT_PERMITTED,
    PIPELINE,
    QUALITY_CHECK,
    SILENT,
    STUCK_MESSAGES,
    Alert,
)
from gateway.statuses import STATUSES

_WIDTH: Final = {"pipeline": 3, "source": 2, "device": 1, "channel": 0}
# What an alert explains beside narrower ones of its own kind, in whatever is as narrow as it, or narrower.
_EXPLAINS: Final = {
    PIPELINE: {SILENT, STUCK_MESSAGES, LATENCY_SHIFT},
    SILENT: {STUCK_MESSAGES},
    DEVICE_DOWN: {FAILURE_RATIO},
}
_ENDED: Final = {
    "recovered": "recovered: the failures are back at what is usual",
    "new_normal": "new normal: the failures stayed, and are the baseline from now on",
}
_CRITICAL: Final = {FAILURE_RATIO, NOT_PERMITTED, SILENT, PIPELINE, QUALITY_CHECK}


def name(kind: str) -> str:
    """Return how monitoring calls a kind: `SmsFailureRatio`."""
    return f"Sms{kind.title().replace('_', '')}"


class Book:
    """Every alert as it was told last."""

    def __init__(self) -> None:
        self.alerts: dict[str, Alert] = {}

    def take(self, alert: Alert) -> None:
        """Take what was told of an alert."""
        self.alerts[alert.id] = alert

    def firing(self) -> list[Alert]:
        """Return the alerts that fire, by id."""
        return [alert for _, alert in sorted(self.alerts.items()) if alert.phase == "firing"]

    def is_inhibited(self, alert: Alert) -> bool:
        """Say whether a wider alert that fires explains this one, such as its source's or its device's."""
        return any(_explains(each, alert) for each in self.alerts.values() if each.phase == "firing")


def _explains(one: Alert, other: Alert) -> bool:
    """Say whether an alert is the reason of another one. Never both ways, or neither would be told."""
    if one.scope != "pipeline" and one.source != other.source:
        return False
    if one.scope == "device" and one.device_id != other.device_id:
        return False
    wider = _WIDTH[one.scope] - _WIDTH[other.scope]
    if one.kind == other.kind:
        return wider > 0 and one.kind not in {NOT_PERMITTED, PIPELINE, QUALITY_CHECK}
    if one.kind == FAILURE_RATIO and other.kind == DEVICE_DOWN:
        return wider > 0
    return wider >= 0 and other.kind in _EXPLAINS.get(one.kind, ())


def severity(alert: Alert) -> str:
    """Return `critical` for what stops a whole source, else `warning`. The same as long as the alert is on."""
    return "critical" if _WIDTH[alert.scope] > 1 and alert.kind in _CRITICAL else "warning"


def subject(alert: Alert) -> str:
    """Name what an alert is about."""
    if alert.scope == "pipeline":
        return "all sources" if alert.kind == SILENT else "pipeline"
    names = [f"source {alert.source}"]
    if alert.scope != "source":
        names.append("no device" if alert.device_id is None else f"device {alert.device_id}")
    if alert.scope == "channel":
        names.append("no channel" if alert.channel_id is None else f"channel {alert.channel_id}")
    return ", ".join(names)


def summary(alert: Alert) -> str:
    """Say in one line what is wrong."""
    if alert.what:
        return f"{subject(alert)}: {alert.what}"
    if alert.kind == NOT_PERMITTED:
        return f"{subject(alert)}: messages are not permitted"
    ratio = alert.failures / alert.count if alert.count else 0.0
    if alert.resolution == "new_normal":
        before = f", {alert.baseline:.1%} was usual" if alert.baseline is not None else ""
        return f"{subject(alert)}: new normal, {ratio:.0%} of messages fail{before}"
    usual = f", {alert.baseline:.1%} is usual" if alert.baseline is not None else ""
    return f"{subject(alert)}: {ratio:.0%} of messages fail{usual}"


def evidence(alert: Alert) -> dict[str, str]:
    """Return what an alert rests on, by name, for people."""
    low, high = alert.interval
    found = {"since": moment(alert.since)}
    if alert.failures:
        found["failed"] = f"{alert.failures} of {alert.count} messages"
        found["ratio"] = f"{alert.failures / max(alert.count, 1):.1%}, 95 % interval {low:.1%} to {high:.1%}"
    if alert.baseline is not None:
        found["baseline"] = f"{alert.baseline:.1%}"
        if alert.bound is not None:
            found["baseline"] += f", at most {alert.bound:.1%}, from {alert.known:,} messages"
    found["errors"] = ", ".join(
        f"{count} of {_meaning(id_)}" for id_, count in sorted(alert.errors.items(), key=lambda e: -e[1])
    )
    found["samples"] = ", ".join(alert.samples)
    if alert.resolution:
        found["ended"] = _ENDED[alert.resolution]
    if alert.scope != "pipeline":
        found["share"] = f"{alert.share:.0%} of the source's messages"
    return {name: text for name, text in found.items() if text}


def moment(ms: int) -> str:
    """Write a time in milliseconds as RFC 3339 does."""
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _meaning(why: str) -> str:
    """Return a status with its name, or another reason as it is."""
    if not why.isdecimal():
        return why
    status = STATUSES.get(int(why))
    return f"status {why}" + (f" ({status.name})" if status else "")
