"""What is told on `sms.alerts`: the life of an alert, each change with the evidence for it."""

from math import sqrt
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
"""The kinds that time or the warehouse tells, not the fold of devices."""
KINDS: Final = (FAILURE_RATIO, NOT_PERMITTED, *EVALUATED_KINDS)
"""Every kind; `docs/runbooks/` has a page on each."""

Scope = Literal["channel", "device", "source", "pipeline"]
Phase = Literal["learning", "pending", "firing", "resolved"]
Resolution = Literal["", "recovered", "new_normal"]

ANY: Final = "*"
_Z_95: Final = 1.959963984540054  # standard errors of a 95 % interval


class ChannelFailures(msgspec.Struct, frozen=True, gc=False):
    """Failures of one channel among those that made an alert of its device or its source fire.

    Attributes:
        device_id, channel_id: None if no report names them.
        failures: How many of the latest failures are its own.
        share: Its part of the source's messages of the last days, 0 to 1.
    """

    device_id: int | None
    channel_id: int | None
    failures: int
    share: float


class Alert(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One change of an alert: the value of a record on `sms.alerts`, whose key is the `id`.

    Attributes:
        id: Of the alert, the same whenever it comes again: see `alert_id`.
        kind: One of `KINDS`.
        phase: `learning` is a new unit of which too little is known to judge its failures. It and `pending` are told
            to nobody; what was either and is so no more is `resolved` without `fired_at`.
        scope: Whether it is about a channel, a device, of failures one with several channels, a source, or all of them.
        source: Gateway account; `*` of all.
        device_id, channel_id: None where the scope is wider, or no report names them.
        changed_at: When what changed it was received, in milliseconds; all times are.
        since: When it is thought to have begun.
        fired_at, resolved_at: None if it has not.
        count, failures: Messages that ended since, and failed.
        baseline: Ratio of failures that is usual for it; None if there is none.
        known: Messages that the baseline was learnt from; earlier ones fade.
        bound: The highest ratio that the baseline allows.
        errors: How many messages failed since, by status id; of the last twenty, when it fires.
        samples: Keys of some of those messages.
        share: Its part of the source's messages of the last days, 0 to 1.
        budget_days: Days of one false alarm, on average, that it is set to; 0 if it has no such budget.
        what: What was found, in words, where it is not the ratio of failures.
        by_channel: Channels of the latest twenty failures, if the alert is about the ratio of a device or a source.
        resolution: Why an alert on failures was resolved: `recovered`, or `new_normal` where a rise stayed for so long
            that it has become the baseline; empty else. `baseline` is still the one that it fired against.
    """

    id: str
    kind: str
    phase: Phase
    scope: Scope
    source: str
    device_id: int | None
    channel_id: int | None
    changed_at: int
    since: int
    fired_at: int | None
    resolved_at: int | None
    count: int
    failures: int
    baseline: float | None
    known: int
    bound: float | None
    errors: dict[str, int]
    samples: list[str]
    share: float
    budget_days: float
    what: str = ""
    by_channel: list[ChannelFailures] = msgspec.field(default_factory=list)
    resolution: Resolution = ""

    @property
    def failure_interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval of the ratio of failures since."""
        return wilson_interval(self.count, self.failures)


def wilson_interval(count: int, part: int, z: float = _Z_95) -> tuple[float, float]:
    """Return the Wilson interval of a ratio, 95 % by default; 0 to 1 without observations.

    Args:
        count: Observations.
        part: Those of them that are counted.
        z: Half the width of the interval, in standard errors.
    """
    if not count:
        return 0.0, 1.0
    ratio, z2 = part / count, z * z
    middle = ratio + z2 / (2 * count)
    reach = z * sqrt(ratio * (1 - ratio) / count + z2 / (4 * count * count))
    return max((middle - reach) / (1 + z2 / count), 0.0), min((middle + reach) / (1 + z2 / count), 1.0)


def alert_id(kind: str, source: str, *device_and_channel: int | None, part: int | str = 0) -> str:
    """Return an alert's identity: `{kind}:{source}:{device_id}:{channel_id}`.

    With `*` for what the alert is not about, and `-` for what no report names.

    Args:
        kind: The alert's.
        source: Gateway account.
        device_and_channel: Device and channel, as far as it is about them.
        part: The partition of devices, for those about a source: each watches the source's devices in it. Or what of
            the pipeline it is about.
    """
    names = [
        *("-" if each is None else str(each) for each in device_and_channel),
        *([ANY] * (2 - len(device_and_channel))),
    ]
    return ":".join([kind, source, *names, *([str(part)] if part else [])])


encode_alert = msgspec.json.Encoder().encode
decode_alert = msgspec.json.Decoder(Alert).decode
