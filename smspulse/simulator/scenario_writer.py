"""Writes the scenario of one message: its webhooks, and the truth after each of them."""

import math
import random
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final, Literal, NamedTuple

from gateway.statuses import ACCEPTED, DELIVERED, INCOMING, PENDING, QUEUED, SENT
from smspulse.simulator.ground_truth import MessageTruth
from smspulse.simulator.options import CHANNELS, GatewayBehaviour
from smspulse.simulator.payload_formats import JSON, PayloadFormat, build_incoming_body, build_status_body
from smspulse.simulator.reports import STAGES, ReportPart, SimulatedReport, update_truth

# Ends of messages that the phone had handed to the operator.
_ENDS_AFTER_SENDING: Final = frozenset({DELIVERED, 8})
# Median seconds after the previous step: one in the queue, two on the phone.
_MEDIANS_S: Final = {PENDING: 0.0, QUEUED: 0.3, ACCEPTED: 0.7, SENT: 2.0}
_END_MEDIAN_S: Final = 5.0
# Factor of all delays of an unhealthy phone.
_UNHEALTHY_SLOWDOWN: Final = 3.0
# A late report comes some hours after the others.
_LATE_MEDIAN_S: Final = 2 * 3600.0
# A person or a program sends a failed message again after some seconds.
_RESEND_MEDIAN_S: Final = 45.0
_MAX_ATTEMPTS: Final = 4
# Gaps in the documented range, and values beyond it.
_UNDOCUMENTED_STATUSES: Final = (0, 4, 13, 14, 42, 102, 255)
_COIN: Final = 0.5


class SimulatedWebhook(NamedTuple):
    """One webhook.

    Args:
        delay_s: Seconds after the answer to the previous webhook, or after the start of the scenario; not limited.
        body: Exact bytes.
        content_type: Header of the request.
        role: Part of the report; flaw of a malformed body; `text` or `img` for incoming messages.
        truth: Truth about an outgoing message after this webhook and all before it were accepted.
    """

    delay_s: float
    body: bytes
    content_type: str
    role: str
    truth: MessageTruth | None = None


class MessageScenario(NamedTuple):
    """All webhooks about one message, in the order of their arrival; or one malformed webhook.

    Args:
        kind: `malformed` has no message.
        sms_id: Unique among all scenarios of a seed.
        webhooks: One at least.
        traits: Names of the rates of `GatewayBehaviour` that affect this scenario.
    """

    kind: Literal["outgoing", "incoming", "malformed"]
    sms_id: int
    webhooks: tuple[SimulatedWebhook, ...]
    traits: frozenset[str] = frozenset()


class ScenarioWriter:
    """Writer of one scenario. Reports are in the order of their times."""

    def __init__(
        self,
        rng: random.Random,
        behaviour: GatewayBehaviour,
        sms_id: int,
        base: datetime,
        resend: tuple[str, float] | None = None,
    ) -> None:
        self.rng = rng
        self.behaviour = behaviour
        self.sms_id = sms_id
        self.base = base
        self.traits: set[str] = set()
        # Ofcom's range for drama. Such a number is never assigned.
        self.phone, self.start_s = resend or (f"+447700900{rng.randrange(1000):03}", 0.0)
        if resend:
            self.traits.add("resends_new_id")
        # Recipient and start of the next scenario, if it is this message under another id.
        self.resend: tuple[str, float] | None = None
        self.payload_format = PayloadFormat(
            rng.choice(("old", "middle")) if self._draw_misbehaviour("old_payloads") else "current",
            self._draw_misbehaviour("numeric_strings"),
            self._draw_misbehaviour("spaced_numbers"),
            rng.choice(("iso", "object")) if self._draw_misbehaviour("other_datetimes") else "sql",
        )

    def write_incoming(self) -> MessageScenario:
        """Write the scenario of an incoming message."""
        image = self._draw_misbehaviour("images")
        device_id = self.rng.choice(self.behaviour.device_ids)
        body = build_incoming_body(
            self.rng,
            self.payload_format,
            self.sms_id,
            sender=self.phone,
            at=self.base,
            device_id=device_id,
            image=image,
        )
        webhook = SimulatedWebhook(0.0, body, JSON, "img" if image else "text")
        return MessageScenario("incoming", self.sms_id, (webhook,), frozenset(self.traits | {"incoming"}))

    def write_outgoing(self) -> MessageScenario:
        """Write the scenario of an outgoing message."""
        # Status reports never had the middle generation.
        if self.payload_format.generation == "middle":
            self.payload_format = self.payload_format._replace(generation="old")
        device_id, channel_id = self._choose_device()
        odd = self._choose_odd_status()
        # The odd status can be the only report of the message.
        if odd and self.rng.random() < _COIN:
            reports = [SimulatedReport(self.start_s, odd[0], device_id, channel_id, self.base, odd[1])]
        else:
            reports = self._write_attempts(device_id, channel_id)
            if odd:
                first, last = min(map(_get_report_time, reports)), max(map(_get_report_time, reports))
                at_s = self.rng.uniform(first, last + 1)
                before = max((report for report in reports if report.at_s <= at_s), key=_get_report_time)
                reports.append(replace(before, at_s=at_s, status_id=odd[0], part=odd[1]))
        if self._draw_misbehaviour("duplicates"):
            for report in self.rng.sample(reports, min(len(reports), self.rng.randint(1, 2))):
                pause_s = self._draw_seconds(3.0 if self.rng.random() < _COIN else _LATE_MEDIAN_S)
                reports.append(replace(report, at_s=report.at_s + pause_s, part="repetition"))
        reports.sort(key=_get_report_time)
        return MessageScenario("outgoing", self.sms_id, self._build_webhooks(reports), frozenset(self.traits))

    def _write_attempts(self, device_id: int, channel_id: int) -> list[SimulatedReport]:
        """Return the reports of all attempts."""
        rng = self.rng
        multipart = rng.random() < self.behaviour.multipart
        reports: list[SimulatedReport] = []
        start_s, first_attempt = self.start_s, 0
        for attempt in range(1, _MAX_ATTEMPTS + 1):
            end = self._choose_end_status(device_id)
            draw = rng.random()
            again = end != DELIVERED and draw < self.behaviour.resends and not multipart and attempt < _MAX_ATTEMPTS
            if attempt == 1 and end != DELIVERED:
                self.traits.add("failing")
            reports += self._write_one_attempt(start_s, device_id, channel_id, end, attempt, resent=again)
            first_attempt = first_attempt or len(reports)
            last_s = reports[-1].at_s
            if not again:
                if end != DELIVERED and draw >= 1 - self.behaviour.resends_new_id:
                    self.resend = self.phone, last_s + self._draw_seconds(_RESEND_MEDIAN_S)
                break
            self.traits.add("resends")
            # More than a second, so that the attempts differ in `senttime`.
            start_s = last_s + 2 + self._draw_seconds(_RESEND_MEDIAN_S)
            if rng.random() < _COIN:
                device_id, channel_id = self._choose_device()
        if len(reports) > 1 and not self.resend and self._draw_misbehaviour("missing_ends"):
            reports.pop()
        only_attempt = "resends" not in self.traits
        if only_attempt and self._draw_misbehaviour("null_senttime"):
            unsent = [report for report in reports if report.status_id in STAGES[:-1]]
            for report in (rng.random() < _COIN and unsent) or reports:
                report.sent_at = None
        if multipart:
            self._split_into_parts(reports)
        else:
            # With further attempts, a step of an earlier one that arrived after its failure would look like another
            # attempt. So only steps before the first failure are swapped, and only the last report is late.
            pairs = len(reports) - 1 if only_attempt else first_attempt - 2
            self._add_disorder(reports, pairs, reports if only_attempt else reports[-1:])
        return reports

    def _write_one_attempt(
        self, start_s: float, device_id: int, channel_id: int, end: int, attempt: int, *, resent: bool
    ) -> list[SimulatedReport]:
        """Return the reports of one attempt, its end the last."""
        sent_at = self.base + timedelta(seconds=int(start_s))
        slowdown = _UNHEALTHY_SLOWDOWN if device_id in dict(self.behaviour.unhealthy) else 1.0
        stages = STAGES if end in _ENDS_AFTER_SENDING else STAGES[:-1]
        reports = []
        for status_id in (*stages, end):
            start_s += self._draw_seconds(_MEDIANS_S.get(status_id, _END_MEDIAN_S)) * slowdown
            reports.append(
                SimulatedReport(
                    start_s, status_id, device_id, channel_id, sent_at, "stage" if status_id in STAGES else "end"
                )
            )
        # A step that is reported again marks another attempt. So that step is always reported.
        kept = 1 if resent or attempt > 1 else 0
        if self._draw_misbehaviour("skipped_stages"):
            droppable = reports[kept:-1]
            for report in self.rng.sample(droppable, self.rng.randint(1, len(droppable))):
                reports.remove(report)
        if attempt > 1:
            reports[0].part = "restart"
        return reports

    def _add_disorder(self, reports: list[SimulatedReport], pairs: int, may_be_late: list[SimulatedReport]) -> None:
        """Add disorder: swap two neighbouring reports, delay a report, contradict the end."""
        rng = self.rng
        if pairs > 0 and self._draw_misbehaviour("reordering"):
            i = rng.randrange(pairs)
            reports[i].at_s, reports[i + 1].at_s = reports[i + 1].at_s, reports[i].at_s
        if len(reports) > 1 and self._draw_misbehaviour("late_reports"):
            late = rng.choice(may_be_late) if rng.random() < _COIN else reports[-1]
            late.at_s = max(map(_get_report_time, reports)) + self._draw_seconds(_LATE_MEDIAN_S)
        if reports[-1].part == "end" and self._draw_misbehaviour("contradictions"):
            other = self._choose_failure_status() if reports[-1].status_id == DELIVERED else DELIVERED
            at_s = max(map(_get_report_time, reports)) + self._draw_seconds(20.0)
            reports.append(replace(reports[-1], at_s=at_s, status_id=other, part="contradiction"))

    def _split_into_parts(self, reports: list[SimulatedReport]) -> None:
        """Report each part of the message from the phone on. Sometimes one part fails and the others arrive."""
        end = reports[-1] if reports[-1].part == "end" else None
        sent = next((report for report in reports if report.status_id == SENT), None)
        parts = self.rng.randint(2, 3)
        if end:
            # Every part is sent before the first one ends.
            end.at_s += parts
        saved = end is not None and end.status_id != DELIVERED and self.rng.random() < _COIN
        for report in filter(None, (sent, end)):
            self.traits.add("multipart")
            for part in range(1, parts):
                copy = replace(report, at_s=report.at_s + part / 2, part="repetition")
                if copy.sent_at:
                    copy.sent_at += timedelta(seconds=part)
                if saved and report is end:
                    copy.status_id, copy.part = DELIVERED, "contradiction" if part == 1 else "repetition"
                reports.append(copy)

    def _build_webhooks(self, reports: list[SimulatedReport]) -> tuple[SimulatedWebhook, ...]:
        """Return the webhooks of reports in order of arrival."""
        webhooks = []
        truth, now_s = None, 0.0
        for report in reports:
            truth = update_truth(truth, report)
            body = build_status_body(
                self.payload_format,
                self.sms_id,
                report.status_id,
                recipient=self.phone,
                sent_at=report.sent_at,
                device_id=report.device_id,
                channel_id=report.channel_id,
            )
            webhooks.append(SimulatedWebhook(report.at_s - now_s, body, JSON, report.part, truth))
            now_s = report.at_s
        return tuple(webhooks)

    def _choose_odd_status(self) -> tuple[int, ReportPart] | None:
        if self._draw_misbehaviour("unknown_codes"):
            return self.rng.choice(_UNDOCUMENTED_STATUSES), "unknown"
        return (INCOMING, "stray") if self._draw_misbehaviour("stray_incoming") else None

    def _choose_device(self) -> tuple[int, int]:
        return self.rng.choice(self.behaviour.device_ids), self.rng.randrange(CHANNELS)

    def _choose_end_status(self, device_id: int) -> int:
        failing = dict(self.behaviour.unhealthy).get(device_id, self.behaviour.failing)
        return self._choose_failure_status() if self.rng.random() < failing else DELIVERED

    def _choose_failure_status(self) -> int:
        status_ids, weights = zip(*self.behaviour.failure_mix, strict=True)
        return int(self.rng.choices(status_ids, weights)[0])

    def _draw_seconds(self, median: float) -> float:
        # Lognormal with a long tail: one value in a hundred is more than six times the median.
        return self.rng.lognormvariate(math.log(median), 0.8) if median else 0.0

    def _draw_misbehaviour(self, rate: str) -> bool:
        """Return at random whether a misbehaviour affects this scenario, and record it."""
        happens = bool(self.rng.random() < getattr(self.behaviour, rate))
        if happens:
            self.traits.add(rate)
        return happens


def _get_report_time(report: SimulatedReport) -> float:
    return report.at_s
