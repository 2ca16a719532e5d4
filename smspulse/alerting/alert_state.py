"""The current state of all alerts, and the texts about one alert. Pure."""

from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from core.alerts import (
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
from core.intervals import wilson_interval
from gateway.statuses import STATUSES
from smspulse.alerting.causes import AlertCause, find_cause
from smspulse.processes.terminal import escape_to_line

# A wider scope has a larger number.
_SCOPE_WIDTH: Final = {"pipeline": 3, "source": 2, "device": 1, "channel": 0}
# An alert explains narrower alerts of its own kind, and alerts of these kinds whose scope is not wider than its own.
_EXPLAINED_KINDS: Final = {
    PIPELINE: {SILENT, STUCK_MESSAGES, LATENCY_SHIFT},
    SILENT: {STUCK_MESSAGES},
    DEVICE_DOWN: {FAILURE_RATIO},
}
# Kinds of alerts about a failing phone or SIM card.
_PHONE_FAILURE_KINDS: Final = {FAILURE_RATIO, NOT_PERMITTED, DEVICE_DOWN}
_MAJORITY_SHARE: Final = 0.5
# Default of `AlertSettings.cause_wait_s`.
CAUSE_WAIT_S: Final = 600.0
# Until then, the first failures may not show a cause yet.
_SHORT_CAUSE_WAIT_MS: Final = 30_000
_RESOLUTION_TEXTS: Final = {
    "recovered": "recovered: the failures are back at what is usual",
    "new_normal": "new normal: the failures stayed, and are the baseline from now on",
}
# Kinds that are critical for a whole source.
_CRITICAL_KINDS: Final = {FAILURE_RATIO, NOT_PERMITTED, SILENT, PIPELINE, QUALITY_CHECK}


class AlertState:
    """Every alert as of its last change.

    Args:
        cause_wait_s: Seconds that a source's alert waits for the alert of the phone that explains most of it, and after
            the end of that alert for its own.

    Attributes:
        listeners: Called with each change: the alert as it was, None if it is a new one, and as it is now.
    """

    def __init__(self, cause_wait_s: float = CAUSE_WAIT_S) -> None:
        self.alerts: dict[str, Alert] = {}
        self.listeners: list[Callable[[Alert | None, Alert], None]] = []
        self._cause_wait_ms = int(cause_wait_s * 1000)

    def update_alert(self, alert: Alert) -> None:
        """Apply a change of an alert."""
        was = self.alerts.get(alert.id)
        # The evaluator's changes come from the topic, too.
        if was == alert:
            return
        self.alerts[alert.id] = alert
        for listener in self.listeners:
            listener(was, alert)

    def firing_alerts(self) -> list[Alert]:
        """Return the alerts that fire, in the order of their ids."""
        return [alert for _, alert in sorted(self.alerts.items()) if alert.phase == "firing"]

    def is_inhibited(self, alert: Alert, now: int) -> bool:
        """Return whether another alert is notified in place of this one, at a time in milliseconds.

        A wider alert that fires explains narrower ones: the alert of a source explains those of its devices. But where
        one phone or SIM card explains most of a wider alert, the wider one is inhibited, and inhibits nothing.
        """
        if self.is_explained_by_cause(alert, now):
            return True
        return any(
            each.phase == "firing" and _is_reason_for(each, alert) and not self.is_explained_by_cause(each, now)
            for each in self.alerts.values()
        )

    def is_explained_by_cause(self, alert: Alert, now: int) -> bool:
        """Return whether the alert of one phone or SIM card is notified in place of this wider one, or may be.

        The two can fire in either order, so the wider one waits for the other. It waits long if it names a cause. It
        waits a moment if it does not, because its first failures may not show the cause yet. After the end of the other
        one it waits for its own end: it counts the same failures, and needs more messages until they are over.

        Args:
            alert: An alert that fires.
            now: In milliseconds.
        """
        if alert.fired_at is None or not alert.by_channel:
            return False
        cause = find_cause(alert)
        if cause is None:
            return alert.scope == "source" and now < alert.fired_at + min(_SHORT_CAUSE_WAIT_MS, self._cause_wait_ms)
        if self._has_spread(alert, cause):
            return False
        if now < alert.fired_at + self._cause_wait_ms:
            return True
        return any(
            self._is_firing_or_recent(each, now)
            for each in self._phone_failure_alerts(alert.source)
            if cause.is_subject_of(each)
        )

    def _phone_failure_alerts(self, source: str) -> list[Alert]:
        return [each for each in self.alerts.values() if each.source == source and each.kind in _PHONE_FAILURE_KINDS]

    def _is_firing_or_recent(self, alert: Alert, now: int) -> bool:
        """Return whether an alert fires, or ended so recently that the alerts that it explains may still fire."""
        if alert.resolved_at is None:
            return alert.phase == "firing"
        return now < alert.resolved_at + self._cause_wait_ms

    def _has_spread(self, alert: Alert, cause: AlertCause) -> bool:
        """Return whether alerts fire on devices with most of the other traffic, which is not the cause's."""
        if alert.scope != "source":
            return False
        others = self._failing_share_by_device(alert.source)
        others.pop(cause.device_id, None)
        return sum(others.values()) > _MAJORITY_SHARE * (1 - cause.traffic_share)

    def _failing_share_by_device(self, source: str) -> dict[int | None, float]:
        """Return the share of the source's messages on each device whose failure alerts fire."""
        # By device and channel. An alert of the whole device has no channel.
        parts: dict[int | None, dict[int | None, float]] = defaultdict(lambda: defaultdict(float))
        for each in self._phone_failure_alerts(source):
            if each.phase == "firing" and each.scope in {"device", "channel"}:
                part = parts[each.device_id]
                part[each.channel_id] = max(part[each.channel_id], each.share)
        return {device_id: max(part.pop(None, 0.0), sum(part.values())) for device_id, part in parts.items()}


def _is_reason_for(one: Alert, other: Alert) -> bool:
    """Return whether an alert is the reason of another one. Never both ways, or neither would be sent."""
    if one.scope != "pipeline" and one.source != other.source:
        return False
    if one.scope == "device" and one.device_id != other.device_id:
        return False
    wider = _SCOPE_WIDTH[one.scope] - _SCOPE_WIDTH[other.scope]
    if one.kind == other.kind:
        return wider > 0 and one.kind not in {NOT_PERMITTED, PIPELINE, QUALITY_CHECK}
    if one.kind == FAILURE_RATIO and other.kind == DEVICE_DOWN:
        return wider > 0
    return wider >= 0 and other.kind in _EXPLAINED_KINDS.get(one.kind, ())


def alert_severity(alert: Alert) -> str:
    """Return `critical` for an alert that stops a whole source, else `warning`. Constant while the alert fires."""
    return "critical" if _SCOPE_WIDTH[alert.scope] > 1 and alert.kind in _CRITICAL_KINDS else "warning"


def alert_subject(alert: Alert) -> str:
    """Return the subject of an alert, such as `source acme, device 10482`."""
    if alert.scope == "pipeline":
        return "all sources" if alert.kind == SILENT else "pipeline"
    names = [f"source {alert.source}"]
    if alert.scope != "source":
        names.append(_part_name("device", alert.device_id))
    if alert.scope == "channel":
        names.append(_part_name("channel", alert.channel_id))
    return ", ".join(names)


def describe_cause(alert: Alert) -> str:
    """Return the phone or SIM card that explains most of an alert, with its share; empty if there is none."""
    if (cause := find_cause(alert)) is None:
        return ""
    channel = "" if cause.channel_id is None else f", {_part_name('channel', cause.channel_id)}"
    return f"{_part_name('device', cause.device_id)}{channel} explains {cause.share:.0%} of the rise"


def _part_name(part: str, id_: int | None) -> str:
    return f"no {part}" if id_ is None else f"{part} {id_}"


def alert_summary(alert: Alert) -> str:
    """Return the problem in one line. It can contain text of untrusted clients, but no control character of theirs."""
    return escape_to_line(f"{alert_subject(alert)}: {alert.what or _describe_failures(alert)}")


def _describe_failures(alert: Alert) -> str:
    if alert.kind == NOT_PERMITTED:
        return "messages are not permitted"
    ratio = alert.failures / alert.count if alert.count else 0.0
    is_new_normal = alert.resolution == "new_normal"
    verb = "was" if is_new_normal else "is"
    usual = "" if alert.baseline is None else f", {alert.baseline:.1%} {verb} usual"
    if is_new_normal:
        return f"new normal, {ratio:.0%} of messages fail{usual}"
    cause = describe_cause(alert)
    return f"{ratio:.0%} of messages fail{usual}{cause and f'; {cause}'}"


def alert_evidence(alert: Alert) -> dict[str, str]:
    """Return the evidence of an alert by name, for people, each in one line as `alert_summary`."""
    low, high = wilson_interval(alert.count, alert.failures)
    lines = {"since": format_rfc3339(alert.since)}
    if alert.failures:
        lines["failed"] = f"{alert.failures} of {alert.count} messages"
        lines["ratio"] = f"{alert.failures / max(alert.count, 1):.1%}, 95 % interval {low:.1%} to {high:.1%}"
    if alert.baseline is not None:
        lines["baseline"] = f"{alert.baseline:.1%}"
        if alert.bound is not None:
            lines["baseline"] += f", at most {alert.bound:.1%}, from {alert.known:,} messages"
    lines["errors"] = ", ".join(
        f"{count} of {_describe_reason(id_)}" for id_, count in sorted(alert.errors.items(), key=lambda e: -e[1])
    )
    lines["cause"] = describe_cause(alert)
    lines["samples"] = ", ".join(alert.samples)
    if alert.resolution:
        lines["ended"] = _RESOLUTION_TEXTS[alert.resolution]
    if alert.scope != "pipeline":
        lines["share"] = f"{alert.share:.0%} of the source's messages"
    return {name: escape_to_line(text) for name, text in lines.items() if text}


def require_showable(alert: Alert) -> None:
    """Build all texts about an alert once, so that a bad value, such as a time outside the calendar, raises here.

    Raises:
        Exception: The alert cannot be sent to any receiver.
    """
    alert_summary(alert)
    alert_evidence(alert)
    alert_severity(alert)
    for time_ms in (alert.changed_at, alert.since, alert.fired_at, alert.resolved_at):
        if time_ms is not None:
            format_rfc3339(time_ms)


def format_rfc3339(ms: int) -> str:
    """Return a time in milliseconds in the format of RFC 3339."""
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _describe_reason(reason: str) -> str:
    """Return a status with its name, or another reason as it is."""
    if not reason.isdecimal():
        return reason
    status = STATUSES.get(int(reason))
    return f"status {reason}" + (f" ({status.name})" if status else "")
