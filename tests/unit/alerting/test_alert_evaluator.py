"""What time, the warehouse and the pipeline tell: found, judged and written."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from landing import land_records
from warehouse_records import MadeRecord, alert, at, deadletter, raw, status, version

from core.alerts import EVALUATED_KINDS, KINDS, Alert, decode_alert
from core.kafka_settings import KafkaSettings
from core.topics import ALERTS, RAW
from ingest.settings import IngestSettings
from ingest.spool import SpoolState, WebhookSpool
from ingest.webhook_record import WebhookRecord
from smspulse.alerting.alert_state import AlertState, alert_evidence, alert_severity, alert_summary
from smspulse.alerting.alert_topic import AlertFeed, AlertTopicReader, AlertTopicWriter
from smspulse.alerting.evaluator import _PATIENCE_S, AlertStateMachine, RuleEvaluator, run_evaluator
from smspulse.alerting.rules import (
    SQL_RULE_KINDS,
    RuleFinding,
    WarehouseRules,
    _build_rule_finding,
    build_finding,
    lag_finding,
    pipeline_findings,
    spool_findings,
)
from smspulse.broker.embedded import MemoryBroker
from smspulse.broker.topic_admin import ensure_topics
from smspulse.processes.children import find_free_port
from warehouse.quality import append_check_results

MINUTE, HOUR, DAY = 60.0, 3_600.0, 86_400.0


class Story:
    """Messages on their way to a warehouse; times are in seconds from noon of Tuesday, 24 November 2026."""

    def __init__(self) -> None:
        self._records: list[tuple[float, MadeRecord]] = []

    def tell(self, seconds: float, outcome: str = "delivered", **fields: Any) -> None:
        number = len(self._records)
        fields = {"device_id": 1, "channel_id": number % 2, "network_s": 3.0, "total_s": 9.0} | fields
        if outcome != "delivered":
            fields["network_s"] = None
        self._records.append((seconds, version(0, number, outcome, seconds=seconds, **fields)))

    def land(self, data: Path) -> WarehouseRules:
        told = sorted(self._records, key=lambda each: each[0])
        land_records(data, 0, [record._replace(offset=number) for number, (_, record) in enumerate(told)])
        return WarehouseRules(data)


def bad(warehouse: WarehouseRules, seconds: float) -> dict[str, Alert]:
    return {each.alert.id: each.alert for each in warehouse.read_findings(at(seconds)) if each.is_bad}


def by_day(days: Sequence[int], every_s: float, *, first: float = -4 * HOUR, last: float = 5 * HOUR) -> Iterator[float]:
    """Return times from eight to five on days before the day of noon, evenly."""
    for day in days:
        seconds = first
        while seconds < last:
            yield seconds - day * DAY
            seconds += every_s


def test_a_device_is_silent_where_it_never_was_and_not_in_its_nights_and_weekends(published: Path) -> None:
    story = Story()
    for seconds in by_day([day for day in range(28) if (8 - day) % 7 not in {5, 6}], 10 * MINUTE):
        story.tell(seconds)
        story.tell(seconds, device_id=2)
        if seconds < 0:
            story.tell(seconds, device_id=3)  # it stops at noon
    warehouse = story.land(published)
    assert bad(warehouse, -2 * DAY) == bad(warehouse, -6 * HOUR) == {}, "a Sunday, and a night"
    assert bad(warehouse, 19 * MINUTE) == {}
    found = bad(warehouse, 21 * MINUTE)
    assert list(found) == ["silent:acme:3:*"]
    assert found["silent:acme:3:*"].since == at(-10 * MINUTE)
    assert "since 2026-11-24 11:50 UTC, which is 3.1 times the longest pause" in found["silent:acme:3:*"].what
    assert 0 < found["silent:acme:3:*"].share < 0.5
    assert list(bad(warehouse, 16 * HOUR)) == ["silent:acme:3:*"], "the others rest"
    everything = bad(warehouse, DAY)  # Wednesday noon, and nobody has come to work
    assert set(everything) == {f"silent:{name}" for name in ("acme:1:*", "acme:2:*", "acme:3:*", "acme:*:*", "*:*:*")}
    assert everything["silent:*:*:*"].scope == "pipeline"


def test_a_device_of_three_days_is_not_judged(published: Path) -> None:
    story = Story()
    for seconds in by_day([1, 4, 5], 10 * MINUTE):
        story.tell(seconds)
    assert bad(story.land(published), 0) == {}


def test_ordinary_traffic_with_rhythms_and_late_ends_is_no_alert(published: Path) -> None:
    chance, story = random.Random(8), Story()  # noqa: S311 - repeatable on purpose
    for device in range(1, 7):
        seconds, night, rests = -30 * DAY, 0.05 * (device % 2), device % 3 == 0
        while seconds < 0:
            seconds += chance.expovariate(device / HOUR)
            moment = datetime(2026, 11, 24, 12, tzinfo=UTC) + timedelta(seconds=seconds)
            quiet = rests and moment.isoweekday() > 5
            if quiet or chance.random() > (1 if 7 <= moment.hour < 20 else night):
                continue
            kind = chance.random()
            network_s = chance.uniform(600, 20_000) if kind > 0.98 else chance.lognormvariate(1.2, 0.8)
            if kind < 0.03:
                story.tell(seconds, "sent", device_id=device)
            elif kind < 0.13:
                story.tell(seconds, "undelivered", device_id=device)
            else:
                end = {"network_s": network_s, "total_s": network_s + 4, "delivered_at": at(seconds + network_s)}
                story.tell(seconds, device_id=device, **end)
    warehouse, book = story.land(published), AlertState()
    judge = AlertStateMachine(book)
    for hour in range(-96, 0, 5):
        for change in judge.judge_findings(warehouse.read_findings(at(hour * HOUR)), SQL_RULE_KINDS, at(hour * HOUR)):
            book.update_alert(change)
    assert [(each.id, each.what) for each in book.firing_alerts()] == []
    assert not any(each.fired_at for each in book.alerts.values())


def test_messages_that_stay_open_are_stuck_beyond_what_is_usual(published: Path) -> None:
    story = Story()
    for number in range(600):
        story.tell(-2 * DAY - number * 10 * MINUTE, "sent" if number % 10 == 0 else "delivered")
    for number in range(12):
        story.tell(-HOUR - number * MINUTE, "queued" if number < 9 else "delivered")
        story.tell(-HOUR - number * MINUTE, "sent" if number < 1 else "delivered", device_id=2)
    found = bad(story.land(published), 0)
    assert list(found) == ["stuck_messages:acme:1:*"]
    one = found["stuck_messages:acme:1:*"]
    assert (one.count, one.failures, one.since, len(one.samples)) == (12, 9, at(-HOUR - 8 * MINUTE), 5)
    assert "9 of 12 messages" in one.what
    assert "queued" in one.what


def test_open_messages_of_the_day_keep_an_alert_firing_where_none_began_lately(
    published: Path, caplog: pytest.LogCaptureFixture
) -> None:
    story = Story()
    for number in range(12):
        story.tell(-HOUR - number * MINUTE, "queued")
    found = story.land(published).read_findings(at(2 * HOUR))
    (finding,) = (each for each in found if each.alert.id == "stuck_messages:acme:1:*")
    assert not finding.is_bad
    assert finding.alert.since == at(-HOUR - 11 * MINUTE)
    assert finding.alert.what
    assert caplog.messages == []


def test_a_latency_that_doubles_is_a_shift_of_the_device_or_of_the_source(published: Path) -> None:
    story = Story()
    for device in (1, 2):
        for number in range(2_000):
            story.tell(-DAY - number * 10 * MINUTE, device_id=device, network_s=3.0 + number % 10)
        for number in range(30):
            story.tell(-50 * MINUTE + number, device_id=device, network_s=40.0 if device == 1 else 5.0)
    found = bad(story.land(published), 0)
    assert set(found) == {"latency_shift:acme:1:*", "latency_shift:acme:*:*"}
    assert (found["latency_shift:acme:1:*"].count, found["latency_shift:acme:1:*"].failures) == (30, 30)
    assert "is 40 s in the last hour; usual is 12 s" in found["latency_shift:acme:1:*"].what


def test_a_device_is_down_when_each_of_its_channels_fails(published: Path) -> None:
    story = Story()
    for device in (1, 2, 3):
        for number in range(24):
            well = device == 2 and number == 4
            channel = 0 if device == 3 else number % 2
            outcome = "delivered" if well else "not_sent"
            story.tell(-number, outcome, device_id=device, channel_id=channel, last_status_id=10)
    found = bad(story.land(published), 1)
    assert list(found) == ["device_down:acme:1:*"]
    one = found["device_down:acme:1:*"]
    assert (one.count, one.failures, one.errors, len(one.samples)) == (24, 24, {"10": 24}, 5)
    assert one.what == "all 2 channels are down: the last 24 messages failed"


def test_undocumented_statuses_and_dead_letters_are_counted_by_what_they_are(
    published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    land_records(published, 0, [raw(n, status(n, 42 if n % 10 == 0 else 7), seconds=-n) for n in range(100)])
    land_records(published, 0, [deadletter(n, b"?", "not_json", f"sms.raw:0:{900 + n}") for n in range(3)])
    found = bad(WarehouseRules(published), 1)["webhook_quality:acme:*:*"]
    assert (found.count, found.failures, found.errors) == (100, 13, {"42": 10, "not_json": 3})
    monkeypatch.setenv("SMSPULSE_STREAM_STATUS_MEANINGS", "42=not_sent")
    assert bad(WarehouseRules(published), 1) == {}


def test_a_critical_expectation_that_does_not_hold_is_an_alert_of_its_own(published: Path) -> None:
    row = {
        "expectation": "raw_bodies_there", "dataset": "raw", "severity": "critical", "success": False,
        "observed": "3", "expected": "0", "meaning": "Webhooks have no body.", "action": "Find out.", "rows": [],
    }  # fmt: skip
    now = datetime(2026, 11, 24, 12, tzinfo=UTC)
    append_check_results(published, now, [row, row | {"expectation": "other", "severity": "warning"}])
    warehouse = WarehouseRules(published)
    found = bad(warehouse, 60)
    assert list(found) == ["quality_check:*:*:*:raw_bodies_there"]
    assert found["quality_check:*:*:*:raw_bodies_there"].since == at(0)
    append_check_results(published, now + timedelta(minutes=10), [row | {"success": True}])
    assert bad(warehouse, 660) == {}


def test_lander_and_stream_are_late_by_time_or_by_very_many_records() -> None:
    assert not lag_finding("lander", 3, at(0), at(299)).is_bad
    assert lag_finding("lander", 3, at(0), at(301)).is_bad
    assert lag_finding("stream", 1, None, at(0)).is_bad
    assert lag_finding("stream", 100_001, at(0), at(0)).alert.id == "pipeline:*:*:*:stream"
    assert lag_finding("stream", 100_001, at(0), at(0)).is_bad


def test_a_spool_that_fills_up_or_is_not_emptied_is_an_alert() -> None:
    def found(webhooks: int, size: int, oldest_s: float) -> list[bool]:
        return [each.is_bad for each in spool_findings(SpoolState(webhooks, size, oldest_s, None), 100, at(0))]

    assert found(0, 90, 0) == []
    assert found(5, 10, 10) == [False]
    assert found(5, 60, 10) == found(5, 10, 301) == [True]


def test_a_spool_that_fills_up_while_kafka_is_away_is_an_alert_and_nothing_is_over(
    published: Path,
) -> None:
    kafka, ten_minutes_ago = KafkaSettings(bootstrap=f"127.0.0.1:{find_free_port()}"), int(time.time() * 1000) - 600_000
    assert RuleEvaluator(published, kafka)(at(0)) == ([], set())
    with closing(WebhookSpool(published, IngestSettings())) as spool:
        spool.append([WebhookRecord(b"acme:1", b"{}", [("ingest_id", b"1")], ten_minutes_ago)])
        found, judged = RuleEvaluator(published, kafka)(at(0))
    assert [(each.alert.id, each.is_bad) for each in found] == [("pipeline:*:*:*:spool", True)]
    assert judged == set()


def finding(kind: str, *, is_bad: bool = True, **fields: Any) -> RuleFinding:
    given = {"scope": "device", "source": "acme", "device_id": 1, "since": at(-60), "what": "it is so"} | fields
    return build_finding(kind, is_bad=is_bad, **given)


def life(kind: str, *looks: tuple[float, bool | None], book: AlertState | None = None) -> list[tuple[float, str]]:
    """Return what changes when; a look finds what is bad, what is amiss, or nothing (None)."""
    book = book or AlertState()
    judge, changes = AlertStateMachine(book), []
    for seconds, is_bad in looks:
        found = [] if is_bad is None else [finding(kind, is_bad=is_bad)]
        for change in judge.judge_findings(found, EVALUATED_KINDS, at(seconds)):
            book.update_alert(change)
            changes.append((seconds, change.phase))
    return changes


def test_every_kind_that_is_watched_has_its_patience() -> None:
    assert set(_PATIENCE_S) == set(EVALUATED_KINDS) == {*SQL_RULE_KINDS, "pipeline"}
    assert set(EVALUATED_KINDS) < set(KINDS)


def test_what_lasts_fires_once_and_what_stays_away_is_resolved() -> None:
    looks = ((0, True), (299, True), (301, True), (400, False), (500, None), (600, False), (700, None), (1_301, None))
    assert life("stuck_messages", *looks) == [(0, "pending"), (301, "firing"), (1_301, "resolved")]
    assert life("stuck_messages", (0, True), (60, False)) == [(0, "pending"), (60, "resolved")]
    assert life("stuck_messages", (0, True), (60, None), (400, True)) == [
        (0, "pending"), (60, "resolved"), (400, "pending"),
    ]  # fmt: skip
    assert life("silent", (0, False), (60, True), (120, False), (180, None)) == [(60, "firing"), (180, "resolved")]


def test_what_was_not_looked_for_stays_as_it_is() -> None:
    book = AlertState()
    life("silent", (0, True), book=book)
    assert AlertStateMachine(book).judge_findings([], {"pipeline"}, at(60)) == []
    (gone,) = AlertStateMachine(book).judge_findings([], {"silent"}, at(60))
    assert (gone.phase, gone.fired_at, gone.resolved_at, gone.what) == ("resolved", at(0), at(60), "it is so")


def test_another_watch_with_the_same_past_neither_repeats_nor_forgets() -> None:
    book = AlertState()
    assert life("stuck_messages", (0, True), book=book) == [(0, "pending")]
    assert life("stuck_messages", (301, True), (360, True), book=book) == [(301, "firing")]
    assert life("stuck_messages", (400, None), (1_001, None), book=book) == [(1_001, "resolved")]


def of(kind: str, scope: str, device: int | None = None, channel: int | None = None, **fields: Any) -> Alert:
    id_ = f"{kind}:{scope}:{device}:{channel}"
    given = {"id": id_, "kind": kind, "scope": scope, "device_id": device, "channel_id": channel} | fields
    return decode_alert(alert(0, "firing", **given).value or b"")


EVERY = [
    *(of(kind, "source") for kind in ("failure_ratio", "silent", "stuck_messages", "latency_shift", "webhook_quality")),
    *(of(kind, "device", 1) for kind in ("failure_ratio", "silent", "stuck_messages", "latency_shift", "device_down")),
    *(of(kind, "channel", 1, 1) for kind in ("failure_ratio", "not_permitted")),
    *(of(kind, "pipeline", source="*") for kind in ("silent", "pipeline", "quality_check")),
]


def explained(wide: Alert, *fields: Any, **others: Any) -> bool:
    book = AlertState()
    book.update_alert(wide)
    return book.is_inhibited(of(*fields, **others), at(0))


def test_an_alert_inhibits_those_that_it_explains() -> None:
    pipeline, source_silent = of("pipeline", "pipeline", source="*"), of("silent", "source")
    assert explained(pipeline, "silent", "device", 1)
    assert explained(pipeline, "silent", "pipeline", source="*")
    assert not explained(pipeline, "failure_ratio", "device", 1)
    assert explained(source_silent, "silent", "device", 1)
    assert explained(source_silent, "stuck_messages", "source")
    assert not explained(source_silent, "silent", "device", 1, source="other")
    assert explained(of("silent", "device", 1), "stuck_messages", "device", 1)
    assert not explained(of("silent", "device", 1), "stuck_messages", "device", 2)
    assert explained(of("device_down", "device", 1), "failure_ratio", "channel", 1, 1)
    assert explained(of("failure_ratio", "source"), "device_down", "device", 1)
    assert not explained(of("failure_ratio", "device", 1), "device_down", "device", 1)


def test_of_alerts_that_fire_one_at_least_is_told() -> None:
    for one in EVERY:
        for other in EVERY:
            both = AlertState()
            both.update_alert(one)
            both.update_alert(other)
            assert not (both.is_inhibited(one, at(0)) and both.is_inhibited(other, at(0))), (one.id, other.id)


def test_what_was_found_is_said_in_words() -> None:
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
        while not is_so():  # noqa: ASYNC110 - nothing says when
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


async def test_what_is_no_alert_is_passed_over_and_only_what_says_something_is_named(
    kafka: KafkaSettings, caplog: pytest.LogCaptureFixture
) -> None:
    producer = Producer(kafka.confluent_options())
    deep = b'{"id":' + b"[" * 100_000
    # In the last two nothing is of a wrong type: no calendar has the time, and no division the count.
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


async def test_an_unforeseen_error_of_a_look_ends_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RecursionError

    monkeypatch.setattr("smspulse.alerting.evaluator.pipeline_findings", fail)
    assert RuleEvaluator(tmp_path, KafkaSettings())(at(0)) == ([], set())
    assert "RecursionError" in caplog.text


def test_a_finding_that_cannot_be_shown_costs_no_other_one(caplog: pytest.LogCaptureFixture) -> None:
    row = {"scope": "device", "source": "acme", "device_id": 1, "is_bad": True, "since": at(0), "what": "silent"}
    rows = [row, row | {"since": 10**18}, row | {"surprise": 1}]
    assert [_build_rule_finding("silent", each) is not None for each in rows] == [True, False, False]
    assert len(caplog.messages) == 2


def evaluation(
    feed: AlertFeed, found: list[RuleFinding], write: Callable[..., list[Alert]], times: Iterator[float]
) -> Coroutine[Any, Any, None]:
    """Evaluate a rule that finds what is in a list now."""
    return run_evaluator(
        feed, lambda _: (list(found), set(EVALUATED_KINDS)), write, 0.05, clock=lambda: at(next(times)) / 1000
    )


async def test_a_watch_goes_on_from_what_was_written_before_it(kafka: KafkaSettings) -> None:
    amiss, times = [finding("stuck_messages")], iter(range(0, 9_000_000, 400))
    (id_,) = (each.alert.id for each in amiss)

    async def run(phase: str) -> list[Alert]:
        """Start with what is in the topic, and run until it has an alert in a phase; return what it has."""
        reader, book = AlertTopicReader(kafka, "watch"), AlertState()
        for record in reader.read_existing():
            book.update_alert(record.alert)
        feed, witness = AlertFeed(book, {}), AlertTopicReader(kafka, "witness")
        written = [each.alert for each in witness.read_existing()]
        async with running(feed.follow_topic(reader), evaluation(feed, amiss, AlertTopicWriter(kafka), times)):
            while [each.phase for each in written][-1:] != [phase]:
                written += [each.alert for each in await asyncio.to_thread(witness.read_new)]
            await wait_until(lambda: sum(feed.offsets.values()) == len(written))
        assert book.alerts[id_] == written[-1]
        return written

    first = await run("firing")
    assert [(each.phase, each.changed_at) for each in first] == [("pending", at(0)), ("firing", at(400))]
    amiss.clear()
    *_, ended = await run("resolved")
    assert (ended.phase, ended.fired_at) == ("resolved", at(400))


async def test_a_change_reaches_receivers_once_though_it_is_written_late_and_read_again(kafka: KafkaSettings) -> None:
    reader, book = AlertTopicReader(kafka, "watch"), AlertState()
    reader.read_existing()
    feed, seen, is_away = AlertFeed(book, {}), [], True
    book.listeners.append(lambda _, alert: seen.append(alert.phase))
    writer, refused = AlertTopicWriter(kafka), []

    def write(alerts: Iterable[Alert]) -> list[Alert]:
        """Stand for a Kafka that is away for a while."""
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
        # An older state of the same alert, which a write that seemed to fail may leave behind.
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


async def test_while_the_lander_is_behind_nobody_is_called_silent(published: Path, kafka: KafkaSettings) -> None:
    story = Story()
    for seconds in by_day(range(1, 28), 10 * MINUTE):
        story.tell(seconds)
    story.land(published)
    look = RuleEvaluator(published, kafka)
    assert "silent:acme:1:*" in {each.alert.id for each in look(at(0))[0] if each.is_bad}
    assert pipeline_findings(published, kafka, at(0)) == ([], {"pipeline"})
    producer = Producer(kafka.confluent_options())
    producer.produce(RAW, b"{}", b"key")
    assert producer.flush(10) == 0
    found, judged = look(at(0))
    assert ([each.alert.id for each in found], judged) == (["pipeline:*:*:*:lander"], {"pipeline"})
