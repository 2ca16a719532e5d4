"""A channel, a device or a source: it observes the ends of its messages, and reports changes of its alerts."""

from typing import Any, Final

from core.alerts import FAILURE_RATIO, NOT_PERMITTED, Alert, ChannelFailures, Phase, Scope, alert_id, encode_alert
from core.records import message_key
from core.topics import ALERTS
from gateway.statuses import Outcome
from streams.change_detector import DetectorPhase
from streams.detector_policy import DetectorPolicy
from streams.detector_state import DeniedStreak, DetectorState, MessageEnd
from streams.processor import OutputRecord

_NOT_PERMITTED: Final = Outcome.NOT_PERMITTED.value
_SAMPLES: Final = 5
_KEPT: Final = 20  # failures; hardly any alert needs more before it fires


class MonitoredEntity:
    """A channel, a device or a source, and its watch.

    Args:
        state: What is known of it.
        source: Gateway account.
        device_and_channel: Device and channel, as far as it is one.
        part: The partition of devices.
    """

    def __init__(self, state: DetectorState, source: str, *device_and_channel: int | None, part: int = 0) -> None:
        self.state = state
        self._source, self._device_and_channel, self._part = source, device_and_channel, part

    @property
    def is_firing(self) -> bool:
        """Whether its ratio of failures is told to be too high."""
        return self.state.detector.phase == "firing"

    def observe_end(
        self,
        end: MessageEnd,
        failed: bool,
        policy: DetectorPolicy,
        fleet: "MonitoredEntity",
        channel: "MonitoredEntity | None" = None,
    ) -> list[OutputRecord]:
        """Take the end of a message; return what is to be told.

        Args:
            end: The end.
            failed: Whether it is a failure.
            policy: Settings of detectors.
            fleet: The source, which is its own.
            channel: The channel of the message, if the unit is a wider one.
        """
        state = self.state
        detector, before = state.detector, state.detector.phase
        is_fleet = fleet.state is state
        # What the end of an alert drops is still told of it.
        count, failures = detector.count + 1, detector.failures + failed
        judged = self._describe_baseline(policy) if before == "firing" else {}
        phase = detector.observe_outcome(failed, end.at, policy, None if is_fleet else fleet.state.detector)
        if failed:
            state.failures = [*state.failures, (end.sms_id, end.status_id)][-_KEPT:]
            if channel is not None:
                state.origins = [*state.origins, channel.failure_origin(fleet)][-_KEPT:]
            if before == "firing":
                _count_error(state.errors, end.status_id)
        if phase == before:
            if not detector.count and state.failures and phase != "learning":
                state.failures, state.origins = [], []
            return []
        return self._report_change(before, count, failures, judged, end.at, policy, fleet)

    def accept_rise(self, at: int, policy: DetectorPolicy, fleet: "MonitoredEntity") -> list[OutputRecord]:
        """End the alert on failures that fires: what was seen since is the new normal.

        Args:
            at: When, in milliseconds.
            policy: Settings of detectors.
            fleet: The source.
        """
        detector = self.state.detector
        count, failures, judged = detector.count, detector.failures, self._describe_baseline(policy)
        detector.accept_rise(policy, fleet.state.detector)
        return self._report_change("firing", count, failures, judged, at, policy, fleet)

    def _report_change(
        self,
        before: DetectorPhase,
        count: int,
        failures: int,
        judged: dict[str, Any],
        at: int,
        policy: DetectorPolicy,
        fleet: "MonitoredEntity",
    ) -> list[OutputRecord]:
        """Return what is told when the detector's phase has changed.

        Args:
            before: The phase before.
            count: Messages since the rise began, the last one among them.
            failures: Those of them that failed.
            judged: What an alert that fired was judged by.
            at: When the phase changed, in milliseconds.
            policy: Settings of detectors.
            fleet: The source.
        """
        state, detector, phase = self.state, self.state.detector, self.state.detector.phase
        reported_phase: Phase = "resolved" if phase == "quiet" else phase
        resolution = ""
        if reported_phase == "firing":
            state.fired_at = at
        if reported_phase in {"pending", "firing"}:
            count, failures = detector.count, detector.failures
            state.failures, state.origins, state.errors = state.failures[-failures:], state.origins[-failures:], {}
            for _, status_id in state.failures:
                _count_error(state.errors, status_id)
        if before == "firing":
            resolution = detector.resolution
            if resolution == "new_normal":
                state.accepted_at = at
        baseline = judged or self._describe_baseline(policy)
        output = self._build_ratio_record(reported_phase, at, count, failures, policy, fleet, baseline, resolution)
        if reported_phase == "resolved":
            state.fired_at, state.errors, state.failures, state.origins = None, {}, [], []
        return [output]

    def repeat_alert(self, at: int, policy: DetectorPolicy, fleet: "MonitoredEntity") -> OutputRecord:
        """Return the alert that fires, with the evidence of now.

        Args:
            at: When, in milliseconds.
            policy: Settings of detectors.
            fleet: The source.
        """
        detector, baseline = self.state.detector, self._describe_baseline(policy)
        return self._build_ratio_record("firing", at, detector.count, detector.failures, policy, fleet, baseline)

    def _build_ratio_record(
        self,
        phase: Phase,
        at: int,
        count: int,
        failures: int,
        policy: DetectorPolicy,
        fleet: "MonitoredEntity",
        baseline: dict[str, Any],
        resolution: str = "",
    ) -> OutputRecord:
        """Return the record of the alert on the ratio of failures."""
        state, detector = self.state, self.state.detector
        samples = [sms_id for sms_id, _ in state.failures]
        evidence = {
            "since": detector.since,
            "count": count,
            "failures": failures,
            "errors": state.errors,
            "by_channel": _count_by_channel(state.origins),
            "resolution": resolution,
        } | baseline
        return self._build_alert_record(
            FAILURE_RATIO, phase, at, state.fired_at, samples, evidence, policy.budget_days, fleet
        )

    def _describe_baseline(self, policy: DetectorPolicy) -> dict[str, Any]:
        """Return what the ratio of failures is judged by."""
        detector = self.state.detector
        baseline: float | None = detector.baseline_ratio
        if detector.known < policy.learn_messages:
            # It has learnt too little of its own: its fleet's is what it is compared with, if that is known.
            baseline = detector.usual or None
        return {"baseline": baseline, "known": round(detector.known), "bound": detector.bound}

    def is_within_accepted(self, wider: "MonitoredEntity") -> bool:
        """Whether its alert fires, and a wider unit has accepted the rise since it fired."""
        return self.is_firing and wider.state.accepted_at > (self.state.fired_at or 0)

    def observe_permission(self, end: MessageEnd, budget_days: float, fleet: "MonitoredEntity") -> list[OutputRecord]:
        """Take the end of a message as to whether it was permitted; return what is to be told."""
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
        reported_phase: Phase = "firing" if state.denied else "resolved"
        evidence = {
            "since": denied.since,
            "count": denied.count,
            "failures": denied.count,
            "baseline": None,
            "known": 0,
            "bound": None,
            "errors": denied.errors,
        }
        return [
            self._build_alert_record(
                NOT_PERMITTED, reported_phase, end.at, denied.since, denied.samples, evidence, budget_days, fleet
            )
        ]

    def failure_origin(self, fleet: "MonitoredEntity") -> tuple[int | None, int | None, float]:
        """Return device, channel and share of the source's messages, of a channel."""
        device_id, channel_id = self._device_and_channel
        return device_id, channel_id, self.share_of(fleet)

    def share_of(self, fleet: "MonitoredEntity") -> float:
        """Return its part of the messages of its source, of the last days, 0 to 1."""
        return min(self.state.recent / fleet.state.recent, 1.0)

    def _build_alert_record(
        self,
        kind: str,
        phase: Phase,
        at: int,
        fired_at: int | None,
        samples: list[int],
        evidence: dict[str, Any],
        budget_days: float,
        fleet: "MonitoredEntity",
    ) -> OutputRecord:
        scope: Scope = ("source", "device", "channel")[len(self._device_and_channel)]
        device_id, channel_id = (*self._device_and_channel, None, None)[:2]
        alert = Alert(
            id=alert_id(kind, self._source, *self._device_and_channel, part=self._part),
            kind=kind,
            phase=phase,
            scope=scope,
            source=self._source,
            device_id=device_id,
            channel_id=channel_id,
            changed_at=at,
            fired_at=fired_at,
            resolved_at=at if phase == "resolved" else None,
            samples=[message_key(self._source, sms_id).decode() for sms_id in samples[-_SAMPLES:]],
            share=self.share_of(fleet),
            budget_days=budget_days,
            **evidence,
        )
        return OutputRecord(ALERTS, alert.id.encode(), encode_alert(alert))


def _count_by_channel(origins: list[tuple[int | None, int | None, float]]) -> list[ChannelFailures]:
    """Count failures by channel; the share of a channel is that at its last failure."""
    failures: dict[tuple[int | None, int | None], int] = {}
    shares: dict[tuple[int | None, int | None], float] = {}
    for device_id, channel_id, share in origins:
        key = device_id, channel_id
        failures[key] = failures.get(key, 0) + 1
        shares[key] = share
    return [ChannelFailures(*key, count, shares[key]) for key, count in failures.items()]


def _count_error(errors: dict[str, int], status_id: int) -> None:
    errors[str(status_id)] = errors.get(str(status_id), 0) + 1
