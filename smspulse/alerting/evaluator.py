"""Watches what no fold can see: silence, the warehouse, the pipeline itself. Writes alerts to `sms.alerts`.

What is on is known from there: started again, it neither writes an alert twice nor forgets one. Two of these processes
at once know of each other in the same way, so run one for each data folder.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Final

import duckdb
import msgspec

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
from smspulse.alerting.alert_state import Book
from smspulse.alerting.alert_topic import AlertLog, AlertWriter
from smspulse.alerting.rules import BY_SQL, Finding, Warehouse, behind
from warehouse.errors import NoWarehouseError

_log = logging.getLogger(__name__)

_PATIENCE_S: Final = {
    SILENT: (0, 0),
    DEVICE_DOWN: (0, 0),
    QUALITY_CHECK: (0, 0),
    WEBHOOK_QUALITY: (0, 600),
    PIPELINE: (120, 120),
    STUCK_MESSAGES: (300, 600),
    LATENCY_SHIFT: (600, 600),
}
"""Seconds that what is found must last before an alert of a kind fires, and be gone before it is resolved."""


class Watch:
    """The life of the alerts that are found.

    Args:
        book: How alerts stand; what is judged is taken there by who writes it.
    """

    def __init__(self, book: Book) -> None:
        self._book = book
        self._gone: dict[str, int] = {}

    def judge(self, findings: Sequence[Finding], judged: Collection[str], now: int) -> list[Alert]:
        """Return what changes.

        Args:
            findings: All that is amiss.
            judged: The kinds that were looked for; others stay as they are.
            now: In milliseconds.
        """
        changes, found = [], set()
        for finding in findings:
            found.add(finding.id)
            self._gone.pop(finding.id, None)
            was = self._book.alerts.get(finding.id)
            if phase := self._next(finding, was, now):
                changes.append(_alert(finding, phase, was, now))
        for id_, was in self._book.alerts.items():
            if was.phase == "resolved" or was.kind not in judged or id_ in found:
                continue
            gone_at = self._gone.setdefault(id_, now)
            if was.phase == "pending" or now - gone_at >= _PATIENCE_S[was.kind][1] * 1000:
                changes.append(msgspec.structs.replace(was, phase="resolved", resolved_at=now, changed_at=now))
                del self._gone[id_]
        return changes

    @staticmethod
    def _next(finding: Finding, was: Alert | None, now: int) -> Phase | None:
        patience_ms = _PATIENCE_S[finding.kind][0] * 1000
        if was is not None and was.phase == "firing":
            return None
        if was is None or was.phase == "resolved":
            return None if not finding.is_bad else "pending" if patience_ms else "firing"
        if not finding.is_bad:
            return "resolved"
        return "firing" if now - was.changed_at >= patience_ms else None


def _alert(finding: Finding, phase: Phase, was: Alert | None, now: int) -> Alert:
    since = min(finding.since, was.since) if was is not None and was.phase == "pending" else finding.since
    return Alert(
        id=finding.id, kind=finding.kind, phase=phase, scope=finding.scope, source=finding.source,
        device_id=finding.device_id, channel_id=None, changed_at=now, since=since,
        fired_at=now if phase == "firing" else None, resolved_at=now if phase == "resolved" else None,
        count=finding.count, failures=finding.failures, baseline=finding.baseline, known=0, bound=None,
        errors=finding.errors, samples=finding.samples, share=finding.share, budget_days=0, what=finding.what,
    )  # fmt: skip


class Look:
    """Looks at a pipeline and its data.

    While lander or stream are behind, or the spool holds what they have not seen, the warehouse is not asked: what it
    lacks says nothing about devices.

    Args:
        data: The data folder.
        kafka: How to reach Kafka.
    """

    def __init__(self, data: Path, kafka: KafkaSettings) -> None:
        self._data, self._kafka, self._warehouse = data, kafka, Warehouse(data)

    def __call__(self, now: int) -> tuple[list[Finding], set[str]]:
        """Return what is amiss at a time in milliseconds, and which kinds were looked for."""
        try:
            late = behind(self._data, self._kafka, now)
            if late is None:
                return [], set()
            if any(each.is_bad for each in late):
                return late, {PIPELINE}
            return [*late, *self._warehouse.findings(now)], {PIPELINE, *BY_SQL}
        except NoWarehouseError:
            return [], set()
        except (SmspulseError, duckdb.Error, OSError) as error:
            _log.warning("alerts cannot be looked for now, and are again: %s", str(error).partition("\n")[0])
            return [], set()
        except Exception as error:  # what is read comes from outside: it must not end the process that sends alerts
            _log.error("alerts cannot be looked for now, and are again: %s", where_raised(error))
            return [], set()


async def watch(
    log: AlertLog,
    look: Callable[[int], tuple[list[Finding], set[str]]],
    write: AlertWriter | Callable[[Sequence[Alert]], list[Alert]],
    every_s: float,
    *,
    clock: Callable[[], float] = time.time,
    ready: Callable[[], None] = lambda: None,
) -> None:
    """Look for ever, every so many seconds, and write what changes.

    Args:
        log: Says how alerts stand.
        look: Returns what is amiss and which kinds were looked for, at a time in milliseconds.
        write: Writes changes, and returns those that it could.
        every_s: Between two looks.
        clock: Returns the seconds since 1970.
        ready: Called when it is known how alerts stand.
    """
    book, loop = Book(), asyncio.get_running_loop()
    for alert in await log.past(whole=True):
        book.take(alert)
    ready()
    judge = Watch(book)
    while True:
        due = loop.time() + every_s
        now = int(clock() * 1000)
        changes = judge.judge(*await asyncio.to_thread(look, now), now)
        for alert in await asyncio.to_thread(write, changes) if changes else []:
            book.take(alert)
        while (left := due - loop.time()) > 0:
            for alert in await log.news(left):
                book.take(alert)
