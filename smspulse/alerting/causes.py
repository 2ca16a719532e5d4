"""Causes: the phone or SIM card that explains most of a wider alert's rise. Pure.

Example: a source of five phones usually loses 3 % of its messages. One phone begins to lose all. The ratio of the
source rises to 22 %, its alert fires, and nearly all of its latest failures are of that phone. The phone is the cause,
and its own alert is sent. The other four phones are well.
"""

from typing import Final

import msgspec

from core.alerts import FAILURE_RATIO, Alert, ChannelFailures
from core.intervals import wilson_interval

_MAJORITY_SHARE: Final = 0.5
# With so much of a phone's failures on one SIM card, that SIM card is the cause.
_NEARLY_ALL_SHARE: Final = 0.8
# Of five equal phones that all fail, one has half of eight failures in every fourth case: that must not be a cause. One
# SIM card of two that has all of five failures must be one.
_STANDARD_ERRORS: Final = 2.2


class AlertCause(msgspec.Struct, frozen=True):
    """The phone or SIM card behind a rise.

    Attributes:
        device_id: None if no report names the device of the channel.
        channel_id: None if the rise is of several channels of the device.
        share: Its part of the rise, 0 to 1.
        traffic_share: Its part of the messages, 0 to 1.
    """

    device_id: int | None
    channel_id: int | None
    share: float
    traffic_share: float

    def is_subject_of(self, alert: Alert) -> bool:
        """Return whether an alert is about this device, as a whole or on the channel of the cause."""
        if alert.device_id != self.device_id or alert.scope not in {"device", "channel"}:
            return False
        return alert.scope == "device" or self.channel_id in (None, alert.channel_id)


def find_cause(alert: Alert) -> AlertCause | None:
    """Return the phone or SIM card that explains most of an alert's rise; None if there is none.

    It must have at least half of the failures beyond the baseline, and more of the failures than chance gives to its
    share of the messages. A phone with most of the messages has most of the failures of a failing fleet, too, and is
    not their cause.

    Args:
        alert: An alert on the ratio of failures of a source, or of a device with several channels.
    """
    if alert.kind != FAILURE_RATIO or not alert.by_channel or not alert.count:
        return None
    channels, groups = alert.by_channel, []
    if alert.scope == "source":
        groups = [
            [each for each in channels if each.device_id == device_id]
            for device_id in {each.device_id for each in channels if each.device_id is not None}
        ]
        channels = [each for each in channels if each.device_id is None]
    groups += [[each] for each in channels if each.channel_id is not None]
    likely = [cause for group in groups if (cause := _build_cause(alert, group)) is not None]
    return max(likely, key=lambda each: each.share, default=None)


def _build_cause(alert: Alert, group: list[ChannelFailures]) -> AlertCause | None:
    """Return channels of one device as a cause; None if they explain less than most of the rise."""
    recorded, own = sum(each.failures for each in alert.by_channel), sum(each.failures for each in group)
    # Shares are of the source's messages, and so is that of the alert: 1 of a source's.
    traffic = min(sum(each.share for each in group) / (alert.share or 1.0), 1.0)
    lowest, _ = wilson_interval(recorded, own, _STANDARD_ERRORS)
    usual = (alert.baseline or 0.0) * alert.count
    rise = alert.failures - usual
    # Its share of the failures must exceed its share of the traffic, beyond chance.
    if rise <= 0 or lowest <= traffic:
        return None
    share = min((alert.failures * own / recorded - usual * traffic) / rise, 1.0)
    if share < _MAJORITY_SHARE:
        return None
    worst = max(group, key=lambda each: each.failures)
    channel_id = worst.channel_id if worst.failures >= _NEARLY_ALL_SHARE * own else None
    return AlertCause(worst.device_id, channel_id, share, traffic)
