"""Settings of the change detectors."""

from typing import Final

import msgspec

_DAY_MS: Final = 86_400_000


class DetectorPolicy(msgspec.Struct, frozen=True, gc=False):
    """Settings of all detectors of a stream.

    Attributes:
        budget_days: Days per false alarm of each unit, on average.
        learn_messages: Messages from which a new unit learns before its ratio of failures is judged.
        relearn_messages: Messages after which a lasting rise becomes the new normal; None: never.
        relearn_ms: Milliseconds for which the alert must also have fired.
    """

    budget_days: float = 30.0
    learn_messages: int = 200
    relearn_messages: int | None = 500
    relearn_ms: int = 7 * _DAY_MS


DEFAULT_POLICY: Final = DetectorPolicy()
