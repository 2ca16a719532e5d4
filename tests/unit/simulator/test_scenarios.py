"""Webhooks of the simulated gateway are repeatable, misbehave at the given rates, and have a correct ground truth."""

from collections.abc import Callable
from dataclasses import fields, replace
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import msgspec
import orjson
import pytest
from click.testing import CliRunner
from flawless_gateway import FLAWLESS, RATES

from core.errors import SettingError
from gateway.errors import UnreadablePayload
from gateway.events import IncomingMessage, StatusReport
from gateway.payloads import parse_payload
from gateway.statuses import STATUSES, Outcome, build_status_table
from smspulse.cli.main import cli
from smspulse.simulator.ground_truth import MessageTruth, ReportPart, SimulatedReport, update_truth
from smspulse.simulator.options import DEMO_BEHAVIOUR, GatewayBehaviour, parse_shares
from smspulse.simulator.payload_formats import MALFORMED_BODIES
from smspulse.simulator.scenarios import MessageScenario, generate_scenarios
from streams.lifecycle import LifecycleRules, MessageState

FAILURES = {id_ for id_, status in STATUSES.items() if status.is_failure}
WILD = GatewayBehaviour(
    **dict.fromkeys(RATES, 0.3) | {"failing": 0.6, "resends": 0.6, "resends_new_id": 0.2}  # type: ignore[arg-type]
)


def bytes_of(scenarios: Any) -> list[Any]:
    return [
        (scenario.kind, *[(w.delay_s, w.body, w.content_type) for w in scenario.webhooks]) for scenario in scenarios
    ]


def reports_of(scenario: MessageScenario) -> list[StatusReport]:
    events = [parse_payload(webhook.body) for webhook in scenario.webhooks]
    assert all(isinstance(event, StatusReport) for event in events)
    return events  # type: ignore[return-value]


def test_the_same_seed_gives_the_same_bytes() -> None:
    assert bytes_of(generate_scenarios(5, 300, WILD)) == bytes_of(generate_scenarios(5, 300, WILD))
    assert bytes_of(generate_scenarios(5, 300, WILD)) != bytes_of(generate_scenarios(6, 300, WILD))


def test_endless_scenarios_begin_like_a_limited_number() -> None:
    some = list(generate_scenarios(5, 100, WILD))
    assert bytes_of(some) == bytes_of(islice(generate_scenarios(5, None, WILD), len(some)))


def test_no_two_scenarios_of_neighbouring_seeds_share_an_id() -> None:
    ids = [scenario.sms_id for seed in (0, 1, 2) for scenario in generate_scenarios(seed, 300, WILD)]
    assert len(ids) == len(set(ids))


def statuses(scenario: MessageScenario) -> list[int]:
    return [report.status_id for report in reports_of(scenario)]


def times_by_status(scenario: MessageScenario) -> dict[int, set[Any]]:
    times: dict[int, set[Any]] = {}
    for report in reports_of(scenario):
        times.setdefault(report.status_id, set()).add(report.sent_at)
    return times


def holds(part: bytes) -> Callable[[MessageScenario], bool]:
    return lambda scenario: any(part in webhook.body for webhook in scenario.webhooks)


# Evidence of each misbehaviour in the webhooks, without any other misbehaviour.
EVIDENCE: dict[str, Callable[[MessageScenario], bool]] = {
    "failing": lambda scenario: bool(FAILURES.intersection(statuses(scenario))),
    "missing_ends": lambda scenario: statuses(scenario) == [1, 3, 2, 6],
    "duplicates": lambda scenario: len({webhook.body for webhook in scenario.webhooks}) < len(scenario.webhooks),
    "reordering": lambda scenario: (
        sorted(statuses(scenario)) == [1, 2, 3, 6, 7] and statuses(scenario) != [1, 3, 2, 6, 7]
    ),
    "skipped_stages": lambda scenario: len(scenario.webhooks) < 5,
    "late_reports": lambda scenario: max(webhook.delay_s for webhook in scenario.webhooks) > 300,
    "resends": lambda scenario: len(times_by_status(scenario).get(1, ())) > 1,
    "contradictions": lambda scenario: 7 in statuses(scenario) and not FAILURES.isdisjoint(statuses(scenario)),
    "multipart": lambda scenario: len(times_by_status(scenario)[7]) > 1,
    "old_payloads": holds(b'"sim":'),
    "numeric_strings": lambda scenario: holds(b'"sms_id":"')(scenario) and holds(b'"status_id":"')(scenario),
    "spaced_numbers": holds(b"+44 7700 900"),
    "other_datetimes": lambda scenario: (
        holds(b'"senttime":"2026-01-05T')(scenario) or holds(b'"senttime":{"date"')(scenario)
    ),
    "null_senttime": holds(b'"senttime":null'),
    "unknown_codes": lambda scenario: not set(statuses(scenario)) <= set(STATUSES),
    "stray_incoming": lambda scenario: 5 in statuses(scenario),
}


@pytest.mark.parametrize("rate", EVIDENCE)
def test_each_misbehaviour_is_visible_in_the_webhooks_at_its_rate(rate: str) -> None:
    needs = {"failing": 1.0} if rate == "resends" else {}
    behaviour = replace(FLAWLESS, **needs | {rate: 0.3})
    scenarios = list(generate_scenarios(11, 800, behaviour))
    assert sum(map(EVIDENCE[rate], scenarios)) / len(scenarios) == pytest.approx(0.3, abs=0.06)


def test_a_message_resent_under_another_id_follows_the_failed_one_to_the_same_number() -> None:
    scenarios = list(generate_scenarios(12, 2000, replace(FLAWLESS, failing=0.5, resends_new_id=0.4)))
    again = [i for i, scenario in enumerate(scenarios) if scenario.webhooks[0].delay_s > 0]
    assert len(again) / len(scenarios) == pytest.approx(0.2, abs=0.04)
    for i in again:
        first, second = reports_of(scenarios[i - 1]), reports_of(scenarios[i])
        assert first[-1].status_id in FAILURES
        assert first[0].recipient == second[0].recipient
        assert first[0].sms_id != second[0].sms_id
        assert scenarios[i].webhooks[0].delay_s > sum(webhook.delay_s for webhook in scenarios[i - 1].webhooks)


def test_incoming_and_malformed_webhooks_occur_at_their_rates() -> None:
    scenarios = list(generate_scenarios(13, 2000, replace(FLAWLESS, incoming=0.3, images=0.4, malformed=0.2)))
    kinds = [scenario.kind for scenario in scenarios]
    images = [holds(b'"img_url"')(scenario) for scenario in scenarios if scenario.kind == "incoming"]
    assert kinds.count("outgoing") == 2000
    assert kinds.count("incoming") / 2000 == pytest.approx(0.3, abs=0.05)
    assert kinds.count("malformed") / 2000 == pytest.approx(0.2, abs=0.05)
    assert sum(images) / len(images) == pytest.approx(0.4, abs=0.08)
    assert {each.webhooks[0].role for each in scenarios if each.kind == "malformed"} == set(MALFORMED_BODIES)


@pytest.mark.parametrize("rate", EVIDENCE)
def test_nothing_happens_at_rate_0(rate: str) -> None:
    needs = {"failing": 1.0} if rate == "resends" else {}
    assert not any(map(EVIDENCE[rate], generate_scenarios(14, 200, replace(FLAWLESS, **needs))))


def test_a_flawless_gateway_reports_every_stage_in_order() -> None:
    assert {tuple(statuses(scenario)) for scenario in generate_scenarios(15, 100, FLAWLESS)} == {(1, 3, 2, 6, 7)}


def test_a_second_attempt_may_use_another_phone() -> None:
    scenarios = generate_scenarios(16, 300, replace(FLAWLESS, failing=0.6, resends=0.9))
    devices = [
        len({report.device_id for report in reports_of(scenario)})
        for scenario in scenarios
        if EVIDENCE["resends"](scenario)
    ]
    assert set(devices) >= {1, 2}


def test_an_unhealthy_phone_has_its_own_failure_ratio() -> None:
    scenarios = generate_scenarios(17, 3000, replace(FLAWLESS, failing=0.1, unhealthy=((8002, 0.7),)))
    failed: dict[int, list[bool]] = {}
    for scenario in scenarios:
        failed.setdefault(reports_of(scenario)[0].device_id or 0, []).append(EVIDENCE["failing"](scenario))
    shares = {device: sum(fails) / len(fails) for device, fails in failed.items()}
    assert set(shares) == set(range(8001, 8007))
    assert shares.pop(8002) == pytest.approx(0.7, abs=0.08)
    assert all(share == pytest.approx(0.1, abs=0.05) for share in shares.values())


@pytest.mark.parametrize("behaviour", [GatewayBehaviour(), WILD], ids=["default", "wild"])
def test_every_body_can_be_read_unless_it_is_malformed(behaviour: GatewayBehaviour) -> None:
    for scenario in generate_scenarios(18, 1500, behaviour):
        for webhook in scenario.webhooks:
            if scenario.kind == "malformed":
                with pytest.raises(UnreadablePayload):
                    parse_payload(webhook.body)
                continue
            event = parse_payload(webhook.body)
            assert event.sms_id == scenario.sms_id
            assert not event.flaws
            assert isinstance(event, StatusReport if scenario.kind == "outgoing" else IncomingMessage)
            if isinstance(event, IncomingMessage):
                assert event.content_type == webhook.role


def test_every_generation_of_incoming_messages_occurs() -> None:
    scenarios = generate_scenarios(19, 500, replace(FLAWLESS, incoming=1, images=0.3, old_payloads=0.5))
    bodies = [orjson.loads(scenario.webhooks[0].body) for scenario in scenarios if scenario.kind == "incoming"]
    shapes = {("type" in body, "sim" in body, "device_id" in body, type(body["address"])) for body in bodies}
    assert shapes == {
        (True, False, True, str),  # text
        (True, True, False, str),  # image
        (False, False, True, str),  # middle
        (False, True, True, str),  # old
        (False, True, True, int),
    }


def test_every_kind_of_malformed_body_is_unreadable_for_its_reason() -> None:
    reasons = set()
    for make in MALFORMED_BODIES.values():
        with pytest.raises(UnreadablePayload) as caught:
            parse_payload(make(77)[0])
        reasons.add(caught.value.reason)
    assert len(reasons) >= 6


@pytest.mark.parametrize("behaviour", [GatewayBehaviour(), WILD], ids=["default", "wild"])
def test_the_lifecycle_of_the_stream_agrees_with_the_scenario_after_each_report(behaviour: GatewayBehaviour) -> None:
    lifecycle = LifecycleRules(build_status_table({}))
    names = [field.name for field in fields(MessageTruth) if field.name != "statuses"]
    for scenario in generate_scenarios(20, 1500, behaviour):
        if scenario.kind != "outgoing":
            continue
        facts, now = MessageState("acme", scenario.sms_id), 0
        for webhook, report in zip(scenario.webhooks, reports_of(scenario), strict=True):
            now += max(3, round(webhook.delay_s * 1000))
            facts.add_report(report, now)
            version: dict[str, Any] = msgspec.structs.asdict(lifecycle.derive_version(facts))
            truth = {name: getattr(webhook.truth, name) for name in names}
            assert {name: version[name] for name in names} == truth, scenario
            assert webhook.truth
            assert {observation[0] for observation in version["observations"]} == set(webhook.truth.statuses)


def truth_after(*parts: tuple[int, ReportPart, int]) -> MessageTruth:
    """Return the truth after reports, each given by status id, part and phone."""
    truth = None
    for status_id, part, device_id in parts:
        truth = update_truth(
            truth, SimulatedReport(0.0, status_id, device_id, 1, datetime(2026, 1, 5, tzinfo=UTC), part)
        )
    assert truth
    return truth


WAY: tuple[tuple[int, ReportPart, int], ...] = ((1, "stage", 1), (3, "stage", 1), (2, "stage", 1), (6, "stage", 1))


@pytest.mark.parametrize(
    ("reports", "outcome", "last", "device", "attempts", "contradicted"),
    [
        (WAY[:1], "pending", 1, 1, 1, False),
        (WAY[:3], "accepted", 2, 1, 1, False),
        ((WAY[2], WAY[1]), "accepted", 2, 1, 1, False),
        ((*WAY, (7, "end", 1)), "delivered", 7, 1, 1, False),
        (((7, "end", 1), WAY[3]), "delivered", 7, 1, 1, False),
        ((*WAY, (8, "end", 1), (1, "restart", 2)), "undelivered", 8, 1, 2, False),
        ((*WAY, (8, "end", 1), (1, "restart", 2), (7, "end", 2)), "delivered", 7, 2, 2, False),
        ((*WAY, (8, "end", 1), (1, "restart", 2), (8, "repetition", 1)), "undelivered", 8, 1, 2, False),
        ((*WAY, (7, "end", 1), (8, "contradiction", 1)), "undelivered", 8, 1, 1, True),
        ((*WAY, (7, "end", 1), (8, "contradiction", 1), (7, "repetition", 1)), "undelivered", 8, 1, 1, True),
        (((13, "unknown", 1),), "unknown", 13, 1, 1, False),
        ((*WAY[:2], (13, "unknown", 1)), "queued", 3, 1, 1, False),
        (((5, "stray", 1),), "incoming", 5, 1, 1, False),
        ((WAY[0], (5, "stray", 1)), "pending", 1, 1, 1, False),
    ],
)
def test_the_truth_of_small_scenarios(
    reports: Any, outcome: str, last: int, device: int, attempts: int, contradicted: bool
) -> None:
    truth = truth_after(*reports)
    assert (truth.outcome, truth.last_status_id, truth.device_id) == (outcome, last, device)
    assert (truth.attempts, truth.contradicted) == (attempts, contradicted)
    assert truth.statuses == tuple(sorted({status_id for status_id, *_ in reports}))


@pytest.mark.parametrize(
    ("setting", "error"),
    [
        ({"resends": 0.7, "resends_new_id": 0.4}, "sum"),
        ({"failure_mix": ((7, 1.0),)}, "failure_mix"),
        ({"failure_mix": ((8, 0.0),)}, "failure_mix"),
        ({"unhealthy": ((9999, 0.5),)}, "8001 to 8006"),
        ({"unhealthy": ((8001, 2.0),)}, "unhealthy 8001"),
    ],
)
def test_an_invalid_behaviour_is_refused(setting: dict[str, Any], error: str) -> None:
    with pytest.raises(SettingError, match=error):
        GatewayBehaviour(**setting)


@pytest.mark.parametrize("option", ["--duplicates=1.5", "--failing=-0.1", "--devices=0"])
def test_an_option_outside_its_range_is_refused(option: str) -> None:
    done = CliRunner().invoke(cli, ["simulate", "--url", "http://127.0.0.1:1/webhooks/acme/t", option])
    assert done.exit_code == 2
    assert option.partition("=")[0] in done.stderr


def test_shares_are_read_from_text() -> None:
    assert parse_shares("8003=0.5, 8004=0.1") == ((8003, 0.5), (8004, 0.1))
    with pytest.raises(SettingError, match=r"8003=0\.5"):
        parse_shares("8003:0.5")


def test_every_rate_has_a_description() -> None:
    assert all(field.metadata["help"] for field in fields(GatewayBehaviour) if field.name in RATES)


def test_in_the_demo_no_message_is_not_permitted_because_one_would_be_an_alert() -> None:
    scenarios = [scenario.webhooks[-1].truth for scenario in islice(generate_scenarios(3, None, DEMO_BEHAVIOUR), 5_000)]
    outcomes = {truth.outcome for truth in scenarios if truth}
    assert {Outcome.NOT_SENT, Outcome.UNDELIVERED} <= outcomes
    assert Outcome.NOT_PERMITTED not in outcomes
