"""How all alerts stand, in words and in sum: pure."""

from datetime import UTC, datetime
from typing import Final

from gateway.alerts import FAILURE_RATIO, NOT_PERMITTED, Alert, alert_id
from gateway.statuses import STATUSES

NAMES: Final = {FAILURE_RATIO: "SmsFailureRatio", NOT_PERMITTED: "SmsNotPermitted"}
"""How monitoring calls each kind."""


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
        """Say whether a wider alert that fires explains this one: its source's, or that of its device as a whole."""
        if alert.kind != FAILURE_RATIO or alert.scope == "source":
            return False
        wider = alert_id(FAILURE_RATIO, alert.source, alert.device_id) if alert.scope == "channel" else ""
        return any(
            each.id == wider or (each.scope == "source" and each.source == alert.source and each.kind == FAILURE_RATIO)
            for each in self.alerts.values()
            if each.phase == "firing"
        )


def severity(alert: Alert) -> str:
    """Return `critical` for what stops a whole source, else `warning`. The same as long as the alert is on."""
    return "critical" if alert.scope == "source" else "warning"


def subject(alert: Alert) -> str:
    """Name what an alert is about."""
    names = [f"source {alert.source}"]
    if alert.scope != "source":
        names.append("no device" if alert.device_id is None else f"device {alert.device_id}")
    if alert.scope == "channel":
        names.append("no channel" if alert.channel_id is None else f"channel {alert.channel_id}")
    return ", ".join(names)


def summary(alert: Alert) -> str:
    """Say in one line what is wrong."""
    if alert.kind == NOT_PERMITTED:
        return f"{subject(alert)}: messages are not permitted"
    ratio = alert.failures / alert.count if alert.count else 0.0
    usual = f", {alert.baseline:.1%} is usual" if alert.baseline is not None else ""
    return f"{subject(alert)}: {ratio:.0%} of messages fail{usual}"


def evidence(alert: Alert) -> dict[str, str]:
    """Return what an alert rests on, by name, for people."""
    low, high = alert.interval
    found = {"since": moment(alert.since), "failed": f"{alert.failures} of {alert.count} messages"}
    if alert.kind == FAILURE_RATIO:
        found["ratio"] = f"{alert.failures / max(alert.count, 1):.1%}, 95 % interval {low:.1%} to {high:.1%}"
        if alert.baseline is not None and alert.bound is not None:
            found["baseline"] = f"{alert.baseline:.1%}, at most {alert.bound:.1%}, from {alert.known:,} messages"
    found["errors"] = ", ".join(
        f"{count} of status {id_}{_meaning(id_)}" for id_, count in sorted(alert.errors.items(), key=lambda e: -e[1])
    )
    found["samples"] = ", ".join(alert.samples)
    found["share"] = f"{alert.share:.0%} of the source's messages"
    return {name: text for name, text in found.items() if text}


def moment(ms: int) -> str:
    """Write a time in milliseconds as RFC 3339 does."""
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _meaning(status_id: str) -> str:
    status = STATUSES.get(int(status_id)) if status_id.isdecimal() else None
    return f" ({status.name})" if status else ""
