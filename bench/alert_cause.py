"""Measures which alerts are notified: the failing phone's only, or the source's only if all its phones fail.

A source of five phones, a message a minute, is well for 1,500 messages. Then messages of one phone fail, or of all,
through one or two SIM cards each. What the stream writes on `sms.alerts` goes to the dispatcher of the webhook as time
passes.

    python bench/alert_cause.py [--quick]
"""

# ruff: noqa: S311 - traffic, not secrets

import random
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

sys.path.remove(str(Path(__file__).parent))  # its streams.py would hide the package
sys.path.append(str(Path(__file__).parent))

import msgspec
from measure import figure

from core.alerts import FAILURE_RATIO, Alert, decode_alert
from core.topics import ALERTS, OUTCOMES
from smspulse.alerting.alert_state import AlertState
from smspulse.alerting.delivery_state import ClockReading, WebhookState
from streams.device_processor import DeviceProcessor
from streams.failure_baseline import DetectorPolicy
from streams.lifecycle import OutcomeRecord

T0: Final = 1_760_000_000_000
MINUTE_MS: Final = 60_000
CYCLE_MS: Final = 5_000
PHONES: Final = (8001, 8002, 8003, 8004, 8005)
WELL, SICK = 1_500, 400
USUAL: Final = 0.03
RATIOS: Final = (0.3, 0.5, 1.0)
SIM_CARDS: Final = (1, 2)
BUDGET_DAYS: Final = 30


def written(sick: set[int], ratio: float, sim_cards: int, seed: int) -> list[Alert]:
    """Return the records of the stream after some phones begin to fail."""
    chance, store, alerts = random.Random(seed), dict[bytes, bytes](), list[Alert]()
    for number in range(WELL + SICK):
        phone = PHONES[number % len(PHONES)]
        failing = number >= WELL and phone in sick
        status_id, outcome = (8, "undelivered") if chance.random() < (ratio if failing else USUAL) else (7, "delivered")
        channel, at = 1 + number // len(PHONES) % sim_cards, T0 + number * MINUTE_MS
        end = OutcomeRecord(
            source="gw", sms_id=number, outcome=outcome, failure_class=None, last_status_id=status_id, is_ended=True,
            device_id=phone, channel_id=channel, first_seen_at=at, ended_at=at, attempts=1, queue_s=None, device_s=None,
            network_s=None, total_s=None, correction=False, previous=None,
        )  # fmt: skip
        value = msgspec.json.encode(end)
        record: Any = SimpleNamespace(topic=OUTCOMES, partition=0, offset=0, key=b"", value=value, headers=[])
        outputs = DeviceProcessor(store.get, DetectorPolicy(BUDGET_DAYS)).process([record])
        store |= {key: state or b"" for key, state, _ in outputs.states}
        if number >= WELL:
            alerts += [decode_alert(each.value or b"") for each in outputs.records if each.topic == ALERTS]
    return [alert for alert in alerts if alert.kind == FAILURE_RATIO]


def notified(alerts: list[Alert]) -> Iterator[Alert]:
    """Yield the alerts that the cycles of the dispatcher notify as firing."""
    alert_state, left = AlertState(), list(alerts)
    state = WebhookState(alert_state, lambda _: frozenset())
    for now in range(T0 + WELL * MINUTE_MS, T0 + (WELL + SICK + 60) * MINUTE_MS, CYCLE_MS):
        while left and left[0].changed_at <= now:
            alert_state.update_alert(left.pop(0))
        for alert in state.next_alerts(ClockReading(now / 1000, now / 1000)):
            if alert.phase == "firing":
                yield alert
            state.mark_sent(alert)


def share(sick: set[int], seeds: int, *, wanted_source: bool) -> float:
    """Return the share of runs that notified of the source, or else of the failing phones only."""
    runs = list(product(RATIOS, SIM_CARDS, range(seeds)))
    right = 0
    for ratio, sim_cards, seed in runs:
        found = list(notified(written(sick, ratio, sim_cards, seed)))
        of_source = [alert for alert in found if alert.scope == "source"]
        of_phones = {alert.device_id for alert in found if alert.scope != "source"}
        right += bool(of_source) and not of_phones if wanted_source else not of_source and of_phones == sick
    return right / len(runs)


def main(seeds: int, goal: str) -> None:
    """Print the figures."""
    phone = share({8005}, seeds, wanted_source=False)
    figure("alert_one_sick_phone_alone_is_notified", phone, goal)
    source = share(set(PHONES), seeds, wanted_source=True)
    figure("alert_source_alone_is_notified_when_all_fail", source, goal)


if __name__ == "__main__":
    if "--quick" in sys.argv[1:]:
        main(1, "")  # the result of so few runs is random
    else:
        main(12, ">= 0.85")
