"""Delivery state of the receivers: sent alerts, the next alerts to send, and their time. Pure."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from msgspec.structs import replace

from core.alerts import Alert
from smspulse.alerting.alert_state import AlertState

# The pause after a failure doubles from here.
FIRST_PAUSE_S: Final = 1.0
# The end of a silence is noticed so late at most.
POLL_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class ClockReading:
    """One reading of both clocks.

    Args:
        elapsed_s: Of the monotonic clock, for pauses.
        now_s: Seconds since 1970.
    """

    elapsed_s: float
    now_s: float

    @property
    def now_ms(self) -> int:
        """Milliseconds since 1970."""
        return int(self.now_s * 1000)


def read_clock() -> ClockReading:
    """Read the clocks."""
    return ClockReading(time.monotonic(), time.time())


Clock = Callable[[], ClockReading]
# Returns the ids of alerts that are silenced at a time in seconds since 1970.
SilencedIds = Callable[[float], frozenset[str]]


# One period in which an alert fires: its id, and the time when it fired.
_Episode = tuple[str, int | None]


def _episode(alert: Alert) -> _Episode:
    return alert.id, alert.fired_at


class WebhookState:
    """Delivery state of the webhook or of one service of Apprise: sent alerts and alerts to send.

    Args:
        alert_state: The current state of all alerts.
        silenced: Returns the ids of alerts that are not sent.
    """

    def __init__(self, alert_state: AlertState, silenced: SilencedIds) -> None:
        self._alert_state, self._silenced_at = alert_state, silenced
        self._sent_alerts: dict[_Episode, Alert] = {}
        self._unmatched_resolutions: dict[str, Alert] = {}
        alert_state.listeners.append(self._on_change)

    def _on_change(self, was: Alert | None, alert: Alert) -> None:
        if alert.phase == "resolved" and alert.fired_at and was is None:
            # Kafka has compacted its firing record away: it was sent before a restart.
            self._unmatched_resolutions[alert.id] = alert

    def resume(self, past: AlertState, news: Iterable[Alert], moment: ClockReading) -> None:
        """Restore what was sent before a restart.

        Args:
            past: The alerts at the committed offsets. What fires there was sent, unless it was inhibited or silenced.
            news: The changes since then, in order.
            moment: The present.
        """
        for alert in WebhookState(past, self._silenced_at).next_alerts(moment):
            self.mark_sent(alert)
        for alert in news:
            self._on_change(past.alerts.get(alert.id), alert)
            past.update_alert(alert)

    def next_alerts(self, moment: ClockReading) -> list[Alert]:
        """Return the alerts to send, in their order."""
        firing = {_episode(alert): alert for alert in self._alert_state.firing_alerts()}
        ended = [self._as_resolved(sent) for episode, sent in self._sent_alerts.items() if episode not in firing]
        silenced = self._silenced_at(moment.now_s)
        fresh = [
            alert
            for episode, alert in firing.items()
            if episode not in self._sent_alerts
            and alert.id not in silenced
            and not self._alert_state.is_inhibited(alert, moment.now_ms)
        ]
        found = [*self._unmatched_resolutions.values(), *ended, *fresh]
        return sorted(found, key=lambda alert: (alert.changed_at, alert.id))

    def mark_sent(self, alert: Alert) -> None:
        """Record that an alert was sent."""
        self._unmatched_resolutions.pop(alert.id, None)
        if alert.phase == "firing":
            self._sent_alerts[_episode(alert)] = alert
        else:
            self._sent_alerts.pop(_episode(alert), None)

    def _as_resolved(self, sent: Alert) -> Alert:
        now = self._alert_state.alerts[sent.id]
        if now.phase == "resolved" and now.fired_at == sent.fired_at:
            return now
        # It fires again, or is about to. The record of its resolution in between is compacted away.
        return replace(sent, phase="resolved", resolved_at=now.changed_at, changed_at=now.changed_at)


class AlertmanagerState:
    """Delivery state of one Alertmanager: sent alerts, the next batch, and its time.

    Args:
        repeat_s: Seconds after which firing alerts are sent again.
        alert_state: The current state of all alerts.
        silenced: Returns the ids of alerts that are not sent.
    """

    def __init__(self, repeat_s: float, alert_state: AlertState, silenced: SilencedIds) -> None:
        self._repeat_s, self._alert_state, self._silenced_at = repeat_s, alert_state, silenced
        self._sent_episodes: set[_Episode] = set()
        self._unsent_resolutions: dict[str, tuple[Alert, Alert]] = {}
        self._due_at_s = float("-inf")
        # 0 while requests succeed.
        self._pause_s = 0.0
        alert_state.listeners.append(self._on_change)

    def _on_change(self, was: Alert | None, alert: Alert) -> None:
        self._unsent_resolutions.pop(alert.id, None)
        if alert.phase == "resolved" and was is not None and was.phase == "firing":
            self._unsent_resolutions[alert.id] = was, alert

    def next_alerts(self, moment: ClockReading) -> list[Alert]:
        """Return the alerts to send now: those that fire, and those that are resolved; none before their time.

        News is sent at once, the rest every `repeat_s`. After a failure, everything is sent after a pause.
        """
        silenced, sent = self._silenced_at(moment.now_s), self._sent_episodes

        def is_explained(alert: Alert) -> bool:
            return self._alert_state.is_explained_by_cause(alert, moment.now_ms)

        audible = [alert for alert in self._alert_state.firing_alerts() if alert.id not in silenced]
        firing = [alert for alert in audible if not is_explained(alert)]
        # While it fires in Alertmanager, it would inhibit the alert of the phone that explains it.
        replaced = [
            replace(alert, phase="resolved", resolved_at=moment.now_ms)
            for alert in audible
            if _episode(alert) in sent and is_explained(alert)
        ]
        self._unsent_resolutions = {
            id_: (was, alert)
            for id_, (was, alert) in self._unsent_resolutions.items()
            if _episode(was) in sent or not (id_ in silenced or is_explained(was))
        }
        resolved = [alert for _, alert in self._unsent_resolutions.values()] + replaced
        # News is sent at once, unless the last request failed.
        is_news = bool(resolved) or any(_episode(alert) not in sent for alert in firing)
        if moment.elapsed_s >= self._due_at_s or (is_news and not self._pause_s):
            return firing + resolved
        return []

    def mark_sent(self, alerts: Sequence[Alert], moment: ClockReading) -> None:
        """Record that alerts were sent at a moment."""
        self._sent_episodes = {_episode(alert) for alert in alerts if alert.phase == "firing"}
        # An alert that was resolved during the request is not among them.
        sent = {alert.id: alert for alert in alerts}
        self._unsent_resolutions = {
            id_: (was, alert) for id_, (was, alert) in self._unsent_resolutions.items() if sent.get(id_) is not alert
        }
        self._due_at_s, self._pause_s = moment.elapsed_s + self._repeat_s, 0.0

    def mark_failed(self, moment: ClockReading) -> float:
        """Record that a batch of a moment failed; return the pause before the next one, in seconds."""
        self._pause_s = min(max(self._pause_s * 2, FIRST_PAUSE_S), self._repeat_s)
        self._due_at_s = moment.elapsed_s + self._pause_s
        return self._pause_s

    def poll_timeout_s(self, moment: ClockReading) -> float:
        """Return the seconds to wait for changes of alerts before the next batch."""
        left_s = self._due_at_s - moment.elapsed_s
        return min(left_s, POLL_S) if left_s > 0 else POLL_S
