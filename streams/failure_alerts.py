"""Alerts: what the ends of messages say about a channel, its device and its source, told on `sms.alerts` on change.

Part of the fold of `sms.devices`: what it knows is in those states, and what it tells is in their transaction. So
after a replay or a recovery it tells nothing twice, and forgets nothing.

A failure of one device is no failure of its source: while a channel's alert fires, its messages say nothing about the
source, unless the source's own fires already.

A rise that stays ends as the new normal once. A wider unit that accepts it does so for the narrower ones within, and a
source takes an accepted unit back into its baseline, so the same rise is not found again one level up or down.
"""

from typing import Final

from gateway.statuses import FAILURES, Outcome
from streams.detector_policy import DetectorPolicy
from streams.detector_state import MessageEnd
from streams.monitored_entity import MonitoredEntity
from streams.processor import OutputRecord

_FAILURES: Final = frozenset(outcome.value for outcome in FAILURES)
_EXPIRED: Final = Outcome.EXPIRED.value


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
