"""Evaluation of the alert rules: delays, inhibition, texts, and alerts on the topic."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from landed_messages import MINUTE, LandedMessages, by_day
from warehouse_records import alert, at

from core.alerts import EVALUATED_KINDS, KINDS, Alert, decode_alert
from core.kafka_settings import KafkaSettings
from core.topics import ALERTS, RAW
from smspulse.alerting.alert_state import AlertState, alert_evidence, alert_severity, alert_summary
from smspulse.alerting.alert_topic import AlertFeed, AlertTopicReader, AlertTopicWriter
from smspulse.alerting.evaluator import _PATIENCE_S, AlertStateMachine, RuleEvaluator, run_evaluator
from smspulse.alerting.rules import (
    SQL_RULE_KINDS,
    RuleFinding,
    _build_rule_finding,
    build_finding,
    pipeline_findings,
)
from smspulse.broker.embedded import MemoryBroker
from smspulse.broker.topic_admin import ensure_topics


def finding(kind: str, *, is_bad: bool = True, **fields: Any) -> RuleFinding:
    given = {"scope": "device", "source": "acme", "device_id": 1, "since": at(-60), "what": "it is so"} | fields
    return build_finding(kind, is_bad=is_bad, **given)


def changes_of(
    kind: str, *evaluations: tuple[float, bool | None], state: AlertState | None = None
) -> list[tuple[float, str]]:
    """Return the changes and their times. An evaluation has a failing finding, a good one, or none (None)."""
    state = state or AlertState()
    judge, changes = AlertStateMachine(state), []
    for seconds, is_bad in evaluations:
        found = [] if is_bad is None else [finding(kind, is_bad=is_bad)]
        for change in judge.judge_findings(found, EVALUATED_KINDS, at(seconds)):
            state.update_alert(change)
            changes.append((seconds, change.phase))
    return changes


def test_every_evaluated_kind_has_its_delay() -> None:
    assert set(_PATIENCE_S) == set(EVALUATED_KINDS) == {*SQL_RULE_KINDS, "pipeline"}
    assert set(EVALUATED_KINDS) < set(KINDS)


def test_a_lasting_problem_fires_once_and_its_end_resolves_it() -> None:
    evaluations = (
        (0, True),
        (299, True),
        (301, True),
        (400, False),
        (500, None),
        (600, False),
        (700, None),
        (1_301, None),
    )
    assert changes_of("stuck_messages", *evaluations) == [(0, "pending"), (301, "firing"), (1_301, "resolved")]
    assert changes_of("stuck_messages", (0, True), (60, False)) == [(0, "pending"), (60, "resolved")]
    assert changes_of("stuck_messages", (0, True), (60, None), (400, True)) == [
        (0, "pending"), (60, "resolved"), (400, "pending"),
    ]  # fmt: skip
    assert changes_of("silent", (0, False), (60, True), (120, False), (180, None)) == [
        (60, "firing"),
        (180, "resolved"),
    ]


def test_a_kind_that_was_not_evaluated_keeps_its_state() -> None:
    state = AlertState()
    changes_of("silent", (0, True), state=state)
    assert AlertStateMachine(state).judge_findings([], {"pipeline"}, at(60)) == []
    (gone,) = AlertStateMachine(state).judge_findings([], {"silent"}, at(60))
    assert (gone.phase, gone.fired_at, gone.resolved_at, gone.what) == ("resolved", at(0), at(60), "it is so")


def test_another_evaluator_with_the_same_past_repeats_and_loses_nothing() -> None:
    state = AlertState()
    assert changes_of("stuck_messages", (0, True), state=state) == [(0, "pending")]
    assert changes_of("stuck_messages", (301, True), (360, True), state=state) == [(301, "firing")]
    assert changes_of("stuck_messages", (400, None), (1_001, None), state=state) == [(1_001, "resolved")]


def of(kind: str, scope: str, device: int | None = None, channel: int | None = None, **fields: Any) -> Alert:
    id_ = f"{kind}:{scope}:{device}:{channel}"
    given = {"id": id_, "kind": kind, "scope": scope, "device_id": device, "channel_id": channel} | fields
    return decode_alert(alert(0, "firing", **given).value or b"")


ALL_KINDS = [
    *(of(kind, "source") for kind in ("failure_ratio", "silent", "stuck_messages", "latency_shift", "webhook_quality")),
    *(of(kind, "device", 1) for kind in ("failure_ratio", "silent", "stuck_messages", "latency_shift", "device_down")),
    *(of(kind, "channel", 1, 1) for kind in ("failure_ratio", "not_permitted")),
    *(of(kind, "pipeline", source="*") for kind in ("silent", "pipeline", "quality_check")),
]


def is_inhibited_by(wide: Alert, *fields: Any, **others: Any) -> bool:
    state = AlertState()
    state.update_alert(wide)
    return state.is_inhibited(of(*fields, **others), at(0))


def test_an_alert_inhibits_those_that_it_explains() -> None:
    pipeline, source_silent = of("pipeline", "pipeline", source="*"), of("silent", "source")
    assert is_inhibited_by(pipeline, "silent", "device", 1)
    assert is_inhibited_by(pipeline, "silent", "pipeline", source="*")
    assert not is_inhibited_by(pipeline, "failure_ratio", "device", 1)
    assert is_inhibited_by(source_silent, "silent", "device", 1)
    assert is_inhibited_by(source_silent, "stuck_messages", "source")
    assert not is_inhibited_by(source_silent, "silent", "device", 1, source="other")
    assert is_inhibited_by(of("silent", "device", 1), "stuck_messages", "device", 1)
    assert not is_inhibited_by(of("silent", "device", 1), "stuck_messages", "device", 2)
    assert is_inhibited_by(of("device_down", "device", 1), "failure_ratio", "channel", 1, 1)
    assert is_inhibited_by(of("failure_ratio", "source"), "device_down", "device", 1)
    assert not is_inhibited_by(of("failure_ratio", "device", 1), "device_down", "device", 1)


def test_of_two_firing_alerts_at_least_one_is_sent() -> None:
    for one in ALL_KINDS:
        for other in ALL_KINDS:
            both = AlertState()
            both.update_alert(one)
            both.update_alert(other)
            assert not (both.is_inhibited(one, at(0)) and both.is_inhibited(other, at(0))), (one.id, other.id)


def test_findings_have_texts() -> None:
    silent = of("silent", "pipeline", source="*", what="nothing has come since noon", count=0, failures=0, samples=[])
    assert alert_summary(silent) == "all sources: nothing has come since noon"
    assert "share" not in alert_evidence(silent)
    assert [alert_severity(each) for each in (silent, of("silent", "device", 1), of("latency_shift", "source"))] == [
        "critical", "warning", "warning",
    ]  # fmt: skip
    quality = of("webhook_quality", "source", errors={"42": 2, "not_json": 1}, what="2 of 9")
    assert alert_evidence(quality)["errors"] == "2 of status 42, 1 of not_json"


@pytest.fixture
def kafka(tmp_path: Path) -> Iterator[KafkaSettings]:
    with MemoryBroker(tmp_path) as broker:
        settings = KafkaSettings(bootstrap=broker.address, in_memory=True)
        ensure_topics(settings, timeout_s=10)
        yield settings


async def wait_until(is_so: Callable[[], Any]) -> None:
    async with asyncio.timeout(30):
        while not is_so():  # noqa: ASYNC110 - no event is available
            await asyncio.sleep(0.02)


@asynccontextmanager
async def running(*tasks: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    made = [asyncio.create_task(each) for each in tasks]
    try:
        yield
    finally:
        for each in made:
            each.cancel()
        await asyncio.gather(*made, return_exceptions=True)


async def test_records_that_are_not_alerts_are_skipped_and_only_those_with_content_are_logged(
    kafka: KafkaSettings, caplog: pytest.LogCaptureFixture
) -> None:
    producer = Producer(kafka.confluent_options())
    deep = b'{"id":' + b"[" * 100_000
    # The last two have valid types, but a time beyond any calendar and a count beyond any division.
    late = alert(0, "firing", since=10**18)
    good = alert(0, "firing").value or b""
    many = good.replace(b'"failures":6', b'"failures":' + b"9" * 400)
    for value in (b"", b"{", deep, late.value, many, good):
        producer.produce(ALERTS, value, b"key", partition=0)
    assert producer.flush(10) == 0
    assert [each.alert.phase for each in AlertTopicReader(kafka, "reader").read_existing()] == ["firing"]
    named = [message.partition(" is no alert")[0] for message in caplog.messages]
    assert named == [f"sms.alerts, partition 0, offset {offset}" for offset in (1, 2, 3, 4)]
    assert len(caplog.text) < 2_000


async def test_an_unforeseen_error_of_an_evaluation_ends_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RecursionError

    monkeypatch.setattr("smspulse.alerting.evaluator.pipeline_findings", fail)
    assert RuleEvaluator(tmp_path, KafkaSettings())(at(0)) == ([], set())
    assert "RecursionError" in caplog.text


def test_a_finding_that_cannot_be_shown_loses_no_other_one(caplog: pytest.LogCaptureFixture) -> None:
    row = {"scope": "device", "source": "acme", "device_id": 1, "is_bad": True, "since": at(0), "what": "silent"}
    rows = [row, row | {"since": 10**18}, row | {"surprise": 1}]
    assert [_build_rule_finding("silent", each) is not None for each in rows] == [True, False, False]
    assert len(caplog.messages) == 2


def evaluation(
    feed: AlertFeed, found: list[RuleFinding], write: Callable[..., list[Alert]], times: Iterator[float]
) -> Coroutine[Any, Any, None]:
    """Evaluate a rule whose findings are the current content of a list."""
    return run_evaluator(
        feed, lambda _: (list(found), set(EVALUATED_KINDS)), write, 0.05, clock=lambda: at(next(times)) / 1000
    )


async def test_an_evaluator_continues_from_the_topic(kafka: KafkaSettings) -> None:
    findings, times = [finding("stuck_messages")], iter(range(0, 9_000_000, 400))
    (id_,) = (each.alert.id for each in findings)

    async def run(phase: str) -> list[Alert]:
        """Run from the state in the topic until an alert is in a phase; return the alert."""
        reader, state = AlertTopicReader(kafka, "watch"), AlertState()
        for record in reader.read_existing():
            state.update_alert(record.alert)
        feed, witness = AlertFeed(state, {}), AlertTopicReader(kafka, "witness")
        written = [each.alert for each in witness.read_existing()]
        async with running(feed.follow_topic(reader), evaluation(feed, findings, AlertTopicWriter(kafka), times)):
            while [each.phase for each in written][-1:] != [phase]:
                written += [each.alert for each in await asyncio.to_thread(witness.read_new)]
            await wait_until(lambda: sum(feed.offsets.values()) == len(written))
        assert state.alerts[id_] == written[-1]
        return written

    first = await run("firing")
    assert [(each.phase, each.changed_at) for each in first] == [("pending", at(0)), ("firing", at(400))]
    findings.clear()
    *_, ended = await run("resolved")
    assert (ended.phase, ended.fired_at) == ("resolved", at(400))


async def test_a_change_reaches_receivers_once_if_it_is_written_late_and_read_again(kafka: KafkaSettings) -> None:
    reader, state = AlertTopicReader(kafka, "watch"), AlertState()
    reader.read_existing()
    feed, seen, is_away = AlertFeed(state, {}), [], True
    state.listeners.append(lambda _, alert: seen.append(alert.phase))
    writer, refused = AlertTopicWriter(kafka), []

    def write(alerts: Iterable[Alert]) -> list[Alert]:
        """Act as a Kafka with an outage."""
        found = list(alerts)
        if is_away:
            refused.append(found)
            return []
        return writer(found)

    evaluating = evaluation(feed, [finding("stuck_messages")], write, iter(range(0, 9_000_000, 400)))
    async with running(feed.follow_topic(reader), evaluating):
        await wait_until(lambda: len(refused) > 2)
        assert seen == ["pending", "firing"]
        is_away = False
        await wait_until(lambda: sum(feed.offsets.values()) == 1)
        # An older state of the same alert, as of a write that reported a failure.
        writer(
            [
                decode_alert(
                    alert(0, "pending", id=finding("stuck_messages").alert.id, kind="stuck_messages").value or b""
                )
            ]
        )
        await wait_until(lambda: sum(feed.offsets.values()) == 2)
    assert seen == ["pending", "firing"]
    assert [each.phase for each in refused[-1]] == ["firing"]


async def test_while_the_lander_lags_no_device_is_silent(published: Path, kafka: KafkaSettings) -> None:
    messages = LandedMessages()
    for seconds in by_day(range(1, 28), 10 * MINUTE):
        messages.add(seconds)
    messages.land(published)
    look = RuleEvaluator(published, kafka)
    assert "silent:acme:1:*" in {each.alert.id for each in look(at(0))[0] if each.is_bad}
    assert pipeline_findings(published, kafka, at(0)) == ([], {"pipeline"})
    producer = Producer(kafka.confluent_options())
    producer.produce(RAW, b"{}", b"key")
    assert producer.flush(10) == 0
    found, judged = look(at(0))
    assert ([each.alert.id for each in found], judged) == (["pipeline:*:*:*:lander"], {"pipeline"})
