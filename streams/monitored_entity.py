"""A channel, a device or a source: it observes the ends of its messages and returns the changes of its alerts."""

from collections import Counter
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import msgspec

from core.alerts import FAILURE_RATIO, NOT_PERMITTED, Alert, ChannelFailures, Phase, Scope, alert_id, encode_alert
from core.records import message_key
from core.topics import ALERTS
from gateway.statuses import Outcome
from streams.change_detector import ChangeDetector, DetectorPhase
from streams.failure_baseline import DetectorPolicy
from streams.processor import OutputRecord

_NOT_PERMITTED: Final = Outcome.NOT_PERMITTED.value
_SAMPLES: Final = 5
# Failures. Hardly any alert needs more before it fires.
_KEPT: Final = 20
_DAY_MS: Final = 86_400_000


class AttemptEnd(NamedTuple):
    """The first end of an attempt.

    Attributes:
        sms_id: Id of the message.
        status_id: The status that decided it.
        outcome: Outcome of the attempt.
        at: Time of the end, in milliseconds.
    """

    sms_id: int
    status_id: int
    outcome: str
    at: int


class DeniedStreak(msgspec.Struct, gc=False):
    """Denied messages since the last permitted one: time of the first, number, status ids and some ids of messages."""

    since: int
    count: int
    errors: dict[str, int]
    samples: list[int]


class DetectorState(msgspec.Struct, gc=False):
    """State of one monitored entity.

    Attributes:
        detector: Detector of its ratio of failures.
        fired_at: Time when its alert fired, in milliseconds; None if it does not fire.
        accepted_at: Time when a rise last became the new normal, in milliseconds; 0 if none did.
        recent: Messages that ended. Their weight halves each day.
        recent_at: Time to which `recent` refers, in milliseconds.
        failures: sms_id and status id of the latest failures that the detector counts.
        origins: Device, channel and the channel's share of the source's messages, for each of the latest failures.
            A channel has none.
        errors: Number of failures by status id, of the alert that fires.
        denied: Streak of denied messages; None if the last message was permitted.
    """

    detector: ChangeDetector = msgspec.field(default_factory=ChangeDetector)
    fired_at: int | None = None
    accepted_at: int = 0
    recent: float = 0.0
    recent_at: int = 0
    failures: list[tuple[int, int]] = msgspec.field(default_factory=list)
    origins: list[tuple[int | None, int | None, float]] = msgspec.field(default_factory=list)
    errors: dict[str, int] = msgspec.field(default_factory=dict)
    denied: DeniedStreak | None = None

    def add_recent(self, at: int) -> None:
        """Count a message that ended at a time in milliseconds."""
        if at > self.recent_at:
            self.recent *= 0.5 ** ((at - self.recent_at) / _DAY_MS)
            self.recent_at = at
        self.recent += 1


@dataclass(slots=True, eq=False)
class MonitoredEntity:
    """A channel, a device or a source, with the state of its detector.

    Args:
        state: Its stored state.
        policy: Settings of detectors.
        source: Gateway account.
        place: Device and channel: both of a channel, one of a device, none of a source.
        fleet: Its source; None for a source.
        part: The partition of devices, for a source.
    """

    state: DetectorState
    policy: DetectorPolicy
    source: str
    place: tuple[int | None, ...] = ()
    fleet: "MonitoredEntity | None" = None
    part: int = 0

    @property
    def is_firing(self) -> bool:
        """Whether the alert on its ratio of failures fires."""
        return self.state.detector.phase == "firing"

    @property
    def share(self) -> float:
        """Its part of the messages of its source, of the last days, 0 to 1."""
        return min(self.state.recent / self.fleet.state.recent, 1.0) if self.fleet is not None else 1.0

    def observe_end(
        self, end: AttemptEnd, failed: bool, channel: "MonitoredEntity | None" = None
    ) -> list[OutputRecord]:
        """Add the end of a message to the detector; return the alert if it changed.

        Args:
            end: The end.
            failed: Whether it is a failure.
            channel: The channel of the message, if the entity is a wider one.
        """
        state = self.state
        detector, before = state.detector, state.detector.phase
        # The end of an alert resets these, and its record reports them.
        count, failures = detector.count + 1, detector.failures + failed
        baseline = self._describe_baseline() if before == "firing" else {}
        fleet = None if self.fleet is None else self.fleet.state.detector
        phase = detector.observe_outcome(failed, end.at, self.policy, fleet)
        if failed:
            state.failures = [*state.failures, (end.sms_id, end.status_id)][-_KEPT:]
            if channel is not None:
                device_id, channel_id = channel.place
                state.origins = [*state.origins, (device_id, channel_id, channel.share)][-_KEPT:]
            if before == "firing":
                _count_error(state.errors, end.status_id)
        if phase == before:
            if not detector.count and state.failures and phase != "learning":
                state.failures, state.origins = [], []
            return []
        return self._report_change(before, count, failures, baseline, end.at)

    def accept_rise(self, at: int) -> list[OutputRecord]:
        """End the alert on failures at a time in milliseconds: the messages since it began become the baseline."""
        detector = self.state.detector
        count, failures, baseline = detector.count, detector.failures, self._describe_baseline()
        detector.accept_rise(self.policy, None if self.fleet is None else self.fleet.state.detector)
        return self._report_change("firing", count, failures, baseline, at)

    def _report_change(
        self, before: DetectorPhase, count: int, failures: int, baseline: dict[str, Any], at: int
    ) -> list[OutputRecord]:
        """Return the record of a change of the detector's phase.

        Args:
            before: The phase before.
            count: Messages since the rise began, the last one among them.
            failures: Those of them that failed.
            baseline: The baseline of an alert that fired until now; empty without one.
            at: Time of the change, in milliseconds.
        """
        state, detector = self.state, self.state.detector
        phase: Phase = "resolved" if detector.phase == "quiet" else detector.phase
        resolution = detector.resolution if before == "firing" else ""
        if phase == "firing":
            state.fired_at = at
        if phase in {"pending", "firing"}:
            count, failures = detector.count, detector.failures
            state.failures, state.origins = state.failures[-failures:], state.origins[-failures:]
            state.errors = Counter(str(status_id) for _, status_id in state.failures)
        if resolution == "new_normal":
            state.accepted_at = at
        output = self._build_ratio_record(phase, at, count, failures, baseline or self._describe_baseline(), resolution)
        if phase == "resolved":
            state.fired_at, state.errors, state.failures, state.origins = None, {}, [], []
        return [output]

    def repeat_alert(self, at: int) -> OutputRecord:
        """Return the record of the alert that fires, with the evidence at a time in milliseconds."""
        detector = self.state.detector
        return self._build_ratio_record("firing", at, detector.count, detector.failures, self._describe_baseline())

    def _build_ratio_record(
        self, phase: Phase, at: int, count: int, failures: int, baseline: dict[str, Any], resolution: str = ""
    ) -> OutputRecord:
        """Return the record of the alert on the ratio of failures."""
        state = self.state
        evidence = {"since": state.detector.since, "count": count, "failures": failures, "errors": state.errors}
        evidence |= {"by_channel": _count_by_channel(state.origins), "resolution": resolution, **baseline}
        samples = [sms_id for sms_id, _ in state.failures]
        return self._build_alert_record(FAILURE_RATIO, phase, at, state.fired_at, samples, evidence)

    def _describe_baseline(self) -> dict[str, Any]:
        detector = self.state.detector
        baseline: float | None = detector.baseline_ratio
        if detector.known < self.policy.learn_messages:
            # Its own messages are too few. It is compared with its fleet, if the ratio of that is known.
            baseline = detector.usual or None
        return {"baseline": baseline, "known": round(detector.known), "bound": detector.bound}

    def is_within_accepted(self, wider: "MonitoredEntity") -> bool:
        """Whether its alert fires, and a wider entity has accepted the rise since it fired."""
        return self.is_firing and wider.state.accepted_at > (self.state.fired_at or 0)

    def observe_permission(self, end: AttemptEnd) -> list[OutputRecord]:
        """Add the end of a message to the streak of denied messages; return the alert if it changed."""
        state, denied = self.state, self.state.denied
        if end.outcome == _NOT_PERMITTED:
            if denied is None:
                denied = state.denied = DeniedStreak(end.at, 0, {}, [])
            denied.count += 1
            _count_error(denied.errors, end.status_id)
            denied.samples = [*denied.samples, end.sms_id][-_SAMPLES:]
            if denied.count > 1:
                return []
        elif denied is None:
            return []
        else:
            state.denied = None
        phase: Phase = "firing" if state.denied else "resolved"
        evidence = {"since": denied.since, "count": denied.count, "failures": denied.count, "errors": denied.errors}
        return [self._build_alert_record(NOT_PERMITTED, phase, end.at, denied.since, denied.samples, evidence)]

    def _build_alert_record(
        self, kind: str, phase: Phase, at: int, fired_at: int | None, samples: list[int], evidence: dict[str, Any]
    ) -> OutputRecord:
        scope: Scope = ("source", "device", "channel")[len(self.place)]
        device_id, channel_id = (*self.place, None, None)[:2]
        alert = Alert(
            id=alert_id(kind, self.source, *self.place, part=self.part),
            kind=kind,
            phase=phase,
            scope=scope,
            source=self.source,
            device_id=device_id,
            channel_id=channel_id,
            changed_at=at,
            fired_at=fired_at,
            resolved_at=at if phase == "resolved" else None,
            samples=[message_key(self.source, sms_id).decode() for sms_id in samples[-_SAMPLES:]],
            share=self.share,
            budget_days=self.policy.budget_days,
            **evidence,
        )
        return OutputRecord(ALERTS, alert.id.encode(), encode_alert(alert))


def _count_by_channel(origins: list[tuple[int | None, int | None, float]]) -> list[ChannelFailures]:
    """Count failures by channel; the share of a channel is that at its last failure."""
    failures = Counter((device_id, channel_id) for device_id, channel_id, _ in origins)
    shares = {(device_id, channel_id): share for device_id, channel_id, share in origins}
    return [ChannelFailures(*key, count, shares[key]) for key, count in failures.items()]


def _count_error(errors: dict[str, int], status_id: int) -> None:
    errors[str(status_id)] = errors.get(str(status_id), 0) + 1
