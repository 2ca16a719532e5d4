"""Alert records on `sms.alerts`: model, identity and JSON codec. Each change of an alert is one record."""

from typing import Final, Literal

import msgspec

FAILURE_RATIO: Final = "failure_ratio"
NOT_PERMITTED: Final = "not_permitted"
SILENT: Final = "silent"
STUCK_MESSAGES: Final = "stuck_messages"
LATENCY_SHIFT: Final = "latency_shift"
DEVICE_DOWN: Final = "device_down"
WEBHOOK_QUALITY: Final = "webhook_quality"
QUALITY_CHECK: Final = "quality_check"
PIPELINE: Final = "pipeline"
EVALUATED_KINDS: Final = (SILENT, STUCK_MESSAGES, LATENCY_SHIFT, DEVICE_DOWN, WEBHOOK_QUALITY, QUALITY_CHECK, PIPELINE)
"""Kinds that are evaluated on a timer or in the warehouse. The processor of devices detects the others."""
KINDS: Final = (FAILURE_RATIO, NOT_PERMITTED, *EVALUATED_KINDS)
"""Every kind. `docs/runbooks/` has a page on each."""

Scope = Literal["channel", "device", "source", "pipeline"]
Phase = Literal["learning", "pending", "firing", "resolved"]
Resolution = Literal["", "recovered", "new_normal"]

ANY: Final = "*"


class ChannelFailures(msgspec.Struct, frozen=True, gc=False):
    """Failures of one channel among those that made an alert of its device or its source fire.

    Attributes:
        device_id, channel_id: None if no report names them.
        failures: Number of the latest failures that are its own.
        share: Its part of the source's messages of the last days, 0 to 1.
    """

    device_id: int | None
    channel_id: int | None
    failures: int
    share: float


class Alert(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One change of an alert: the value of a record on `sms.alerts`, whose key is the `id`.

    Attributes:
        id: Identity of the alert, the same at each recurrence; see `alert_id`.
        kind: One of `KINDS`.
        phase: `learning`: a new entity with too few messages to judge its failures. Nobody is notified of `learning`
            and `pending`. An alert that leaves one of them without firing is `resolved` without `fired_at`.
        scope: A channel, a device (for failures, one with several channels), a source, or the whole pipeline.
        source: Gateway account; `*` for all.
        device_id, channel_id: None where the scope is wider, or no report names them.
        changed_at: Time when the record that changed it was received. All times are in milliseconds since 1970 UTC.
        since: Estimated time of its beginning.
        fired_at, resolved_at: None if it has not fired, or is not resolved.
        count, failures: Messages that ended since then, and those of them that failed.
        baseline: Usual ratio of failures; None if it is not known.
        known: Messages that the baseline was learnt from. Earlier ones fade.
        bound: Highest ratio that the baseline allows.
        errors: Number of failures since then by status id; at the time of firing, of the last twenty failures.
        samples: Keys of some of those messages.
        share: Its part of the source's messages of the last days, 0 to 1.
        budget_days: Days per false alarm, on average, that it is configured for; 0 if it has no such budget.
        what: Finding as a sentence, for kinds other than the ratio of failures.
        by_channel: Channels of the latest twenty failures, if the alert is about the ratio of a device or a source.
        resolution: Reason why an alert on failures was resolved: `recovered`, or `new_normal` if a rise lasted so long
            that it became the baseline; otherwise empty. `baseline` is still the one that it fired against.
    """

    id: str
    kind: str
    phase: Phase
    scope: Scope
    source: str
    device_id: int | None = None
    channel_id: int | None = None
    changed_at: int
    since: int
    fired_at: int | None = None
    resolved_at: int | None = None
    count: int = 0
    failures: int = 0
    baseline: float | None = None
    known: int = 0
    bound: float | None = None
    errors: dict[str, int] = {}
    samples: list[str] = []
    share: float = 1.0
    budget_days: float = 0.0
    what: str = ""
    by_channel: list[ChannelFailures] = []
    resolution: Resolution = ""


def alert_id(kind: str, source: str, *device_and_channel: int | None, part: int | str = 0) -> str:
    """Return an alert's identity: `{kind}:{source}:{device_id}:{channel_id}`, with `:{part}` if there is one.

    `*` stands for what the alert is not about, and `-` for what no report names.

    Args:
        kind: Kind of the alert.
        source: Gateway account.
        device_and_channel: Device and channel: both, the device alone, or none.
        part: The partition of devices, for alerts about a source: each partition monitors the devices in it. Or the
            part of the pipeline.
    """
    names = ["-" if each is None else str(each) for each in device_and_channel]
    names += [ANY] * (2 - len(names))
    return ":".join([kind, source, *names, *([str(part)] if part else [])])


encode_alert = msgspec.json.Encoder().encode
decode_alert = msgspec.json.Decoder(Alert).decode
