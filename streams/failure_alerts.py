"""Alerts: what the ends of messages say about a channel, its device and its source, told on `sms.alerts` on change.

Part of the fold of `sms.devices`: what it knows is in those states, and what it tells is in their transaction. So
after a replay or a recovery it tells nothing twice, and forgets nothing.

A failure of one device is no failure of its source: while a channel's alert fires, its messages say nothing about the
source, unless the source's own fires already.

A rise that stays ends as the new normal once. A wider unit that accepts it does so for the narrower ones within, and a
source takes an accepted unit back into its baseline, so the same rise is not found again one level up or down.
"""

from typing import Any, Final

import msgspec

from core.alerts import FAILURE_RATIO, NOT_PERMITTED, Alert, ChannelFailures, Phase, Scope, alert_id, encode_alert
from core.records import message_key
from core.topics import ALERTS
from gateway.statuses import FAILURES, Outcome
from streams.change_detector import ChangeDetector, DetectorPolicy
from streams.change_detector import Phase as DetectorPhase
from streams.processor import OutputRecord

_FAILURES: Final = frozenset(outcome.value for outcome in FAILURES)
_NOT_PERMITTED: Final = Outcome.NOT_PERMITTED.value
_EXPIRED: Final = Outcome.EXPIRED.value
_SAMPLES: Final = 5
_KEPT: Final = 20  # failures; hardly any alert needs more before it fires
_DAY_MS: Final = 86_400_000


class MessageEnd(msgspec.Struct, array_like=True, gc=False):
    """The end of a message, or another end of it.

    Attributes:
        sms_id: The message.
        status_id: Status that decided it.
        outcome: What became of it.
        at: When, in milliseconds.
        again: Whether it had ended before, otherwise than by expiring.
    """

    sms_id: int
    status_id: int
    outcome: str
    at: int
    again: bool = False


class DeniedStreak(msgspec.Struct, gc=False):
    """Messages that were not permitted since the last one that was: how many, since when, and some of their ids."""

    since: int
    count: int
    errors: dict[str, int]
    samples: list[int]


class DetectorState(msgspec.Struct, gc=False):
    """What is known of one unit.

    Attributes:
        detector: Of its ratio of failures.
        fired_at: When its alert fired, in milliseconds; None if none is on.
        accepted_at: When a rise became the new normal last, in milliseconds; 0 if none did.
        recent: Messages that ended: those of a day ago count half.
        recent_at: When that was, in milliseconds.
        failures: sms_id and status id of the latest of the detector's failures.
        origins: Device, channel and the channel's share of the source's messages, for each of the latest failures.
            A channel keeps none. States of earlier releases have none, so there can be fewer than failures.
        errors: How many failures of the alert that fires had which status id.
        denied: None if the last message was permitted.
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

    def add_recent(self, at: int, count: int) -> None:
        """Count messages, the last of which ended at a time in milliseconds."""
        if at > self.recent_at:
            self.recent *= 0.5 ** ((at - self.recent_at) / _DAY_MS)
            self.recent_at = at
        self.recent += count


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


def update_detectors(
    ends: list[MessageEnd],
    channel: MonitoredEntity,
    device: MonitoredEntity | None,
    source: MonitoredEntity,
    policy: DetectorPolicy,
) -> list[OutputRecord]:
    """Take ends of messages of one channel; return what is to be told.

    Each message counts once: not when it comes to another end, and not when it expires, which is no report.

    Args:
        ends: The ends, in their order.
        channel: The channel.
        device: Its device, if that has several channels.
        source: Its source.
        policy: Settings of the detectors of all units.
    """
    ends = [end for end in ends if not end.again and end.outcome != _EXPIRED]
    if not ends:
        return []
    outputs: list[OutputRecord] = []
    narrow = [channel] if device is None else [device, channel]
    wider = [source] if device is None else [device, source]
    for unit in (*narrow, source):
        unit.state.add_recent(ends[-1].at, len(ends))
    for end in ends:
        failed = end.outcome in _FAILURES
        before = [unit.is_firing for unit in narrow]
        were_firing = [unit for unit in wider if unit.is_firing]
        if failed or channel.state.denied is not None:
            outputs += channel.observe_permission(end, policy.budget_days, source)
        outputs += channel.observe_end(end, failed, policy, source)
        if device is not None:
            outputs += device.observe_end(end, failed, policy, source, channel)
        if source.is_firing or not any(unit.is_firing for unit in narrow):
            outputs += source.observe_end(end, failed, policy, source, channel)
        if any(before):
            accepted = next((unit for unit in narrow if unit.state.accepted_at == end.at), None)
            outputs += _accept_within(end.at, channel, device, source, policy)
            if accepted is not None and not any(unit.is_firing for unit in narrow):
                _include_in_baseline(accepted, source, policy)
        if before != [unit.is_firing for unit in narrow]:
            # Whether a phone explains them can be said now, or no longer.
            outputs += [unit.repeat_alert(end.at, policy, source) for unit in were_firing if unit.is_firing]
    return outputs


def _accept_within(
    at: int, channel: MonitoredEntity, device: MonitoredEntity | None, source: MonitoredEntity, policy: DetectorPolicy
) -> list[OutputRecord]:
    """Accept the rise of narrower units when a wider one has accepted it since they fired; return what is told."""
    outputs: list[OutputRecord] = []
    if device is not None and device.is_within_accepted(source):
        outputs += device.accept_rise(at, policy, source)
    if channel.is_within_accepted(source) or (device is not None and channel.is_within_accepted(device)):
        outputs += channel.accept_rise(at, policy, source)
    return outputs


def _include_in_baseline(unit: MonitoredEntity, source: MonitoredEntity, policy: DetectorPolicy) -> None:
    """Take a unit whose rise has just become the new normal back into the baseline of its source."""
    source.state.detector.include_unit(unit.state.detector.accepted, unit.share_of(source), policy)
