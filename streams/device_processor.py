"""Devices: the processor of `sms.activity`, which keeps the state of each device and channel in `sms.devices`.

Each message counts under its present state: `open`, or the outcome of its end. Each end also goes to the detectors of
its channel, of its device if that has several channels, and of its source; see `streams.failure_alerts`.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Final

import msgspec
import orjson

from core import records
from gateway.errors import UnreadablePayload
from gateway.statuses import FAILURES
from streams.detector_policy import DetectorPolicy
from streams.detector_state import DetectorState
from streams.device_activity import COUNTED, DeviceActivity, decode_activity
from streams.failure_alerts import update_detectors
from streams.monitored_entity import MonitoredEntity
from streams.processor import KafkaRecord, OutputRecord, ProcessorOutput, build_dead_letter

REASON_NOT_ACTIVITY: Final = "not_activity"

# Channels of a device in its state. A sender can name any number, and each would stay in the state.
_MAX_CHANNELS: Final = 64
# The last one begins at 97 days.
_GAPS: Final = 24

_COUNTED: Final = frozenset(COUNTED)

DeviceState = dict[str, Any]

_encode_state = msgspec.json.Encoder().encode


class DeviceProcessor:
    """The processor of one partition of `sms.activity`. It keeps nothing between runs.

    A state has `source`, `device_id`, `channel_id`; `first_seen_at` and `last_seen_at` in milliseconds; `reports` and
    `incoming`; the number of messages by `open` and each outcome; `last_outcome`, `last_status_id` and `last_ended_at`
    of the message that ended last; `errors`, the number of failures by status id; `gaps`, the number of pauses between
    reports of less than 1 s, and of 1 to 2, 2 to 4, 4 to 8 ... seconds; and `watch`, see
    `streams.detector_state.DetectorState`. The states of a device and of a source have `source` and `watch`, and that
    of a device `device_id` and `channels`, the first 64 of its channels.

    Args:
        load: Returns the stored state of a key.
        policy: Settings of the detectors of each channel, device and source.
    """

    def __init__(self, load: Callable[[bytes], bytes | None], policy: DetectorPolicy) -> None:
        self._load = load
        self._policy = policy

    def process(self, run: Sequence[KafkaRecord]) -> ProcessorOutput:
        """Add activity to the states, in its order."""
        outputs = ProcessorOutput()
        states: dict[bytes, DeviceState] = {}
        for record in run:
            try:
                activity = _read_activity(record.value)
                device = records.device_key(activity.source, activity.device_id)
                key = b"%s:%s" % (device, b"-" if activity.channel_id is None else b"%d" % activity.channel_id)
                state = self._get_state(states, key, partial(_new_state, activity))
                _add_activity(state, activity)
                if activity.ends:
                    outputs.records += self._update_detectors(states, state, activity, device, record.partition)
            except UnreadablePayload as error:
                outputs.records.append(build_dead_letter(record, error))
        outputs.states = [(key, _encode_state(state), None) for key, state in states.items()]
        return outputs

    def _update_detectors(
        self,
        states: dict[bytes, DeviceState],
        state: DeviceState,
        activity: DeviceActivity,
        device_key: bytes,
        partition: int,
    ) -> list[OutputRecord]:
        """Add the ends of messages to detectors; return the alerts that changed."""
        source, device_id, channel_id = activity.source, activity.device_id, activity.channel_id
        source_state = self._get_state(
            states, b"%s:*:*" % source.encode(), lambda: {"source": source, "watch": DetectorState()}
        )
        new_device: DeviceState = {"source": source, "device_id": device_id, "channels": [], "watch": DetectorState()}
        device_state = self._get_state(states, b"%s:*" % device_key, lambda: new_device)
        channels = device_state["channels"]
        if channel_id not in channels and len(channels) < _MAX_CHANNELS:
            channels.append(channel_id)
        fleet = MonitoredEntity(source_state["watch"], self._policy, source, part=partition)
        channel = MonitoredEntity(state["watch"], self._policy, source, device_id, channel_id, fleet=fleet)
        device = None
        if len(channels) > 1:
            device = MonitoredEntity(device_state["watch"], self._policy, source, device_id, fleet=fleet)
        return update_detectors(activity.ends, channel, device, fleet)

    def _get_state(self, states: dict[bytes, DeviceState], key: bytes, make: Callable[[], DeviceState]) -> DeviceState:
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
        """Do nothing: states of devices have no timers."""
        return ProcessorOutput()

    def next_timer(self, value: bytes | None, written_at: int) -> None:
        """Return None; see `StreamProcessor.next_timer`."""
        orjson.loads(value or b"")["source"]

    def clear_cache(self) -> None:
        """Do nothing: there is no cache."""


def _read_detector_state(stored: dict[str, Any]) -> DetectorState:
    """Return the stored state of a detector. Earlier releases stored fewer fields."""
    state = msgspec.convert(stored, DetectorState)
    detector = state.detector
    if detector.phase == "firing" and not detector.fired_at:
        detector.fired_at = state.fired_at or detector.since
        detector.risen, detector.risen_failed = float(detector.count), float(detector.failures)
    return state


def _read_activity(value: bytes | None) -> DeviceActivity:
    try:
        activity = decode_activity(value or b"")
    except msgspec.DecodeError:
        activity = None
    if (
        activity is None
        or not _COUNTED.issuperset(activity.counts)
        or (activity.first_at is None) != (activity.last_at is None)
    ):
        raise UnreadablePayload(REASON_NOT_ACTIVITY, "the record was not written by this stream's worker")
    return activity


def _new_state(activity: DeviceActivity) -> DeviceState:
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


def _add_activity(state: DeviceState, activity: DeviceActivity) -> None:
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
