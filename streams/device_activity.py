"""Device activity: the effect of one run of reports on each device and channel, as records of `sms.activity`.

A report names a message, and the messages of a device are spread over all partitions of `sms.raw`. So the processor of
`sms.raw` sums up the effect of a run on a device's channel in one record, in the partition of the device. If no report
names a device, as with images, the channel alone is counted.

Counts are differences between versions of messages, so a repeated report is not counted again. A report about an
evicted message updates the time of the last report and counts nothing: its message was counted before.
"""

from typing import Final

import msgspec

from core import records
from core.topics import ACTIVITY
from gateway.statuses import ENDS, Outcome
from streams.detector_state import MessageEnd
from streams.lifecycle import MessageVersion
from streams.processor import OutputRecord

OPEN: Final = "open"
COUNTED: Final = (OPEN, *sorted(outcome.value for outcome in ENDS))

Dimensions = tuple[str | None, int | None, int | None]
"""The state under which a message counts (None: it does not count), and its device and channel."""

_EXPIRED: Final = Outcome.EXPIRED.value
_NOT_YET: Final = (None, OPEN, _EXPIRED)


class DeviceActivity(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """Effect of one run on one device and channel: the value of a record on `sms.activity`.

    Attributes:
        first_at, last_at: Time of the first and of the last report or incoming message, in milliseconds; None if there
            was none, as when messages expire.
        reports: Number of messages with reports.
        incoming: Number of incoming messages.
        counts: Change of the number of messages by `open` and outcome.
        ends: Each message that came to an end, or to another end, in the order of the run.
    """

    source: str
    device_id: int | None
    channel_id: int | None
    first_at: int | None
    last_at: int | None
    reports: int
    incoming: int
    counts: dict[str, int]
    ends: list[MessageEnd]

    def mark_seen(self, at: int) -> None:
        """Add the time of a report or an incoming message."""
        if self.first_at is None or at < self.first_at:
            self.first_at = at
        if self.last_at is None or at > self.last_at:
            self.last_at = at

    def add_count(self, outcome: str, difference: int) -> None:
        """Add a difference to the number of messages of an outcome."""
        self.counts[outcome] = self.counts.get(outcome, 0) + difference


encode_activity = msgspec.json.Encoder().encode
decode_activity = msgspec.json.Decoder(DeviceActivity).decode


class ActivityCollector:
    """The activity of all devices in one run."""

    def __init__(self) -> None:
        self._activities: dict[tuple[str, int | None, int | None], DeviceActivity] = {}

    def _get_activity(self, source: str, device_id: int | None, channel_id: int | None) -> DeviceActivity:
        activity = self._activities.get((source, device_id, channel_id))
        if activity is None:
            activity = DeviceActivity(source, device_id, channel_id, None, None, 0, 0, {}, [])
            self._activities[source, device_id, channel_id] = activity
        return activity

    def add_incoming(self, source: str, device_id: int | None, channel_id: int | None, at: int) -> None:
        """Add an incoming message that was received at a time in milliseconds."""
        activity = self._get_activity(source, device_id, channel_id)
        activity.mark_seen(at)
        activity.incoming += 1

    def add_version(self, before: Dimensions, now: Dimensions, version: MessageVersion, *, counts: bool) -> None:
        """Add a new version of a message.

        Args:
            before: The dimensions of the version before.
            now: The dimensions of the new version.
            version: The version.
            counts: Whether the message counts at all.
        """
        outcome, device_id, channel_id = now
        activity = self._get_activity(version.source, device_id, channel_id)
        if outcome != _EXPIRED:
            activity.mark_seen(version.last_seen_at)
            activity.reports += 1
        if not counts or before == now:
            return
        if before[0] is not None:
            self._get_activity(version.source, *before[1:]).add_count(before[0], -1)
        if outcome is not None:
            activity.add_count(outcome, 1)
            if outcome not in (OPEN, before[0]) and version.ended_at is not None:
                again = before[0] not in _NOT_YET
                activity.ends.append(
                    MessageEnd(version.sms_id, version.last_status_id, outcome, version.ended_at, again)
                )

    def build_records(self) -> list[OutputRecord]:
        """Return a record for each device and channel."""
        return [
            OutputRecord(ACTIVITY, records.device_key(activity.source, activity.device_id), encode_activity(activity))
            for activity in self._activities.values()
        ]
