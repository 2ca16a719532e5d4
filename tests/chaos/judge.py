"""Finds records that were lost, counted twice or changed, in Kafka's topics and in the landed files.

It compares three data sets:
    - The traffic that was sent: the simulator's ground truth.
    - The reports of each message, parsed here from the records of `sms.raw`, without any code of the stream.
    - The results: each version on `sms.messages`, each outcome, the state of each device, each dead letter and each
      landed row.
"""

import hashlib
import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from running import Pipeline

from core.kafka_settings import KafkaSettings
from core.topics import DEADLETTERS, DEVICES, MESSAGES, OUTCOMES, RAW
from gateway.errors import UnreadablePayload
from gateway.events import StatusReport
from gateway.payloads import parse_payload
from smspulse.broker.locate import read_embedded_settings
from smspulse.broker.lockfile import read_broker_file
from smspulse.simulator.ground_truth import compare_with_truth
from streams.device_processor import DeviceProcessor
from streams.failure_baseline import DetectorPolicy
from streams.lifecycle import AttemptDetails

GROUP = "smspulse-stream"
_STANDSTILL_S = 90.0
"""After so long without progress there will be none. A busy machine is slow, but it does not stop."""

Reports = dict[tuple[Any, ...], tuple[int, int]]
"""First and last receipt of each report, by its identity within the message."""


@dataclass
class Raw:
    """Content of `sms.raw`: reports by message key, and positions of unreadable records."""

    records: int = 0
    reports: dict[bytes, Reports] = field(default_factory=dict)
    unreadable: set[str] = field(default_factory=set)


@dataclass
class Findings:
    """Counts of errors by description, in three groups."""

    lost: Counter[str] = field(default_factory=Counter)
    twice: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    accepted: int = 0
    messages: int = 0
    versions: int = 0
    line: str = ""

    @property
    def ok(self) -> bool:
        return not (self.lost.total() or self.twice.total() or self.wrong.total())

    def problems(self) -> list[str]:
        return [
            f"{count:,} {problem}" for kind in (self.lost, self.twice, self.wrong) for problem, count in kind.items()
        ]


class _Progress:
    """Detects that a state has not changed for too long."""

    def __init__(self) -> None:
        self._seen: Any = None
        self._moved_at = time.monotonic()

    def is_over(self, state: Any) -> bool:
        """Return whether the state has been the same for `_STANDSTILL_S`."""
        if state != self._seen:
            self._seen, self._moved_at = state, time.monotonic()
        return time.monotonic() - self._moved_at > _STANDSTILL_S


def judge(pipeline: Pipeline, truth: Path) -> Findings:
    """Wait until all records are processed and landed, or until progress ends, and compare."""
    found = Findings()
    broker = read_broker_file(pipeline.data)
    if broker is None:
        found.lost["broker: it did not restart"] += 1
        return found
    kafka = read_embedded_settings(pipeline.data, broker)
    raw = _raw(kafka)
    newest = _versions(kafka, raw.reports, found)
    _outcomes(kafka, newest, found)
    _devices(kafka, found)
    letters = Counter(dict(m.headers())["origin"].decode() for m in _read(kafka, DEADLETTERS))
    found.lost["unreadable records without a dead letter"] += len(raw.unreadable - letters.keys())
    found.wrong["dead letters of readable records"] += len(letters.keys() - raw.unreadable)
    found.twice["dead letters written more than once"] += sum(count - 1 for count in letters.values())

    records = {"raw": raw.records, "messages": found.versions, "deadletters": letters.total()}
    landed = _until_landed(pipeline, records)
    for dataset, count in records.items():
        found.lost[f"records of Kafka that are not in {dataset}"] += max(count - landed[dataset], 0)
        found.twice[f"landed rows beyond Kafka's records in {dataset}"] += max(landed[dataset] - count, 0)
    _landed_versions(pipeline, newest, found)

    comparison = compare_with_truth(pipeline.data, truth)
    found.accepted, found.line = comparison.accepted, comparison.format_result()
    found.messages = comparison.messages
    found.lost["accepted webhooks that are not in raw"] += comparison.accepted - comparison.landed
    found.lost["messages of the truth that are missing"] += len(comparison.missing)
    found.lost["malformed webhooks that are no dead letters"] += comparison.malformed_missing
    found.twice["accepted webhooks that are in raw more than once"] += comparison.landed_twice
    found.wrong["messages that differ from the truth"] += len({each.sms_id for each in comparison.differences})
    found.wrong["messages that nobody sent"] += len(comparison.extra)
    if not comparison.is_reconciled and found.ok:
        found.wrong["findings of the comparison with the truth"] += len(comparison.list_problems())
    for kind in (found.lost, found.twice, found.wrong):
        for problem in [problem for problem, count in kind.items() if not count]:
            del kind[problem]
    return found


def _until_processed(kafka: KafkaSettings, topic: str, ends: dict[int, int]) -> None:
    """Wait until the stream has committed the end of every partition of a topic."""
    progress = _Progress()
    offsets: list[int] = []
    with closing(Consumer(kafka.confluent_options() | {"group.id": GROUP, "log_level": 2})) as consumer:
        while not progress.is_over(offsets):
            try:
                committed = consumer.committed([TopicPartition(topic, number) for number in ends], 10)
                if all(each.offset >= ends[each.partition] for each in committed):
                    return
                offsets = [each.offset for each in committed]
            except KafkaException as error:
                if not error.args[0].retriable():
                    raise
            time.sleep(0.3)  # no event is available across processes


def _read(kafka: KafkaSettings, topic: str, ends: dict[int, int] | None = None) -> Iterator[Any]:
    """Yield the committed records of a topic, in order within a partition. Their next offsets are stored in `ends`."""
    ends = {} if ends is None else ends
    options = kafka.confluent_options() | {
        "group.id": "chaos",
        "isolation.level": "read_committed",
        "enable.partition.eof": True,
        "enable.auto.commit": False,
        "log_level": 2,
    }
    with closing(Consumer(options)) as consumer:
        partitions = list(consumer.list_topics(topic, 10).topics[topic].partitions)
        consumer.assign([TopicPartition(topic, number, 0) for number in partitions])
        ended: set[int] = set()
        while len(ended) < len(partitions):
            for message in consumer.consume(10_000, 0.2):
                if message.error() is None:
                    ends[message.partition()] = message.offset() + 1
                    yield message
                elif message.error().code() == KafkaError._PARTITION_EOF:
                    ended.add(message.partition())
                else:
                    raise KafkaException(message.error())


def _raw(kafka: KafkaSettings) -> Raw:
    """Read `sms.raw`, and wait until the stream has read it too."""
    raw, ends = Raw(), dict[int, int]()
    for message in _read(kafka, RAW, ends):
        raw.records += 1
        try:
            event = parse_payload(message.value())
        except UnreadablePayload:
            raw.unreadable.add(f"{RAW}:{message.partition()}:{message.offset()}")
            continue
        headers = dict(message.headers())
        if isinstance(event, StatusReport):
            at = int(headers["received_at"])
            known = raw.reports.setdefault(message.key(), {})
            identity = (event.status_id, event.device_id, event.channel_id, event.sent_at)
            first, last = known.get(identity, (at, at))
            known[identity] = (min(first, at), max(last, at))
    _until_processed(kafka, RAW, ends)
    return raw


def _versions(kafka: KafkaSettings, reports: dict[bytes, Reports], found: Findings) -> dict[bytes, dict[str, Any]]:
    """Judge every version written; return the last one of each key."""
    newest: dict[bytes, dict[str, Any]] = {}
    # Digests: an hour of traffic has a million versions.
    written: set[bytes] = set()
    for message in _read(kafka, MESSAGES):
        found.versions += 1
        key, value = message.key(), message.value()
        digest = hashlib.blake2b(key + b"\0" + value, digest_size=16).digest()
        if digest in written:
            found.twice["versions written more than once"] += 1
        written.add(digest)
        version = json.loads(value)
        before = newest.get(key)
        if before is not None and not _holds(_reports(version), _reports(before)):
            found.wrong["versions that lack reports of the version before them"] += 1
        newest[key] = version
    for key, wanted in reports.items():
        got = _reports(newest[key]) if key in newest else {}
        if not _holds(got, wanted):
            found.lost["messages whose last version lacks reports"] += 1
        elif got != wanted:
            found.wrong["messages whose last version has reports that nobody sent"] += 1
    found.wrong["messages without a report"] += len(newest.keys() - reports.keys())
    return newest


def _outcomes(kafka: KafkaSettings, newest: dict[bytes, dict[str, Any]], found: Findings) -> None:
    """Check that each attempt has one first outcome, and that each change of it has one correction."""
    firsts: Counter[tuple[str, int, int]] = Counter()
    outcomes: dict[tuple[str, int, int], Counter[str]] = defaultdict(Counter)
    for message in _read(kafka, OUTCOMES):
        outcome = json.loads(message.value())
        key = outcome["source"], outcome["sms_id"], outcome.get("attempt", 1)
        firsts[key] += not outcome["correction"]
        outcomes[key][outcome["outcome"]] += 1
        if outcome["previous"]:
            outcomes[key][outcome["previous"]] -= 1
    found.twice["outcomes written more than once"] += sum(max(count - 1, 0) for count in firsts.values())
    ended = {
        (version["source"], version["sms_id"], number): outcome
        for version in newest.values()
        for number, outcome in enumerate(_ended_attempts(version), start=1)
    }
    found.lost["outcomes not written"] += len(ended.keys() - outcomes.keys())
    found.wrong["outcomes written of attempts without an end"] += len(outcomes.keys() - ended.keys())
    # All outcomes of an attempt, minus those that were corrected, leave its current outcome.
    left = {key: {outcome for outcome, count in of.items() if count} for key, of in outcomes.items()}
    found.lost["corrections of outcomes not written"] += sum(
        left[key] != {ended[key]} for key in ended.keys() & left.keys()
    )


def _ended_attempts(version: dict[str, Any]) -> list[str]:
    """Return the outcomes of the attempts of a version that have ended."""
    if not version["is_ended"]:
        return []
    details = [AttemptDetails(*values) for values in version.get("attempt_details", ())]
    return [attempt.outcome for attempt in details if attempt.ended_at is not None] or [version["outcome"]]


def _devices(kafka: KafkaSettings, found: Findings) -> None:
    """Judge the states of devices. They follow from the outcomes in their order, bit by bit, however they were read."""
    outcomes: dict[int, list[Any]] = defaultdict(list)
    ends: dict[int, int] = {}
    for message in _read(kafka, OUTCOMES, ends):
        outcomes[message.partition()].append(
            SimpleNamespace(value=message.value(), partition=message.partition(), headers=[])
        )
    _until_processed(kafka, OUTCOMES, ends)
    got = {message.key(): message.value() for message in _read(kafka, DEVICES)}
    policy = DetectorPolicy()
    wanted = {
        key: value for run in outcomes.values() for key, value, _ in DeviceProcessor({}.get, policy).process(run).states
    }
    found.lost["states of devices that are missing"] += len(wanted.keys() - got.keys())
    found.wrong["states of devices that do not follow from the outcomes"] += sum(
        wanted.get(key) != value for key, value in got.items()
    )


def _reports(version: dict[str, Any]) -> Reports:
    return {tuple(identity): (first, last) for *identity, first, last in version["observations"]}


def _holds(larger: Reports, smaller: Reports) -> bool:
    """Return whether `larger` has every report of `smaller`."""
    return all(
        identity in larger and larger[identity][0] <= first and larger[identity][1] >= last
        for identity, (first, last) in smaller.items()
    )


def _until_landed(pipeline: Pipeline, records: dict[str, int]) -> dict[str, int]:
    """Wait until as many rows as records have landed; return the number of rows by dataset."""
    progress = _Progress()
    while True:
        rows = pipeline.rows("SELECT dataset, rows FROM freshness")
        landed = {row.dataset: row.rows for row in rows if row.dataset in records}
        if landed == records or progress.is_over(landed):
            return landed
        time.sleep(0.3)  # no event is available across processes


def _landed_versions(pipeline: Pipeline, newest: dict[bytes, dict[str, Any]], found: Findings) -> None:
    """Compare the view `messages` with the last versions on Kafka."""
    fields = ("version", "outcome", "last_status_id", "attempts", "contradicted")
    rows = pipeline.rows("SELECT message_key, version, outcome, last_status_id, attempts, contradicted FROM messages")
    got = {row.message_key.encode(): tuple(row[1:]) for row in rows}
    want = {key: tuple(version[name] for name in fields) for key, version in newest.items()}
    differing = sum(got.get(key) != value for key, value in want.items())
    found.wrong["messages whose landed version is not Kafka's last"] += differing + len(got.keys() - want.keys())
