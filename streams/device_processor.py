"""Devices: what runs of reports did to them, and the fold of that into the state of each device and channel.

A report names a message, and messages of a device are spread over all partitions. So the fold of `sms.raw` sums up
what each run did to a device's channel in one record of `sms.activity`, in the partition of the device; and here these
become `sms.devices`. Where no report names a device, as with images, the channel alone is counted.

Counts are of messages, each under what it is now: `open`, or the outcome it ended with. They follow from the
differences between versions, so what is repeated is not counted again. A report about a forgotten message is a sign of
life, and counts nothing: the message was counted when it was known.

Each end also goes to the detectors of its channel, of its device where that has several channels, and of its source;
see `streams.failure_alerts`.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import msgspec
import orjson

from core import records
from core.topics import ACTIVITY
from gateway.errors import UnreadablePayload
from gateway.statuses import ENDS, FAILURES, Outcome
from streams.detector_policy import DetectorPolicy
from streams.detector_state import DetectorState, MessageEnd
from streams.failure_alerts import update_detectors
from streams.lifecycle import MessageVersion
from streams.monitored_entity import MonitoredEntity
from streams.processor import KafkaRecord, OutputRecord, ProcessorOutput, build_dead_letter

OPEN: Final = "open"
COUNTED: Final = (OPEN, *sorted(outcome.value for outcome in ENDS))

REASON_NOT_ACTIVITY: Final = "not_activity"

Dimensions = tuple[str | None, int | None, int | None]
"""As what a message counts (None: not at all), and for which device and channel."""

_COUNTED: Final = frozenset(COUNTED)
_EXPIRED: Final = Outcome.EXPIRED.value
_NOT_YET: Final = (None, OPEN, _EXPIRED)
_ANY: Final = b"*"
_MAX_CHANNELS: Final = 64
"""Of a device, by which it is known to have several. A sender can name any number, and each would stay in the state."""
_GAPS: Final = 24  # the last one begins at 97 days


class DeviceActivity(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """What one run did to one device and channel: the value of a record on `sms.activity`.

    Attributes:
        first_at, last_at: When the first and the last sign of life was received, in milliseconds; None if there was
            none, as when messages expire.
        reports: How many messages were reported on.
        incoming: How many messages came in.
        counts: How many messages more, or less, count as `open` or as an outcome.
        ends: Each message that came to an end, or to another, in the order of the fold.
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
        """Take a sign of life."""
        if self.first_at is None or at < self.first_at:
            self.first_at = at
        if self.last_at is None or at > self.last_at:
            self.last_at = at

    def add_count(self, outcome: str, difference: int) -> None:
        """Count a message under an outcome, or no longer."""
        self.counts[outcome] = self.counts.get(outcome, 0) + difference


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(DeviceActivity).decode


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
        """Take an incoming message, received at a time in milliseconds."""
        activity = self._get_activity(source, device_id, channel_id)
        activity.mark_seen(at)
        activity.incoming += 1

    def add_version(self, before: Dimensions, now: Dimensions, version: MessageVersion, *, counts: bool) -> None:
        """Take a new version of a message.

        Args:
            before: As what it counted so far, and for which device and channel.
            now: As what, and for which, it counts.
            version: The version.
            counts: Whether it counts at all.
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
            OutputRecord(
                ACTIVITY,
                records.device_key(activity.source, activity.device_id),
                _encode(activity),
            )
            for activity in self._activities.values()
        ]


class DeviceProcessor:
    """The fold of one partition of `sms.activity` into states of devices. It keeps nothing between runs.

    A state has `source`, `device_id`, `channel_id`; `first_seen_at` and `last_seen_at` in milliseconds; `reports` and
    `incoming`; the number of messages by `open` and each outcome; `last_outcome`, `last_status_id` and `last_ended_at`
    of the message that ended last; `errors`, how often each status id ended a message with a failure; `gaps`, the
    rhythm of arrival: how often nothing came for less than 1 s, and for 1 to 2, 2 to 4, 4 to 8 ... seconds; and
    `watch`, see `streams.detector_state.DetectorState`, whose detector says in `phase` whether it still learns. A
    device's and a source's own have `source`, `watch`, and for a device `device_id` and `channels`, the first 64 that
    it was seen with.

    Args:
        load: Returns the stored state of a key.
        policy: Settings of the detectors of each channel, device and source.
    """

    def __init__(self, load: Callable[[bytes], bytes | None], policy: DetectorPolicy) -> None:
        self._load = load
        self._policy = policy

    def process(self, run: Sequence[KafkaRecord]) -> ProcessorOutput:
        """Fold activity, in its order."""
        outputs = ProcessorOutput()
        states: dict[bytes, dict[str, Any]] = {}
        for record in run:
            try:
                activity = _read_activity(record.value)
                device = records.device_key(activity.source, activity.device_id)
                key = b"%s:%s" % (device, b"-" if activity.channel_id is None else b"%d" % activity.channel_id)
                state = self._get_state(states, key, lambda: _new_state(activity))  # noqa: B023 - called at once
                _add_activity(state, activity)
                if activity.ends:
                    outputs.records += self._update_detectors(states, state, activity, device, record.partition)
            except UnreadablePayload as error:
                outputs.records.append(build_dead_letter(record, error))
        outputs.states = [(key, _encode(state), None) for key, state in states.items()]
        return outputs

    def _update_detectors(
        self,
        states: dict[bytes, dict[str, Any]],
        state: dict[str, Any],
        activity: DeviceActivity,
        device_key: bytes,
        partition: int,
    ) -> list[OutputRecord]:
        """Tell detectors how messages ended; return what they tell."""
        source, device_id, channel_id = activity.source, activity.device_id, activity.channel_id
        fleet = self._get_state(
            states, b"%s:*:*" % source.encode(), lambda: {"source": source, "watch": DetectorState()}
        )
        own: dict[str, Any] = {"source": source, "device_id": device_id, "channels": [], "watch": DetectorState()}
        device = self._get_state(states, b"%s:%s" % (device_key, _ANY), lambda: own)
        if channel_id not in device["channels"] and len(device["channels"]) < _MAX_CHANNELS:
            device["channels"].append(channel_id)
        monitored = MonitoredEntity(fleet["watch"], self._policy, source, part=partition)
        channel = MonitoredEntity(state["watch"], self._policy, source, device_id, channel_id, fleet=monitored)
        phone = None
        if len(device["channels"]) > 1:
            phone = MonitoredEntity(device["watch"], self._policy, source, device_id, fleet=monitored)
        return update_detectors(activity.ends, channel, phone, monitored)

    def _get_state(
        self, states: dict[bytes, dict[str, Any]], key: bytes, make: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        state = states.get(key)
        if state is None:
            stored = self._load(key)
            if stored:
                state = orjson.loads(stored)
                state["watch"] = _read_detector_state(state.get("watch", {}))
            else:
                state = make()
            states[key] = state
        return state

    def on_timer(self, keys: Iterable[bytes], now: int) -> ProcessorOutput:
        """Do nothing: no state of a device is ever due."""
        return ProcessorOutput()

    def next_timer(self, value: bytes | None, written_at: int) -> None:
        """Return None; see `StreamProcessor.next_timer`."""
        orjson.loads(value or b"")["source"]

    def clear_cache(self) -> None:
        """Do nothing: there is none."""


def _read_detector_state(stored: dict[str, Any]) -> DetectorState:
    """Return what is stored of a unit. Earlier versions stored less of its detector."""
    state = msgspec.convert(stored, DetectorState)
    detector = state.detector
    if detector.phase == "firing" and not detector.fired_at:
        detector.fired_at = state.fired_at or detector.since
        detector.risen, detector.risen_failed = float(detector.count), float(detector.failures)
    return state


def _read_activity(value: bytes | None) -> DeviceActivity:
    try:
        activity = _decode(value or b"")
    except msgspec.DecodeError:
        activity = None
    if (
        activity is None
        or not _COUNTED.issuperset(activity.counts)
        or (activity.first_at is None) != (activity.last_at is None)
    ):
        raise UnreadablePayload(REASON_NOT_ACTIVITY, "the record is none of this stream's worker")
    return activity


def _new_state(activity: DeviceActivity) -> dict[str, Any]:
    return {
        "source": activity.source,
        "device_id": activity.device_id,
        "channel_id": activity.channel_id,
        **dict.fromkeys(("first_seen_at", "last_seen_at", "last_outcome", "last_status_id", "last_ended_at")),
        **dict.fromkeys(("reports", "incoming", *COUNTED), 0),
        "errors": {},
        "gaps": [0] * _GAPS,
        "watch": DetectorState(),
    }


def _add_activity(state: dict[str, Any], activity: DeviceActivity) -> None:
    first_at, last_at = activity.first_at, activity.last_at
    if first_at is not None and last_at is not None:
        if state["last_seen_at"] is None:
            state["first_seen_at"], state["last_seen_at"] = first_at, last_at
        elif first_at > state["last_seen_at"]:
            seconds = (first_at - state["last_seen_at"]) // 1000
            state["gaps"][min(seconds.bit_length(), _GAPS - 1)] += 1
        state["first_seen_at"] = min(first_at, state["first_seen_at"])
        state["last_seen_at"] = max(last_at, state["last_seen_at"])
    state["reports"] += activity.reports
    state["incoming"] += activity.incoming
    for outcome, difference in activity.counts.items():
        state[outcome] += difference
    for end in activity.ends:
        if end.outcome in FAILURES:
            state["errors"][str(end.status_id)] = state["errors"].get(str(end.status_id), 0) + 1
        if state["last_ended_at"] is None or end.at >= state["last_ended_at"]:
            state["last_outcome"], state["last_status_id"], state["last_ended_at"] = end.outcome, end.status_id, end.at
