"""Simulated status reports, the part of each in its scenario, and the truth that follows from it."""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, Literal

from gateway.statuses import ACCEPTED, PENDING, QUEUED, SENT, STATUSES, Outcome
from smspulse.simulator.ground_truth import MessageTruth

# Statuses before an end, in the order in which a message passes them.
STAGES: Final = (PENDING, QUEUED, ACCEPTED, SENT)

ReportPart = Literal["stage", "restart", "end", "contradiction", "repetition", "unknown", "stray"]


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
        decides = part in {"end", "contradiction"} or (
            part == "stage"
            and not truth.is_ended
            and _find_stage_index(status_id) > _find_stage_index(truth.last_status_id)
        )
    if part == "repetition":
        return truth
    if decides:
        outcome = STATUSES[status_id].outcome if status_id in STATUSES else Outcome.UNKNOWN
        truth = replace(truth, outcome=outcome, last_status_id=status_id)
    return replace(
        truth,
        attempts=truth.attempts + (part == "restart"),
        contradicted=truth.contradicted or part == "contradiction",
        device_id=report.device_id,
        channel_id=report.channel_id,
        statuses=tuple(sorted({*truth.statuses, status_id})),
    )


def _find_stage_index(status_id: int) -> int:
    return STAGES.index(status_id) if status_id in STAGES else -1
