"""Scenarios of messages: the webhooks that a gateway sends about each, and the truth after each of them.

A scenario starts from the events of the message; then misbehaviours are added. The truth follows from the part of each
report in the scenario (a stage, the start of another attempt, an end, the contradiction of an end, a repetition,
noise). The writer has that part, and a reader of the webhooks must infer it. So the truth does not share the reader's
errors.

Everything is a pure function of seed and behaviour: the same arguments give the same bytes.
"""

import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from typing import Any, Final, Literal, NamedTuple

import orjson

from gateway.statuses import ACCEPTED, DELIVERED, INCOMING, PENDING, QUEUED, SENT
from smspulse.simulator.ground_truth import STAGES, MessageTruth, ReportPart, SimulatedReport, update_truth
from smspulse.simulator.options import CHANNELS, GatewayBehaviour
from smspulse.simulator.payload_formats import JSON, MALFORMED_BODIES, PayloadFormat, build_status_body

# Start of the times in payloads, so that the bytes depend only on the seed.
_FIRST_TIME: Final = datetime(2026, 1, 5, 8, tzinfo=UTC)
# Each seed has a range of ids of this size, so that no two runs report the same message.
_IDS_PER_SEED: Final = 1_000_000_000
_SEEDS: Final = 1 << 20
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
# Texts with and without characters beyond ASCII, and an empty one.
_TEXTS: Final = ("Yes, please.", "Danke, bis morgen! \N{WAVING HAND SIGN}", "STOP", "Дякую", "Where are you?", "")

_get_report_time: Final = attrgetter("at_s")


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
    """

    kind: Literal["outgoing", "incoming", "malformed"]
    sms_id: int
    webhooks: tuple[SimulatedWebhook, ...]


def generate_scenarios(
    seed: int, messages: int | None, behaviour: GatewayBehaviour | None = None
) -> Iterator[MessageScenario]:
    """Yield the scenarios of a number of outgoing messages, with incoming and malformed ones among them.

    Args:
        seed: Any whole number. Each seed below 2**20 has its own range of ids, so that runs with different seeds never
            report the same message.
        messages: Number of outgoing messages; None for no end.
        behaviour: The behaviour of the gateway; None for the default.
    """
    behaviour = behaviour or GatewayBehaviour()
    ids = itertools.count((seed % _SEEDS + 1) * _IDS_PER_SEED)
    resend: tuple[str, float] | None = None
    for number in itertools.count() if messages is None else range(messages):
        # One generator for each message, so that a scenario does not depend on its neighbours.
        rng = random.Random(f"{seed}/{number}")  # noqa: S311 - repeatable on purpose
        base = _FIRST_TIME + timedelta(seconds=number)
        writer = _ScenarioWriter(rng, behaviour, next(ids), base, resend)
        yield MessageScenario("outgoing", writer.sms_id, writer.write_outgoing())
        resend = writer.resend
        if rng.random() < behaviour.incoming:
            writer = _ScenarioWriter(rng, behaviour, next(ids), base)
            yield MessageScenario("incoming", writer.sms_id, (writer.write_incoming(),))
        if rng.random() < behaviour.malformed:
            sms_id, flaw = next(ids), rng.choice(list(MALFORMED_BODIES))
            webhook = SimulatedWebhook(0.0, *MALFORMED_BODIES[flaw](sms_id), role=flaw)
            yield MessageScenario("malformed", sms_id, (webhook,))


class _ScenarioWriter:
    """Writer of one scenario. Reports are in the order of their times."""

    def __init__(
        self,
        rng: random.Random,
        behaviour: GatewayBehaviour,
        sms_id: int,
        base: datetime,
        resend: tuple[str, float] | None = None,
    ) -> None:
        self.rng, self.behaviour, self.sms_id, self.base = rng, behaviour, sms_id, base
        # Ofcom's range for drama. Such a number is never assigned.
        self.phone, self.start_s = resend or (f"+447700900{rng.randrange(1000):03}", 0.0)
        # Recipient and start of the next scenario, if it is this message under another id.
        self.resend: tuple[str, float] | None = None
        self.payload_format = PayloadFormat(
            rng.choice(("old", "middle")) if self._happens(behaviour.old_payloads) else "current",
            self._happens(behaviour.numeric_strings),
            self._happens(behaviour.spaced_numbers),
            rng.choice(("iso", "object")) if self._happens(behaviour.other_datetimes) else "sql",
        )

    def write_incoming(self) -> SimulatedWebhook:
        """Write the webhook of an incoming message."""
        rng, form = self.rng, self.payload_format
        image = self._happens(self.behaviour.images)
        device_id, channel_id = self._choose_device()
        payload: dict[str, Any] = {
            "address": form.encode_phone(self.phone),
            "date": form.encode_time(self.base),
            "date_sent": form.encode_time(self.base - timedelta(seconds=rng.randrange(1, 30))),
            "body": "" if image else rng.choice(_TEXTS),
            "internal_id": None if image else rng.randrange(1, 100_000),
            "sms_id": self.sms_id,
        }
        if image:
            # The documented image names neither its device nor a channel_id.
            url = f"https://gateway.invalid/images/{rng.getrandbits(64):016x}.jpg"
            payload |= {"type": "img", "img_url": url, "sim": channel_id}
            return SimulatedWebhook(0.0, orjson.dumps(form.encode_numbers(payload)), JSON, "img")
        payload |= {form.channel_field: channel_id, "device_id": device_id, "device_name": f"phone {device_id}"}
        payload = form.encode_numbers(payload)
        if form.generation == "old" and self._happens(_COIN):
            payload["address"] = int(self.phone.removeprefix("+"))
        if form.generation == "current":
            payload["type"] = "text"
        return SimulatedWebhook(0.0, orjson.dumps(payload), JSON, "text")

    def write_outgoing(self) -> tuple[SimulatedWebhook, ...]:
        """Write the webhooks of an outgoing message."""
        # Status reports never had the middle generation.
        if self.payload_format.generation == "middle":
            self.payload_format = self.payload_format._replace(generation="old")
        device_id, channel_id = self._choose_device()
        odd = self._choose_odd_status()
        # The odd status can be the only report of the message.
        if odd and self._happens(_COIN):
            reports = [SimulatedReport(self.start_s, odd[0], device_id, channel_id, self.base, odd[1])]
        else:
            reports = self._write_attempts(device_id, channel_id)
            if odd:
                first, last = min(map(_get_report_time, reports)), max(map(_get_report_time, reports))
                at_s = self.rng.uniform(first, last + 1)
                before = max((report for report in reports if report.at_s <= at_s), key=_get_report_time)
                reports.append(replace(before, at_s=at_s, status_id=odd[0], part=odd[1]))
        if self._happens(self.behaviour.duplicates):
            for report in self.rng.sample(reports, min(len(reports), self.rng.randint(1, 2))):
                pause_s = self._draw_seconds(3.0 if self._happens(_COIN) else _LATE_MEDIAN_S)
                reports.append(replace(report, at_s=report.at_s + pause_s, part="repetition"))
        return tuple(self._build_webhooks(sorted(reports, key=_get_report_time)))

    def _write_attempts(self, device_id: int, channel_id: int) -> list[SimulatedReport]:
        """Return the reports of all attempts."""
        behaviour = self.behaviour
        multipart = self._happens(behaviour.multipart)
        reports: list[SimulatedReport] = []
        start_s, first_attempt = self.start_s, 0
        for attempt in range(1, _MAX_ATTEMPTS + 1):
            end = self._choose_end_status(device_id)
            draw = self.rng.random()
            again = end != DELIVERED and draw < behaviour.resends and not multipart and attempt < _MAX_ATTEMPTS
            reports += self._write_one_attempt(start_s, device_id, channel_id, end, attempt, resent=again)
            first_attempt = first_attempt or len(reports)
            last_s = reports[-1].at_s
            if not again:
                if end != DELIVERED and draw >= 1 - behaviour.resends_new_id:
                    self.resend = self.phone, last_s + self._draw_seconds(_RESEND_MEDIAN_S)
                break
            # More than a second, so that the attempts differ in `senttime`.
            start_s = last_s + 2 + self._draw_seconds(_RESEND_MEDIAN_S)
            if self._happens(_COIN):
                device_id, channel_id = self._choose_device()
        only_attempt = attempt == 1
        if len(reports) > 1 and not self.resend and self._happens(behaviour.missing_ends):
            reports.pop()
        if only_attempt and self._happens(behaviour.null_senttime):
            unsent = [report for report in reports if report.status_id in STAGES[:-1]]
            for report in (self._happens(_COIN) and unsent) or reports:
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
        reports = []
        for status_id in (*(STAGES if end in _ENDS_AFTER_SENDING else STAGES[:-1]), end):
            start_s += self._draw_seconds(_MEDIANS_S.get(status_id, _END_MEDIAN_S)) * slowdown
            part: ReportPart = "end" if status_id == end else "stage"
            reports.append(SimulatedReport(start_s, status_id, device_id, channel_id, sent_at, part))
        if self._happens(self.behaviour.skipped_stages):
            # A step that is reported again marks another attempt. So that step is always reported.
            droppable = reports[1 if resent or attempt > 1 else 0 : -1]
            for report in self.rng.sample(droppable, self.rng.randint(1, len(droppable))):
                reports.remove(report)
        if attempt > 1:
            reports[0].part = "restart"
        return reports

    def _add_disorder(self, reports: list[SimulatedReport], pairs: int, may_be_late: list[SimulatedReport]) -> None:
        """Add disorder: swap two neighbouring reports, delay a report, contradict the end."""
        rng, behaviour = self.rng, self.behaviour
        if pairs > 0 and self._happens(behaviour.reordering):
            i = rng.randrange(pairs)
            reports[i].at_s, reports[i + 1].at_s = reports[i + 1].at_s, reports[i].at_s
        if len(reports) > 1 and self._happens(behaviour.late_reports):
            late = rng.choice(may_be_late) if self._happens(_COIN) else reports[-1]
            late.at_s = max(map(_get_report_time, reports)) + self._draw_seconds(_LATE_MEDIAN_S)
        if reports[-1].part == "end" and self._happens(behaviour.contradictions):
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
        saved = end is not None and end.status_id != DELIVERED and self._happens(_COIN)
        for report in filter(None, (sent, end)):
            for part in range(1, parts):
                copy = replace(report, at_s=report.at_s + part / 2, part="repetition")
                if copy.sent_at:
                    copy.sent_at += timedelta(seconds=part)
                if saved and report is end:
                    copy.status_id, copy.part = DELIVERED, "contradiction" if part == 1 else "repetition"
                reports.append(copy)

    def _build_webhooks(self, reports: list[SimulatedReport]) -> Iterator[SimulatedWebhook]:
        """Yield the webhooks of reports in order of arrival."""
        truth, now_s = None, 0.0
        for report in reports:
            truth = update_truth(truth, report)
            body = build_status_body(self.payload_format, self.sms_id, self.phone, report)
            yield SimulatedWebhook(report.at_s - now_s, body, JSON, report.part, truth)
            now_s = report.at_s

    def _choose_odd_status(self) -> tuple[int, ReportPart] | None:
        if self._happens(self.behaviour.unknown_codes):
            return self.rng.choice(_UNDOCUMENTED_STATUSES), "unknown"
        return (INCOMING, "stray") if self._happens(self.behaviour.stray_incoming) else None

    def _choose_device(self) -> tuple[int, int]:
        return self.rng.choice(self.behaviour.device_ids), self.rng.randrange(CHANNELS)

    def _choose_end_status(self, device_id: int) -> int:
        failing = dict(self.behaviour.unhealthy).get(device_id, self.behaviour.failing)
        return self._choose_failure_status() if self._happens(failing) else DELIVERED

    def _choose_failure_status(self) -> int:
        status_ids, weights = zip(*self.behaviour.failure_mix, strict=True)
        return int(self.rng.choices(status_ids, weights)[0])

    def _draw_seconds(self, median: float) -> float:
        # Lognormal with a long tail: one value in a hundred is more than six times the median.
        return self.rng.lognormvariate(math.log(median), 0.8) if median else 0.0

    def _happens(self, rate: float) -> bool:
        return self.rng.random() < rate
