"""Alerts: what the ends of messages say about a channel, its device and its source, told on `sms.alerts` on change.

Part of the fold of `sms.devices`: what it knows is in those states, and what it tells is in their transaction. So
after a replay or a recovery it tells nothing twice, and forgets nothing.

A failure of one device is no failure of its source: while a channel's alert fires, its messages say nothing about the
source, unless the source's own fires already.
"""

from typing import Any, Final

import msgspec

from gateway.alerts import FAILURE_RATIO, NOT_PERMITTED, Alert, ChannelFailures, Phase, Scope, alert_id, encode
from gateway.records import message_key
from gateway.statuses import FAILURES, Outcome
from gateway.topics import ALERTS
from streams.detector import DEFAULT_RATIO, Detector
from streams.fold import Output

_FAILURES: Final = frozenset(outcome.value for outcome in FAILURES)
_NOT_PERMITTED: Final = Outcome.NOT_PERMITTED.value
_EXPIRED: Final = Outcome.EXPIRED.value
_SAMPLES: Final = 5
_KEPT: Final = 20  # failures; hardly any alert needs more before it fires
_DAY_MS: Final = 86_400_000
_FLEET_STRENGTH: Final = 100.0  # messages that the default counts for in a fleet's ratio


class End(msgspec.Struct, array_like=True, gc=False):
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


class Denied(msgspec.Struct, gc=False):
    """Messages that were not permitted since the last one that was: how many, since when, and some of their ids."""

    since: int
    count: int
    errors: dict[str, int]
    samples: list[int]


class Watch(msgspec.Struct, gc=False):
    """What is known of one unit.

    Attributes:
        detector: Of its ratio of failures.
        fired_at: When its alert fired, in milliseconds; None if none is on.
        recent: Messages that ended: those of a day ago count half.
        recent_at: When that was, in milliseconds.
        failures: sms_id and status id of the latest of the detector's failures.
        origins: Device, channel and the channel's share of the source's messages, for each of the latest failures.
            A channel keeps none. States of earlier releases have none, so there can be fewer than failures.
        errors: How many failures of the alert that fires had which status id.
        denied: None if the last message was permitted.
    """

    detector: Detector = msgspec.field(default_factory=Detector)
    fired_at: int | None = None
    recent: float = 0.0
    recent_at: int = 0
    failures: list[tuple[int, int]] = msgspec.field(default_factory=list)
    origins: list[tuple[int | None, int | None, float]] = msgspec.field(default_factory=list)
    errors: dict[str, int] = msgspec.field(default_factory=dict)
    denied: Denied | None = None

    def seen(self, at: int, count: int) -> None:
        """Count messages, the last of which ended at a time in milliseconds."""
        if at > self.recent_at:
            self.recent *= 0.5 ** ((at - self.recent_at) / _DAY_MS)
            self.recent_at = at
        self.recent += count


class Unit:
    """A channel, a device or a source, and its watch.

    Args:
        watch: What is known of it.
        source: Gateway account.
        of: Device and channel, as far as it is one.
        part: The partition of devices.
    """

    def __init__(self, watch: Watch, source: str, *of: int | None, part: int = 0) -> None:
        self.watch = watch
        self._source, self._of, self._part = source, of, part

    @property
    def is_firing(self) -> bool:
        """Whether its ratio of failures is told to be too high."""
        return self.watch.detector.phase == "firing"

    def ended(
        self, end: End, failed: bool, budget_days: float, fleet: "Unit", usual: float, channel: "Unit | None" = None
    ) -> list[Output]:
        """Take the end of a message; return what is to be told.

        Args:
            end: The end.
            failed: Whether it is a failure.
            budget_days: Days of one false alarm, on average.
            fleet: The source.
            usual: The ratio of failures of what it belongs to.
            channel: The channel of the message, if the unit is a wider one.
        """
        watch = self.watch
        detector, before = watch.detector, watch.detector.phase
        # What the end of an alert drops is still told of it.
        count, failures = detector.count + 1, detector.failures + failed
        phase = detector.take(failed, end.at, budget_days, usual)
        if failed:
            watch.failures = [*watch.failures, (end.sms_id, end.status_id)][-_KEPT:]
            if channel is not None:
                watch.origins = [*watch.origins, channel.origin(fleet)][-_KEPT:]
            if before == "firing":
                _count(watch.errors, end.status_id)
        if phase == before:
            if not detector.count and watch.failures:
                watch.failures, watch.origins = [], []
            return []
        told: Phase = "resolved" if phase == "quiet" else phase
        if told == "firing":
            watch.fired_at = end.at
        if told != "resolved":
            count, failures = detector.count, detector.failures
            watch.failures, watch.origins, watch.errors = watch.failures[-failures:], watch.origins[-failures:], {}
            for _, status_id in watch.failures:
                _count(watch.errors, status_id)
        output = self._told_of_ratio(told, end.at, count, failures, budget_days, fleet)
        if told == "resolved":
            watch.fired_at, watch.errors, watch.failures, watch.origins = None, {}, [], []
        return [output]

    def repeated(self, at: int, budget_days: float, fleet: "Unit") -> Output:
        """Return the alert that fires, with the evidence of now.

        Args:
            at: When, in milliseconds.
            budget_days: Days of one false alarm, on average.
            fleet: The source.
        """
        detector = self.watch.detector
        return self._told_of_ratio("firing", at, detector.count, detector.failures, budget_days, fleet)

    def _told_of_ratio(
        self, phase: Phase, at: int, count: int, failures: int, budget_days: float, fleet: "Unit"
    ) -> Output:
        watch, detector = self.watch, self.watch.detector
        samples = [sms_id for sms_id, _ in watch.failures]
        evidence = {
            "since": detector.since,
            "count": count,
            "failures": failures,
            "baseline": detector.baseline if detector.known else None,
            "known": round(detector.known),
            "bound": detector.bound,
            "errors": watch.errors,
            "by_channel": _by_channel(watch.origins),
        }
        return self._told(FAILURE_RATIO, phase, at, watch.fired_at, samples, evidence, budget_days, fleet)

    def permitted(self, end: End, budget_days: float, fleet: "Unit") -> list[Output]:
        """Take the end of a message as to whether it was permitted; return what is to be told."""
        watch, denied = self.watch, self.watch.denied
        if end.outcome == _NOT_PERMITTED:
            if denied is None:
                denied = watch.denied = Denied(end.at, 0, {}, [])
            denied.count += 1
            _count(denied.errors, end.status_id)
            denied.samples = [*denied.samples, end.sms_id][-_SAMPLES:]
            if denied.count > 1:
                return []
        elif denied is None:
            return []
        else:
            watch.denied = None
        told: Phase = "firing" if watch.denied else "resolved"
        evidence = {
            "since": denied.since,
            "count": denied.count,
            "failures": denied.count,
            "baseline": None,
            "known": 0,
            "bound": None,
            "errors": denied.errors,
        }
        return [self._told(NOT_PERMITTED, told, end.at, denied.since, denied.samples, evidence, budget_days, fleet)]

    def origin(self, fleet: "Unit") -> tuple[int | None, int | None, float]:
        """Return device, channel and share of the source's messages, of a channel."""
        device_id, channel_id = self._of
        return device_id, channel_id, self._share(fleet)

    def _share(self, fleet: "Unit") -> float:
        return min(self.watch.recent / fleet.watch.recent, 1.0)

    @property
    def ratio(self) -> float:
        """The usual ratio of failures of a fleet, of which a short past tells little."""
        known, failed = self.watch.detector.known, self.watch.detector.failed
        return (_FLEET_STRENGTH * DEFAULT_RATIO + failed) / (_FLEET_STRENGTH + known)

    def _told(
        self,
        kind: str,
        phase: Phase,
        at: int,
        fired_at: int | None,
        samples: list[int],
        evidence: dict[str, Any],
        budget_days: float,
        fleet: "Unit",
    ) -> Output:
        scope: Scope = ("source", "device", "channel")[len(self._of)]
        device_id, channel_id = (*self._of, None, None)[:2]
        alert = Alert(
            id=alert_id(kind, self._source, *self._of, part=self._part),
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
            share=self._share(fleet),
            budget_days=budget_days,
            **evidence,
        )
        return Output(ALERTS, alert.id.encode(), encode(alert))


def _by_channel(origins: list[tuple[int | None, int | None, float]]) -> list[ChannelFailures]:
    """Count failures by channel; the share of a channel is that at its last failure."""
    failures: dict[tuple[int | None, int | None], int] = {}
    shares: dict[tuple[int | None, int | None], float] = {}
    for device_id, channel_id, share in origins:
        key = device_id, channel_id
        failures[key] = failures.get(key, 0) + 1
        shares[key] = share
    return [ChannelFailures(*key, count, shares[key]) for key, count in failures.items()]


def _count(errors: dict[str, int], status_id: int) -> None:
    errors[str(status_id)] = errors.get(str(status_id), 0) + 1


def ended(ends: list[End], channel: Unit, device: Unit | None, source: Unit, budget_days: float) -> list[Output]:
    """Take ends of messages of one channel; return what is to be told.

    Each message counts once: not when it comes to another end, and not when it expires, which is no report.

    Args:
        ends: The ends, in their order.
        channel: The channel.
        device: Its device, if that has several channels.
        source: Its source.
        budget_days: Days of one false alarm of each unit, on average.
    """
    ends = [end for end in ends if not end.again and end.outcome != _EXPIRED]
    if not ends:
        return []
    told: list[Output] = []
    wider = [source] if device is None else [device, source]
    for unit in (channel, *wider):
        unit.watch.seen(ends[-1].at, len(ends))
    usual = source.ratio
    narrower = [channel] if device is None else [channel, device]
    for end in ends:
        failed = end.outcome in _FAILURES
        before = [unit.is_firing for unit in narrower]
        were_firing = [unit for unit in wider if unit.is_firing]
        if failed or channel.watch.denied is not None:
            told += channel.permitted(end, budget_days, source)
        told += channel.ended(end, failed, budget_days, source, usual)
        if device is not None:
            told += device.ended(end, failed, budget_days, source, usual, channel)
        if source.is_firing or not (channel.is_firing or (device is not None and device.is_firing)):
            told += source.ended(end, failed, budget_days, source, DEFAULT_RATIO, channel)
        if before != [unit.is_firing for unit in narrower]:
            # Whether a phone explains them can be said now, or no longer.
            told += [unit.repeated(end.at, budget_days, source) for unit in were_firing if unit.is_firing]
    return told
