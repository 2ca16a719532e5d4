"""Evaluates the rules outside the stream: silence, the warehouse, the pipeline itself. Writes alerts to `sms.alerts`.

The current alerts come from that topic at the start. So after a restart it neither writes an alert twice nor forgets
one. Two processes at once would act on the same alerts, so run one for each data folder.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Final

import duckdb
from msgspec.structs import replace

from core.alerts import (
    DEVICE_DOWN,
    LATENCY_SHIFT,
    PIPELINE,
    QUALITY_CHECK,
    SILENT,
    STUCK_MESSAGES,
    WEBHOOK_QUALITY,
    Alert,
    Phase,
)
from core.errors import SmspulseError, where_raised
from core.kafka_settings import KafkaSettings
from smspulse.alerting.alert_state import AlertState
from smspulse.alerting.alert_topic import AlertFeed
from smspulse.alerting.rules import SQL_RULE_KINDS, RuleFinding, WarehouseRules, pipeline_findings
from warehouse.errors import NoWarehouseError

_log = logging.getLogger(__name__)

# Seconds that a finding must last before an alert of the kind fires, and be absent before it is resolved. Rules that
# look at an hour or more of past events need no patience to fire. A lag or a slow hour may pass by itself.
_PATIENCE_S: Final = {
    SILENT: (0, 0),
    DEVICE_DOWN: (0, 0),
    QUALITY_CHECK: (0, 0),
    WEBHOOK_QUALITY: (0, 600),
    PIPELINE: (120, 120),
    STUCK_MESSAGES: (300, 600),
    LATENCY_SHIFT: (600, 600),
}


class AlertStateMachine:
    """The phases of alerts: pending, firing, resolved.

    Args:
        alert_state: The current state of all alerts. The caller applies changes to it.
    """

    def __init__(self, alert_state: AlertState) -> None:
        self._alert_state = alert_state
        self._gone_since: dict[str, int] = {}

    def judge_findings(self, findings: Sequence[RuleFinding], judged_kinds: Collection[str], now: int) -> list[Alert]:
        """Return the changes of alerts.

        Args:
            findings: All present findings.
            judged_kinds: The kinds that were evaluated. Alerts of other kinds do not change.
            now: In milliseconds.
        """
        changes, found_ids = [], set()
        for finding in findings:
            found_ids.add(finding.alert.id)
            self._gone_since.pop(finding.alert.id, None)
            was = self._alert_state.alerts.get(finding.alert.id)
            if phase := self._next_phase(finding, was, now):
                changes.append(_build_change(finding.alert, phase, was, now))
        for id_, was in self._alert_state.alerts.items():
            if was.phase == "resolved" or was.kind not in judged_kinds or id_ in found_ids:
                continue
            gone_at = self._gone_since.setdefault(id_, now)
            # A pending alert was never sent, so it needs no patience.
            if was.phase == "pending" or now - gone_at >= _PATIENCE_S[was.kind][1] * 1000:
                changes.append(replace(was, phase="resolved", resolved_at=now, changed_at=now))
                del self._gone_since[id_]
        return changes

    @staticmethod
    def _next_phase(finding: RuleFinding, was: Alert | None, now: int) -> Phase | None:
        patience_ms = _PATIENCE_S[finding.alert.kind][0] * 1000
        if was is not None and was.phase == "firing":
            return None
        if was is None or was.phase == "resolved":
            return None if not finding.is_bad else "pending" if patience_ms else "firing"
        if not finding.is_bad:
            return "resolved"
        return "firing" if now - was.changed_at >= patience_ms else None


def _build_change(found: Alert, phase: Phase, was: Alert | None, now: int) -> Alert:
    # A pending alert keeps its first time.
    since = min(found.since, was.since) if was is not None and was.phase == "pending" else found.since
    fired_at, resolved_at = now if phase == "firing" else None, now if phase == "resolved" else None
    return replace(found, phase=phase, changed_at=now, since=since, fired_at=fired_at, resolved_at=resolved_at)


class RuleEvaluator:
    """Evaluates the rules of a pipeline and its data.

    While lander or stream are behind, or the spool holds webhooks, the warehouse is not queried: missing messages are
    no evidence about devices then.

    Args:
        data: The data folder.
        kafka: How to reach Kafka.
    """

    def __init__(self, data: Path, kafka: KafkaSettings) -> None:
        self._data, self._kafka, self._warehouse_rules = data, kafka, WarehouseRules(data)

    def __call__(self, now: int) -> tuple[list[RuleFinding], set[str]]:
        """Return the findings at a time in milliseconds, and the evaluated kinds."""
        try:
            late, judged = pipeline_findings(self._data, self._kafka, now)
            if not judged or any(each.is_bad for each in late):
                return late, judged
            return [*late, *self._warehouse_rules.read_findings(now)], {PIPELINE, *SQL_RULE_KINDS}
        except NoWarehouseError:
            pass
        except (SmspulseError, duckdb.Error, OSError) as error:
            reason = str(error).partition("\n")[0]
            _log.warning("the alert rules cannot be evaluated now, and are evaluated again: %s", reason)
        # The rules read data of untrusted clients. No error in it may end the process that sends alerts.
        except Exception as error:
            _log.error("the alert rules cannot be evaluated now, and are again: %s", where_raised(error))
        return [], set()


async def run_evaluator(
    feed: AlertFeed,
    evaluate: Callable[[int], tuple[list[RuleFinding], set[str]]],
    write_alerts: Callable[[Iterable[Alert]], list[Alert]],
    every_s: float,
    clock: Callable[[], float] = time.time,
) -> None:
    """Evaluate the rules every so many seconds, without end. Write the changes of alerts to the topic, and apply them.

    Args:
        feed: The alerts.
        evaluate: Returns the findings and the evaluated kinds at a time in milliseconds.
        write_alerts: Writes changes, and returns those that succeeded.
        every_s: Seconds between two evaluations.
        clock: Returns the seconds since 1970.
    """
    loop, state_machine = asyncio.get_running_loop(), AlertStateMachine(feed.alert_state)
    # Only the last change of each alert: an older one must not follow it into the topic.
    unwritten: dict[str, Alert] = {}
    while True:
        due = loop.time() + every_s
        now = int(clock() * 1000)
        changes = state_machine.judge_findings(*await asyncio.to_thread(evaluate, now), now)
        unwritten |= {alert.id: alert for alert in changes}
        if unwritten:
            for alert in await asyncio.to_thread(write_alerts, unwritten.values()):
                del unwritten[alert.id]
        # Also what could not be written: receivers are notified even while Kafka is away.
        feed.update_alerts(changes)
        await asyncio.sleep(due - loop.time())
