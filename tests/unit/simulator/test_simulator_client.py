"""Scenarios sent over real HTTP: in order, with retries, and with a ground truth of exactly the accepted webhooks."""

import asyncio
import logging
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import orjson
import pytest
from click.testing import CliRunner
from flawless_gateway import FLAWLESS
from webhook_receiver import Answer, Receiver, receiving

from gateway.events import StatusReport
from gateway.payloads import parse_payload
from gateway.statuses import build_status_table
from smspulse.cli.main import cli
from smspulse.simulator.client import Simulation, SimulationTotals
from smspulse.simulator.errors import SimulationError
from smspulse.simulator.scenarios import MessageScenario, generate_scenarios
from streams.lifecycle import LifecycleRules, MessageState

FAST: dict[str, Any] = {"rate": 5000, "time_scale": 0.001, "max_delay_s": 0.01}


def read(truth: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    lines = [orjson.loads(line) for line in truth.read_bytes().splitlines()]
    assert not truth.with_name(truth.name + ".part").exists()
    return lines[:-1], lines[-1]["totals"]


def left_in(folder: Path) -> list[Path]:
    return list(folder.iterdir())


def check_against(receiver: Receiver, truth: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Assert that the truth covers exactly the answered webhooks, and their results."""
    lines, totals = read(truth)
    receipts = {receipt.ingest_id: receipt for receipt in receiver.receipts}
    answered = [ingest_id for line in lines for ingest_id in line["ingest_ids"]]
    assert sorted(answered) == sorted(receipt.ingest_id for receipt in receiver.receipts if receipt.answered)
    assert totals["accepted"] == len(answered)
    lifecycle = LifecycleRules(build_status_table({}))
    for line in lines:
        assert line["source"] == "acme"
        if line["kind"] != "outgoing" or not line["ingest_ids"]:
            continue
        facts = MessageState("acme", line["sms_id"])
        own = [receipts[ingest_id] for ingest_id in line["ingest_ids"]]
        assert all(a.received_at < b.received_at for a, b in pairwise(own))
        for receipt in own:
            report = parse_payload(receipt.body)
            assert isinstance(report, StatusReport)
            facts.add_report(report, receipt.received_at)
        version: dict[str, Any] = msgspec.structs.asdict(lifecycle.derive_version(facts))
        for name in ("outcome", "last_status_id", "device_id", "channel_id", "attempts", "contradicted"):
            assert line[name] == version[name], line
        assert line["reports"] == len(own)
        assert line["statuses"] == sorted({observation[0] for observation in version["observations"]})
    return lines, totals


async def test_every_webhook_arrives_in_order_and_is_in_the_truth(tmp_path: Path) -> None:
    seen: list[int] = []
    async with receiving() as receiver:
        totals = await Simulation(
            receiver.url,
            generate_scenarios(1, 150),
            truth=tmp_path / "truth",
            on_progress=lambda totals: seen.append(totals.accepted),
            **FAST,
        ).run()
    scenarios = list(generate_scenarios(1, 150))
    lines, written = check_against(receiver, tmp_path / "truth")
    kinds = Counter(scenario.kind for scenario in scenarios)
    assert Counter(line["kind"] for line in lines) == kinds
    assert (totals.messages, totals.incoming, totals.malformed) == (150, kinds["incoming"], kinds["malformed"])
    assert (
        totals.sent
        == totals.accepted
        == sum(len(scenario.webhooks) for scenario in scenarios)
        == len(receiver.receipts)
    )
    assert (totals.refused, totals.retried, totals.abandoned, totals.cut_short) == ({}, 0, 0, 0)
    assert seen == list(range(1, totals.accepted + 1))
    assert written["source"] == "acme"
    assert written["started_at"] <= receiver.receipts[0].received_at <= written["finished_at"]

    assert Counter(receipt.body for receipt in receiver.receipts) == Counter(
        webhook.body for scenario in scenarios for webhook in scenario.webhooks
    )
    form = [receipt for receipt in receiver.receipts if receipt.body.startswith(b"sms_id=")]
    assert all(receipt.content_type == "application/x-www-form-urlencoded" for receipt in form)


@pytest.mark.parametrize("failure", ["busy", "drop", "store_and_drop"])
async def test_failed_webhooks_are_repeated_in_order(tmp_path: Path, failure: Answer) -> None:
    async with receiving() as receiver:
        receiver.answer = lambda number, _: failure if number % 4 == 0 and number < 100 else "accept"
        totals = await Simulation(receiver.url, generate_scenarios(2, 40), truth=tmp_path / "truth", **FAST).run()
    scenarios = list(generate_scenarios(2, 40))
    check_against(receiver, tmp_path / "truth")
    failed = 25
    assert totals.retried == failed
    assert totals.refused == ({503: failed} if failure == "busy" else {})
    assert totals.sent == totals.accepted == receiver.requests - failed
    assert (totals.abandoned, totals.cut_short) == (0, 0)
    order = {}
    for receipt in receiver.receipts:
        if receipt.answered and receipt.body:
            order.setdefault(sms_id_of(receipt.body), []).append(receipt.body)
    assert all(
        order[scenario.sms_id] == [webhook.body for webhook in scenario.webhooks]
        for scenario in scenarios
        if scenario.kind == "outgoing"
    )


def sms_id_of(body: bytes) -> int:
    try:
        return parse_payload(body).sms_id
    except ValueError:
        return -1


@pytest.mark.parametrize("status", [200, 202])
async def test_any_success_status_means_stored(tmp_path: Path, status: int) -> None:
    async with receiving() as receiver:
        receiver.success_status = status
        totals = await Simulation(receiver.url, generate_scenarios(2, 10), truth=tmp_path / "truth", **FAST).run()
    check_against(receiver, tmp_path / "truth")
    assert totals.sent == totals.accepted == receiver.requests
    assert totals.refused == {}


async def test_a_refused_webhook_ends_its_scenario_and_no_other(tmp_path: Path) -> None:
    async with receiving() as receiver:
        receiver.answer = lambda number, _: "too_large" if number == 7 else "accept"
        totals = await Simulation(receiver.url, generate_scenarios(3, 30), truth=tmp_path / "truth", **FAST).run()
    check_against(receiver, tmp_path / "truth")
    assert totals.refused == {413: 1}
    assert totals.sent == totals.accepted + 1
    assert totals.cut_short == 1


async def test_a_wrong_token_ends_the_simulation_and_is_not_shown(tmp_path: Path) -> None:
    async with receiving() as receiver:
        receiver.answer = lambda number, _: "unauthorized" if number >= 20 else "accept"
        with pytest.raises(SimulationError, match="401") as caught:
            await Simulation(
                receiver.url, generate_scenarios(4, None), truth=tmp_path / "truth", grace_s=0, **FAST
            ).run()
    assert "secret-token" not in str(caught.value)
    check_against(receiver, tmp_path / "truth")


async def test_a_webhook_without_an_answer_is_abandoned_and_may_have_arrived(tmp_path: Path) -> None:
    async with receiving() as receiver:
        receiver.answer = lambda number, _: "store_and_drop" if number >= 3 else "accept"
        totals = await Simulation(
            receiver.url,
            generate_scenarios(5, 1, FLAWLESS),
            truth=tmp_path / "truth",
            deadline_s=0.2,
            **FAST,
        ).run()
    (line,), _ = check_against(receiver, tmp_path / "truth")
    assert (totals.abandoned, totals.cut_short) == (1, 1)
    assert (line["outcome"], line["reports"], line["perhaps"]["outcome"]) == ("accepted", 3, "sent")


async def test_a_webhook_is_abandoned_at_once_if_its_retry_would_be_after_the_deadline(tmp_path: Path) -> None:
    async with receiving() as receiver:
        receiver.answer, receiver.retry_after = (lambda _, __: "busy"), "60"
        totals = await Simulation(
            receiver.url,
            generate_scenarios(5, 8, FLAWLESS),
            truth=tmp_path / "truth",
            deadline_s=30,
            **FAST,
        ).run()
    assert (receiver.requests, totals.abandoned, totals.retried) == (8, 8, 0)


async def test_an_unreachable_receiver_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    async with receiving() as receiver:
        pass
    totals = await Simulation(
        receiver.url, generate_scenarios(5, 5), truth=tmp_path / "truth", deadline_s=0.3, **FAST
    ).run()
    assert totals.accepted == 0
    assert totals.abandoned >= 5
    lines, _ = read(tmp_path / "truth")
    assert all("perhaps" in line and line["ingest_ids"] == [] for line in lines)
    assert len(caplog.records) == 1
    assert "secret-token" not in caplog.text


def stop_at(count: int, stop: asyncio.Event) -> Any:
    def progress(totals: SimulationTotals) -> None:
        if totals.accepted >= count:
            stop.set()

    return progress


async def test_a_stop_starts_no_scenario_and_finishes_open_ones(tmp_path: Path) -> None:
    stop = asyncio.Event()
    async with receiving() as receiver:
        totals = await Simulation(
            receiver.url,
            generate_scenarios(6, None),
            truth=tmp_path / "truth",
            stop=stop,
            on_progress=stop_at(100, stop),
            **FAST,
        ).run()
    lines, _ = check_against(receiver, tmp_path / "truth")
    assert totals.cut_short == 0
    scenarios = {
        scenario.sms_id: scenario for _, scenario in zip(range(len(lines)), generate_scenarios(6, None), strict=False)
    }
    assert all(
        line["reports"] == len(scenarios[line["sms_id"]].webhooks) for line in lines if line["kind"] == "outgoing"
    )


async def test_tails_are_abandoned_after_the_grace_and_the_truth_is_that_of_the_rest(tmp_path: Path) -> None:
    slow = FAST | {"time_scale": 1.0, "max_delay_s": 60.0}
    stop = asyncio.Event()
    async with receiving() as receiver:
        totals = await Simulation(
            *(receiver.url, generate_scenarios(7, None)),
            truth=tmp_path / "truth",
            stop=stop,
            on_progress=stop_at(100, stop),
            grace_s=0.1,
            **slow,
        ).run()
    check_against(receiver, tmp_path / "truth")
    assert totals.cut_short > 10
    assert totals.abandoned == 0


async def test_a_cancelled_simulation_leaves_the_truth_of_what_was_accepted(tmp_path: Path) -> None:
    reached = asyncio.Event()
    async with receiving() as receiver:
        task = asyncio.create_task(
            Simulation(
                receiver.url,
                generate_scenarios(8, None),
                truth=tmp_path / "truth",
                grace_s=0,
                on_progress=stop_at(150, reached),
                **FAST | {"time_scale": 0.1, "max_delay_s": 60.0},
            ).run()
        )
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    _, totals = check_against(receiver, tmp_path / "truth")
    assert totals["cut_short"] > 0
    assert totals["finished_at"] > 0


async def test_a_simulation_cancelled_twice_ends_at_once_and_leaves_no_truth(tmp_path: Path) -> None:
    reached = asyncio.Event()
    async with receiving() as receiver:
        task = asyncio.create_task(
            Simulation(
                receiver.url,
                generate_scenarios(9, None),
                truth=tmp_path / "truth",
                grace_s=600,
                on_progress=stop_at(50, reached),
                **FAST | {"time_scale": 1.0, "max_delay_s": 600.0},
            ).run()
        )
        await reached.wait()
        task.cancel()
        await asyncio.sleep(0)  # the first cancellation is delivered
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 5)
    assert not left_in(tmp_path)


async def test_the_number_of_open_scenarios_is_limited() -> None:
    open_: list[int] = []

    def watched(receiver: Receiver) -> Iterator[MessageScenario]:
        for number, scenario in enumerate(generate_scenarios(10, 40, FLAWLESS)):
            reports = Counter(sms_id_of(receipt.body) for receipt in receiver.receipts)
            open_.append(number - list(reports.values()).count(5))
            yield scenario

    async with receiving() as receiver:
        await Simulation(receiver.url, watched(receiver), max_open=3, **FAST).run()
    assert len(receiver.receipts) == 200
    assert max(open_) == 3


async def test_a_stop_does_not_wait_for_an_open_scenario(tmp_path: Path) -> None:
    slow = FAST | {"time_scale": 1000.0, "max_delay_s": 600.0}
    stop = asyncio.Event()
    async with receiving() as receiver:
        simulation = Simulation(
            receiver.url,
            generate_scenarios(11, None),
            truth=tmp_path / "truth",
            max_open=2,
            stop=stop,
            grace_s=0,
            **slow,
        ).run()
        asyncio.get_running_loop().call_later(0.1, stop.set)
        totals = await asyncio.wait_for(simulation, 10)
    check_against(receiver, tmp_path / "truth")
    assert totals.cut_short == 2


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/hooks/acme/t", "127.0.0.1/webhooks/acme/t", "http://127.0.0.1:1/webhooks/acme"]
)
async def test_a_url_that_is_no_webhook_is_refused(url: str) -> None:
    with pytest.raises(SimulationError, match="HOST:PORT/webhooks/SOURCE/TOKEN"):
        await Simulation(url, [], rate=1).run()


async def test_a_truth_file_that_cannot_be_written_is_an_error_at_the_start(tmp_path: Path) -> None:
    async with receiving() as receiver:
        with pytest.raises(FileNotFoundError):
            await Simulation(receiver.url, generate_scenarios(1, 5), truth=tmp_path / "missing" / "truth", **FAST).run()
    assert receiver.requests == 0


WEBHOOK = "http://127.0.0.1:1/webhooks/acme/t0k3n"


@pytest.mark.parametrize(
    ("arguments", "given", "is_shown"),
    [
        (["--url", "-"], {"input": f"{WEBHOOK}\n"}, False),
        ([], {"env": {"SMSPULSE_SIMULATE_URL": WEBHOOK}}, False),
        (["--url", WEBHOOK], {}, True),
    ],
    ids=["standard input", "environment", "argument"],
)
def test_a_token_need_not_be_an_argument_which_all_users_see(
    arguments: list[str], given: dict[str, Any], is_shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls = []

    async def send(simulation: Simulation) -> SimulationTotals:
        urls.append(simulation.url)
        return SimulationTotals("acme", 0)

    monkeypatch.setattr(Simulation, "run", send)
    done = CliRunner().invoke(cli, ["simulate", "--messages", "1", *arguments], **given)
    assert (done.exit_code, urls) == (0, [WEBHOOK]), done.output
    assert ("`ps` shows the token in --url to every user" in done.stderr) == is_shown
    assert "t0k3n" not in done.output


def test_a_url_without_a_token_is_no_secret() -> None:
    url = "http://127.0.0.1:1/webhooks/acme"
    assert "`ps`" not in CliRunner().invoke(cli, ["simulate", "--url", url, "--rate", "nan"]).stderr
