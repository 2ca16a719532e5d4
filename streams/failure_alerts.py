"""Alerts on failures: the ends of messages update the detectors of a channel, its device and its source.

Part of the processor of `sms.devices`: detectors are stored in its states, and changes of alerts go to `sms.alerts` in
its transactions. So a replay or a recovery repeats no alert and loses none.

A failure of one device is not a failure of its source: while the alert of a channel or its device fires, the source
does not observe its messages, unless the alert of the source fires already.

A rise that lasts ends as the new normal once. A wider entity that accepts it does so for the narrower ones within, and
a source takes an accepted entity back into its baseline, so the same rise is not found again one level up or down.
"""

from typing import Final

from gateway.statuses import FAILURES, Outcome
from streams.detector_state import MessageEnd
from streams.monitored_entity import MonitoredEntity
from streams.processor import OutputRecord

_EXPIRED: Final = Outcome.EXPIRED.value


def update_detectors(
    ends: list[MessageEnd], channel: MonitoredEntity, device: MonitoredEntity | None, source: MonitoredEntity
) -> list[OutputRecord]:
    """Add ends of messages of one channel to the detectors; return the alerts that changed.

    Each message counts once: a later end of it does not count. An expiry does not count either, as it is no report.

    Args:
        ends: The ends, in their order.
        channel: The channel.
        device: Its device, if that has several channels.
        source: Its source.
    """
    ends = [end for end in ends if not end.again and end.outcome != _EXPIRED]
    if not ends:
        return []
    outputs: list[OutputRecord] = []
    narrow = [channel] if device is None else [device, channel]
    for entity in (*narrow, source):
        entity.state.add_recent(ends[-1].at, len(ends))
    for end in ends:
        were_firing = [entity.is_firing for entity in narrow]
        wider_firing = [entity for entity in (device, source) if entity is not None and entity.is_firing]
        outputs += _observe_end(end, channel, device, source)
        if any(were_firing):
            accepted = next((entity for entity in narrow if entity.state.accepted_at == end.at), None)
            outputs += _accept_within(end.at, channel, device, source)
            if accepted is not None and not any(entity.is_firing for entity in narrow):
                source.state.detector.include_unit(accepted.state.detector.accepted, accepted.share, accepted.policy)
        if were_firing != [entity.is_firing for entity in narrow]:
            # From now on a phone explains the failures of a wider entity, or no longer does.
            outputs += [entity.repeat_alert(end.at) for entity in wider_firing if entity.is_firing]
    return outputs


def _observe_end(
    end: MessageEnd, channel: MonitoredEntity, device: MonitoredEntity | None, source: MonitoredEntity
) -> list[OutputRecord]:
    outputs: list[OutputRecord] = []
    failed = end.outcome in FAILURES
    if failed or channel.state.denied is not None:
        outputs += channel.observe_permission(end)
    outputs += channel.observe_end(end, failed)
    if device is not None:
        outputs += device.observe_end(end, failed, channel)
    is_explained = channel.is_firing or (device is not None and device.is_firing)
    if source.is_firing or not is_explained:
        outputs += source.observe_end(end, failed, channel)
    return outputs


def _accept_within(
    at: int, channel: MonitoredEntity, device: MonitoredEntity | None, source: MonitoredEntity
) -> list[OutputRecord]:
    """Accept the rise of narrower entities if a wider one has accepted it since they fired; return their alerts."""
    outputs: list[OutputRecord] = []
    if device is not None and device.is_within_accepted(source):
        outputs += device.accept_rise(at)
    if channel.is_within_accepted(source) or (device is not None and channel.is_within_accepted(device)):
        outputs += channel.accept_rise(at)
    return outputs
