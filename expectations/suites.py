"""The suite `warehouse`: what must hold of the datasets `raw` and `messages`, and why.

Each check looks at one column of the frame that `metrics.sql` computes over everything that was landed. Great
Expectations ignores nulls there: a scope that a column is not measured on, or in which there was nothing to measure.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from expectations.settings import CheckSettings
from gateway.statuses import Outcome

if TYPE_CHECKING:
    from great_expectations import ExpectationSuite

Severity = Literal["critical", "warning", "info"]
Unit = Literal["count", "share", "seconds", "text"]

SUITE: Final = "warehouse"


@dataclass(frozen=True, slots=True)
class Check:
    """One expectation, with all that a person must be told about it.

    Args:
        name: Stable, for programs.
        dataset: The dataset or view that it is about.
        column: Of the frame of metrics.
        severity: `critical` means that numbers are wrong or lacking, `warning` that somebody should look.
        meaning: Why it is expected: what is the matter if it is not so.
        action: What to do then.
        unit: Of the column.
        least: Smallest value that is right; None for any.
        most: Largest value that is right; None for any. 0 by default: most columns count what is wrong.
        allowed: All values that are right; in place of `least` and `most`.
    """

    name: str
    dataset: str
    column: str
    severity: Severity
    meaning: str
    action: str
    unit: Unit = "count"
    least: float | None = None
    most: float | None = 0
    allowed: tuple[str, ...] = ()

    @property
    def expected(self) -> str:
        """The values that are right, in words."""
        if self.allowed:
            return "one of " + ", ".join(self.allowed)
        if self.least is not None and self.most is not None:
            return f"{self.show(self.least)} to {self.show(self.most)}"
        if self.least is not None:
            return f"at least {self.show(self.least)}"
        return "0" if not self.most else f"at most {self.show(self.most)}"

    def show(self, value: object) -> str:
        """Write a value of the column for people."""
        if not isinstance(value, int | float):
            return str(value)
        seconds = f"{value:,.3f}".rstrip("0").rstrip(".")
        texts = {"count": f"{value:,.0f}", "share": f"{value:.1%}", "seconds": f"{seconds} s"}
        return texts.get(self.unit, str(value))


def checks(settings: CheckSettings) -> tuple[Check, ...]:
    """Return the checks of the suite, in the order in which data walks through the pipeline."""
    return (
        Check(
            "raw_offsets_contiguous", "raw", "raw_offsets_missing", "critical",
            "Webhooks that were accepted are not in the warehouse: nothing but a webhook takes an offset of sms.raw.",
            "Put back the file that was moved out of raw/; if the lander logged LOST, raise the topic's retention.ms.",
        ),
        Check(
            "raw_offsets_unique", "raw", "raw_offsets_repeated", "critical",
            "Webhooks are in the warehouse twice, and every count of them is too high.",
            "Find the copied file in raw/ and move it out: names hold topic, partition and first offset.",
        ),
        Check(
            "raw_ingest_ids_unique", "raw", "ingest_ids_repeated", "critical",
            "One webhook was written to Kafka more than once: its reports count double in raw, though not in messages.",
            "Compare the rows of these ingest_ids in raw_webhooks: look for a second writer or a replay to sms.raw.",
        ),
        Check(
            "raw_receipts_complete", "raw", "receipts_incomplete", "critical",
            "Records lack source, ingest_id or received_at, so they did not come through ingest.",
            "Find who writes to sms.raw beside `smspulse ingest`.",
        ),
        Check(
            "raw_clock_not_ahead", "raw", "quiet_s", "warning",
            "The newest webhook was received in the future: a clock is wrong, and with it latencies and hours.",
            "Compare the clocks of this machine and of the ingest hosts; let them be set by NTP.",
            unit="seconds", least=-settings.max_ahead_s, most=None,
        ),
        Check(
            "raw_fresh", "raw", "quiet_s", "info",
            "No webhook has been landed for a while: the phones rest, or ingest or the lander do.",
            "If messages are being sent, look at `smspulse status` and at the webhook URL in the gateway's settings.",
            unit="seconds", most=settings.max_quiet_s,
        ),
        Check(
            "raw_readable", "raw", "unreadable_share", "warning",
            f"Many webhooks of the last {settings.recent_h:g} h cannot be read, so they are in no rate.",
            "SELECT source, reason, count(*) FROM deadletters GROUP BY ALL; then look at who sends them.",
            unit="share", most=settings.max_unreadable_share,
        ),
        Check(
            "messages_up_to_date", "messages", "waiting_s", "warning",
            "Status reports have been landed, but what the stream makes of them has not: rates lag behind.",
            "See whether `smspulse stream` runs and what it logs; it goes on where it stopped.",
            unit="seconds", most=settings.max_waiting_s,
        ),
        Check(
            "messages_offsets_unique", "messages", "versions_repeated", "critical",
            "Records of sms.messages were landed twice.",
            "Find the copied file in messages/ and move it out: names hold topic, partition and first offset.",
        ),
        Check(
            "messages_keys_unique", "messages", "keys_repeated", "critical",
            "A message is there more than once, under two keys or with one key for two: rates count it double.",
            "Find it by message_key, source and sms_id in messages, and who writes to sms.messages beside the stream.",
        ),
        Check(
            "messages_outcomes_known", "messages", "outcome", "critical",
            "Messages have an outcome that no rate knows.",
            "Stream and warehouse are of different versions: bring both to the same one.",
            unit="text", allowed=tuple(outcome.value for outcome in Outcome),
        ),
        Check(
            "messages_ends_clear", "messages", "ends_unclear", "critical",
            "is_ended, outcome and ended_at contradict each other, so delivered / ended is wrong.",
            "Stream and warehouse are of different versions, or somebody else writes to sms.messages.",
        ),
        Check(
            "messages_latencies_not_negative", "messages", "lowest_latency_s", "critical",
            "A latency is negative. The stream gives null and a flag for a step that runs backwards.",
            "Find the messages by queue_s, device_s, network_s and total_s below 0; report it with their observations.",
            unit="seconds", least=0, most=None,
        ),
        Check(
            "messages_times_in_order", "messages", "times_backwards", "critical",
            "Messages ended before their first report or after their last one.",
            "Compare first_seen_at, ended_at and last_seen_at with the observations of these messages.",
        ),
        Check(
            "messages_observed", "messages", "without_observation", "critical",
            "Messages rest on no report at all.",
            "Find who writes to sms.messages beside the stream.",
        ),
        Check(
            "messages_follow_from_log", "messages", "messages_differing", "critical",
            "At its last run `smspulse rebuild` found other lifecycles in the raw webhooks than the stream had made.",
            "FROM rebuild_differences; after a change of SMSPULSE_STREAM_ settings, `smspulse rebuild --all`.",
        ),
        Check(
            "rates_in_range", "delivery_by_device", "rate", "critical",
            "A delivery rate is not a part of a whole: messages contradict themselves, or the view miscounts.",
            "If messages_ends_clear fails too, begin there; else remove smspulse.duckdb and start `smspulse land`.",
            unit="share", least=0, most=1,
        ),
    )  # fmt: skip


def build_suite(of: Sequence[Check]) -> "ExpectationSuite":
    """Return the checks as a suite of Great Expectations; an expectation's `meta["name"]` is its check's name."""
    from great_expectations import ExpectationSuite  # noqa: PLC0415 - takes seconds
    from great_expectations.expectations.core.expect_column_values_to_be_between import (  # noqa: PLC0415
        ExpectColumnValuesToBeBetween,
    )
    from great_expectations.expectations.core.expect_column_values_to_be_in_set import (  # noqa: PLC0415
        ExpectColumnValuesToBeInSet,
    )

    suite = ExpectationSuite(name=SUITE)
    for check in of:
        common: dict[str, Any] = {
            "column": check.column,
            "severity": check.severity,
            "notes": f"{check.meaning} {check.action}",
            "meta": {"name": check.name},
        }
        suite.add_expectation(
            ExpectColumnValuesToBeInSet(value_set=list(check.allowed), **common)
            if check.allowed
            else ExpectColumnValuesToBeBetween(min_value=check.least, max_value=check.most, **common)
        )
    return suite
