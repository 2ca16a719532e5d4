"""Devices: the processor of `sms.outcomes`. It keeps the detectors of channels, devices and sources in `sms.devices`.

Detectors are stored in its states, and changes of alerts go to `sms.alerts` in its transactions. So a replay or a
recovery repeats no alert and loses none.

A failure of one device is not a failure of its source: while the alert of a channel or its device fires, the source
does not observe its messages, unless the alert of the source fires already.

A rise that lasts ends as the new normal once. A wider entity that accepts it does so for the narrower ones within, and
a source takes an accepted entity back into its baseline, so the same rise is not found again one level up or down.
"""

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import msgspec

from core import records
from gateway.errors import UnreadablePayload
from gateway.statuses import FAILURES, Outcome
from streams.failure_baseline import DetectorPolicy
from streams.lifecycle import OutcomeRecord
from streams.monitored_entity import AttemptEnd, DetectorState, MonitoredEntity
from streams.processor import KafkaRecord, OutputRecord, ProcessorOutput, StateLoader, build_dead_letter

REASON_NOT_OUTCOME: Final = "not_outcome"

# Channels of a device in its state. A sender can name any number, and each would stay in the state.
_MAX_CHANNELS: Final = 64
_EXPIRED: Final = Outcome.EXPIRED.value
# What an outcome that is a first end can replace.
_BEFORE_FIRST_END: Final = (None, _EXPIRED)


class EntityState(msgspec.Struct, gc=False, omit_defaults=True):
    """State of a channel, a device or a source: the value of a record on `sms.devices`.

    Attributes:
        source: Gateway account.
        device_id, channel_id: Device and channel: both of a channel, one of a device, none of a source.
        channels: The first 64 channels of a device.
        watch: State of its detector.
    """

    source: str
    device_id: int | None = None
    channel_id: int | None = None
    channels: list[int | None] = []
    watch: DetectorState = msgspec.field(default_factory=DetectorState)


_encode_state = msgspec.json.Encoder().encode
_decode_state = msgspec.json.Decoder(EntityState).decode
_decode_outcome = msgspec.json.Decoder(OutcomeRecord).decode


class _Channel(NamedTuple):
    """A channel with the wider entities that its messages belong to."""

    entity: MonitoredEntity
    # The device's channels, and its detector. The detector observes messages if there are several channels.
    siblings: list[int | None]
    device: MonitoredEntity
    source: MonitoredEntity


class DeviceProcessor:
    """The processor of one partition of `sms.outcomes`. It keeps nothing between runs.

    Args:
        load: Returns the stored state of a key.
        policy: Settings of the detectors of each channel, device and source.
    """

    def __init__(self, load: StateLoader, policy: DetectorPolicy) -> None:
        self._load = load
        self._policy = policy

    def process(self, run: Sequence[KafkaRecord]) -> ProcessorOutput:
        """Add the ends of messages to the detectors, in their order."""
        outputs = ProcessorOutput()
        states: dict[bytes, EntityState] = {}
        # Most runs have many ends of few channels.
        channels: dict[tuple[str, int | None, int | None], _Channel] = {}
        for record in run:
            try:
                outcome = _decode_outcome(record.value or b"")
            except msgspec.DecodeError:
                error = UnreadablePayload(REASON_NOT_OUTCOME, "the record was not written by this stream's worker")
                outputs.records.append(build_dead_letter(record, error))
                continue
            if outcome.ended_at is None or outcome.late:
                # A reopened message has not ended. The first end of an evicted one was observed before.
                continue
            place = outcome.source, outcome.device_id, outcome.channel_id
            channel = channels.get(place)
            if channel is None:
                channel = channels[place] = self._open_channel(outcome, record.partition, states)
            outputs.records += _observe_outcome(outcome, outcome.ended_at, channel)
        outputs.states = [(key, _encode_state(state), None) for key, state in states.items()]
        return outputs

    def _open_channel(self, end: OutcomeRecord, partition: int, states: dict[bytes, EntityState]) -> _Channel:
        """Return the channel of an end. Its state and those of its device and source are loaded into `states`."""
        source, device_id, channel_id = end.source, end.device_id, end.channel_id
        key = records.device_key(source, device_id)
        channel_key = b"%s:%s" % (key, b"-" if channel_id is None else b"%d" % channel_id)
        channel_state = self._get_state(states, channel_key, EntityState(source, device_id, channel_id))
        device_state = self._get_state(states, b"%s:*" % key, EntityState(source, device_id))
        source_state = self._get_state(states, b"%s:*:*" % source.encode(), EntityState(source))
        fleet = MonitoredEntity(source_state.watch, self._policy, source, part=partition)
        device = MonitoredEntity(device_state.watch, self._policy, source, (device_id,), fleet)
        channel = MonitoredEntity(channel_state.watch, self._policy, source, (device_id, channel_id), fleet)
        return _Channel(channel, device_state.channels, device, fleet)

    def _get_state(self, states: dict[bytes, EntityState], key: bytes, new: EntityState) -> EntityState:
        if key not in states:
            stored = self._load(key)
            states[key] = _decode_state(stored) if stored else new
        return states[key]

    def on_timer(self, keys: Iterable[bytes], now: int) -> ProcessorOutput:
        """Do nothing: states of devices have no timers."""
        return ProcessorOutput()

    def next_timer(self, value: bytes | None, written_at: int) -> None:
        """Return None; see `StreamProcessor.next_timer`."""
        _decode_state(value or b"")

    def clear_cache(self) -> None:
        """Do nothing: there is no cache."""


def _observe_outcome(outcome: OutcomeRecord, ended_at: int, channel: _Channel) -> list[OutputRecord]:
    """Add the end of a message to the detectors; return the alerts that changed."""
    siblings = channel.siblings
    if outcome.channel_id not in siblings and len(siblings) < _MAX_CHANNELS:
        siblings.append(outcome.channel_id)
    # Each attempt counts once: a later end of it does not count. An expiry does not count either: it is no report.
    if outcome.outcome == _EXPIRED or outcome.previous not in _BEFORE_FIRST_END:
        return []
    end = AttemptEnd(outcome.sms_id, outcome.last_status_id, outcome.outcome, ended_at)
    return update_detectors(end, channel.entity, channel.device if len(siblings) > 1 else None, channel.source)


def update_detectors(
    end: AttemptEnd, channel: MonitoredEntity, device: MonitoredEntity | None, source: MonitoredEntity
) -> list[OutputRecord]:
    """Add the first end of an attempt to the detectors; return the alerts that changed.

    Args:
        end: The end.
        channel: The channel of the message.
        device: Its device, if that has several channels.
        source: Its source.
    """
    narrow = [channel] if device is None else [device, channel]
    for entity in (*narrow, source):
        entity.state.add_recent(end.at)
    were_firing = [entity.is_firing for entity in narrow]
    wider_firing = [entity for entity in (device, source) if entity is not None and entity.is_firing]
    outputs = _observe_end(end, channel, device, source)
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
    end: AttemptEnd, channel: MonitoredEntity, device: MonitoredEntity | None, source: MonitoredEntity
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
