"""Ground truth of simulated traffic: its model, its file, and the comparison with the warehouse.

A truth file is JSON with a line for each message or malformed webhook of which a part may have been accepted, and the
totals in the last line:

    {"kind": "outgoing", "source", "sms_id", "outcome", "last_status_id", "device_id", "channel_id", "attempts",
     "contradicted", "statuses", "reports", "ingest_ids"}
    {"kind": "incoming", "source", "sms_id", "message_type", "ingest_ids"}
    {"kind": "malformed", "source", "flaw", "ingest_ids"}
    {"totals": {...}}

It covers only webhooks that were answered 202: `ingest_ids` are those of the answers, `reports` is their number. If the
last request of a scenario never got a definite answer, the line has `perhaps`: the truth if that request arrived (for
an outgoing message the fields above from `outcome` to `statuses`, otherwise true).
"""

from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import orjson

from gateway.statuses import ACCEPTED, ENDS, PENDING, QUEUED, SENT, STATUSES, Outcome
from smspulse.simulator.errors import TruthError

# Statuses before an end, in the order in which a message passes them.
STAGES: Final = (PENDING, QUEUED, ACCEPTED, SENT)
# Columns of the view `messages` that the truth has, too.
_MESSAGE_COLUMNS: Final = ("outcome", "last_status_id", "device_id", "channel_id", "attempts", "contradicted")
# By kind of a line: the view with its messages, the time of a row, and the compared columns.
_COMPARED: Final = (
    ("outgoing", "messages", "first_seen_at", _MESSAGE_COLUMNS),
    ("incoming", "incoming_messages", "received_at", ("message_type",)),
)

ReportPart = Literal["stage", "restart", "end", "contradiction", "repetition", "unknown", "stray"]


@dataclass(frozen=True, slots=True)
class MessageTruth:
    """The truth about an outgoing message after the reports accepted so far.

    Args:
        outcome: Outcome, with the names of the view `messages`.
        last_status_id: The status that decides the outcome.
        device_id: Device of the last end; before an end, of the newest report with a new fact.
        channel_id: Channel of the same report.
        attempts: One more than the number of times that a reported step was reported again after a failure.
        contradicted: Whether two ends of different outcome were reported in one attempt.
        statuses: Every reported status, sorted.
    """

    outcome: Outcome
    last_status_id: int
    device_id: int
    channel_id: int
    attempts: int = 1
    contradicted: bool = False
    statuses: tuple[int, ...] = ()


@dataclass(slots=True)
class SimulatedReport:
    """A report and its part in the scenario. `at_s` is in seconds after the start of the scenario."""

    at_s: float
    status_id: int
    device_id: int
    channel_id: int
    sent_at: datetime | None
    part: ReportPart


def update_truth(truth: MessageTruth | None, report: SimulatedReport) -> MessageTruth:
    """Return the truth after a report was accepted, by the part of the report."""
    status_id, part = report.status_id, report.part
    if truth is None:
        truth = MessageTruth(Outcome.UNKNOWN, status_id, report.device_id, report.channel_id)
        decides = True
    else:
        passed = STAGES[: STAGES.index(truth.last_status_id) + 1] if truth.last_status_id in STAGES else ()
        is_progress = part == "stage" and status_id not in passed and truth.outcome not in ENDS
        decides = is_progress or part in {"end", "contradiction"}
    if part == "repetition":
        return truth
    if decides or truth.outcome not in ENDS:
        truth = replace(truth, device_id=report.device_id, channel_id=report.channel_id)
    if decides:
        outcome = STATUSES[status_id].outcome if status_id in STATUSES else Outcome.UNKNOWN
        truth = replace(truth, outcome=outcome, last_status_id=status_id)
    return replace(
        truth,
        attempts=truth.attempts + (part == "restart"),
        contradicted=truth.contradicted or part == "contradiction",
        statuses=tuple(sorted({*truth.statuses, status_id})),
    )


class FieldDifference(NamedTuple):
    """A field of a message that differs from the truth."""

    sms_id: int
    field: str
    actual: object
    expected: object


@dataclass(slots=True)
class TruthComparison:
    """The comparison of the warehouse with the truth of one simulation.

    Args:
        sent: Webhooks that were accepted or permanently refused.
        accepted: Webhooks that were answered 202.
        landed: Answered ingest ids that are in `raw_webhooks`.
        landed_twice: Answered ingest ids that are there more than once.
        unanswered: Webhooks landed during the simulation whose ingest id no answer named.
        unanswered_allowed: Requests without a definite answer: each may have landed.
        messages: Outgoing messages of the truth with an accepted report.
        malformed: Malformed webhooks that were answered 202, and those that landed without an answer.
        malformed_missing: Those of them that are not among the dead letters.
        deadletters: Dead letters of the others, repetitions included.
        deadletters_extra: Dead letters, received during the simulation, that were not malformed.
        abandoned: Webhooks without a definite answer.
        missing: Outgoing and incoming messages of the truth that the warehouse lacks.
        extra: Outgoing and incoming messages, first seen during the simulation, that the truth lacks.
        differences: Fields of messages that both have.
    """

    sent: int
    accepted: int
    landed: int
    landed_twice: int
    unanswered: int
    unanswered_allowed: int
    messages: int
    malformed: int
    malformed_missing: int
    deadletters: int
    deadletters_extra: int
    abandoned: int
    missing: list[int] = field(default_factory=list)
    extra: list[int] = field(default_factory=list)
    differences: list[FieldDifference] = field(default_factory=list)

    @property
    def is_reconciled(self) -> bool:
        """Whether all answered webhooks have landed exactly once with the right result, and nothing else has."""
        return not self.list_problems()

    def list_problems(self) -> list[str]:
        """Return a text for each problem."""
        counts = {
            "sent webhooks were refused": self.sent - self.accepted,
            "accepted webhooks have not landed": self.accepted - self.landed,
            "accepted webhooks have landed more than once": self.landed_twice,
            "webhooks have landed beyond those that requests can explain": self.unanswered - self.unanswered_allowed,
            "messages are missing": len(self.missing),
            "messages were never sent": len(self.extra),
            "messages differ from the truth": len({difference.sms_id for difference in self.differences}),
            "malformed webhooks are no dead letters": self.malformed_missing,
            "dead letters are repeated": self.deadletters + self.malformed_missing - self.malformed,
            "dead letters were not malformed": self.deadletters_extra,
        }
        return [f"{count:,} {what}" for what, count in counts.items() if count > 0]

    def format_result(self) -> str:
        """Return the result in one line."""
        if problems := self.list_problems():
            return f"not reconciled: {'; '.join(problems)} ({self.sent:,} webhooks were sent)"
        parts = [
            f"reconciled: {self.sent:,} sent = {self.accepted:,} accepted = {self.landed:,} landed",
            f"{self.messages:,} messages = truth",
            f"{self.deadletters:,} dead letters = {self.malformed:,} malformed",
        ]
        if self.unanswered:
            parts.append(f"{self.unanswered:,} landed of {self.unanswered_allowed:,} requests without an answer")
        if self.abandoned:
            parts.append(f"{self.abandoned:,} given up without an answer")
        return "; ".join(parts)


def compare_with_truth(data: Path, truth: Path) -> TruthComparison:
    """Compare the warehouse in a data folder with the truth of one simulation.

    It compares the present state: after a simulation, wait for the stream and the lander, or compare again. Other
    traffic of the same source is ignored if it was received before the start or after the end of the simulation, by the
    clock of the receiver. That clock must agree with the simulator's.

    Raises:
        TruthError: The truth file is missing or incomplete.
        NoWarehouseError: Nothing has landed in the data folder.
    """
    lines, totals = _read_truth_file(truth)
    answered = {ingest_id for line in lines for ingest_id in line["ingest_ids"]}
    raw = _read_landed_rows(data, totals, "raw_webhooks", "received_at", ("ingest_id", "kind"))
    landings = Counter(row.ingest_id for row in raw if row.ingest_id in answered)
    unanswered = {row.ingest_id: row.kind for row in raw if row.during and row.ingest_id not in answered}
    malformed = {id_ for line in lines if line["kind"] == "malformed" for id_ in line["ingest_ids"]}
    # Malformed webhooks without an answer may have landed, too.
    malformed |= {ingest_id for ingest_id, kind in unanswered.items() if kind == "unreadable"}
    dead = _read_landed_rows(data, totals, "deadletters", "received_at", ("ingest_id",))
    dead_malformed = [row.ingest_id for row in dead if row.ingest_id in malformed]
    comparison = TruthComparison(
        sent=totals["sent"],
        accepted=len(answered),
        landed=len(landings),
        landed_twice=sum(count > 1 for count in landings.values()),
        unanswered=len(unanswered),
        unanswered_allowed=totals["retried"] + totals["abandoned"],
        messages=sum(line["kind"] == "outgoing" and line["reports"] > 0 for line in lines),
        malformed=len(malformed),
        malformed_missing=len(malformed.difference(dead_malformed)),
        deadletters=len(dead_malformed),
        deadletters_extra=sum(row.ingest_id not in malformed for row in dead if row.during),
        abandoned=totals["abandoned"],
    )
    for kind, view, time, fields in _COMPARED:
        wanted = {line["sms_id"]: line for line in lines if line["kind"] == kind}
        for row in _read_landed_rows(data, totals, view, time, ("sms_id", *fields)):
            if row.sms_id in wanted:
                comparison.differences += _find_differences(row, wanted.pop(row.sms_id), fields)
            elif row.during:
                comparison.extra.append(row.sms_id)
        comparison.missing += [sms_id for sms_id, line in wanted.items() if line["ingest_ids"]]
    return comparison


def _read_landed_rows(data: Path, totals: dict[str, Any], view: str, time: str, columns: tuple[str, ...]) -> list[Any]:
    """Return columns of the rows of the simulation's source; `during` is whether a time lies in the simulation."""
    # Imported late: DuckDB and pandas would slow the start of every command.
    from warehouse.reader import query  # noqa: PLC0415

    # Inclusive on both sides: milliseconds are the resolution of either clock.
    during = f"coalesce(epoch_ms({time}) BETWEEN $start AND $end, false) AS during"
    sql = f"SELECT {', '.join(columns)}, {during} FROM {view} WHERE source = $source"  # noqa: S608 - constants
    parameters = {"source": totals["source"], "start": totals["started_at"], "end": totals["finished_at"]}
    frame = query(data, sql, parameters).astype(object)
    return list(frame.where(frame.notna(), None).itertuples(index=False))


def _find_differences(row: Any, line: dict[str, Any], fields: tuple[str, ...]) -> list[FieldDifference]:
    """Return the fields of a message that differ from its line."""
    actual = {name: getattr(row, name) for name in fields}
    found = []
    # If the last request got no answer, the message is right either with its report or without.
    for truth in (line, line.get("perhaps")):
        if isinstance(truth, dict):
            wrong = [name for name in fields if actual[name] != truth[name]]
            found.append([FieldDifference(row.sms_id, name, actual[name], truth[name]) for name in wrong])
    return min(found, key=len)


def _read_truth_file(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    try:
        lines = [orjson.loads(line) for line in path.read_bytes().splitlines()]
    except FileNotFoundError as error:
        msg = f"no truth file {path}: `smspulse simulate --truth {path}` writes it when it ends"
        raise TruthError(msg) from error
    except orjson.JSONDecodeError as error:
        msg = f"{path} is not a truth file: {error}"
        raise TruthError(msg) from error
    if not lines or type(lines[-1]) is not dict or "totals" not in lines[-1]:
        msg = f"truth file {path} has no totals at its end: it is incomplete, so run the simulation again"
        raise TruthError(msg)
    return lines[:-1], lines[-1]["totals"]
