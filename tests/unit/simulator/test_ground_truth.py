"""The comparison with the ground truth accepts a correct warehouse and detects each kind of error."""

import asyncio
import copy
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import orjson
import pytest
from landing import land_records
from warehouse_records import MadeRecord
from webhook_receiver import Receipt, receiving

from core import topics
from gateway.errors import UnreadablePayload
from gateway.events import StatusReport
from gateway.payloads import parse_payload
from gateway.statuses import build_status_table
from smspulse.simulator.client import Simulation
from smspulse.simulator.errors import TruthError
from smspulse.simulator.ground_truth import FieldDifference, compare_with_truth
from smspulse.simulator.options import GatewayBehaviour
from smspulse.simulator.scenarios import generate_scenarios
from streams.lifecycle import LifecycleRules, MessageState
from warehouse.errors import NoWarehouseError


@dataclass
class Pipeline:
    """The output of a correct pipeline before it lands, so that a test can damage it."""

    raw: list[Receipt]
    versions: list[dict[str, Any]]
    dead: list[Receipt]

    @classmethod
    def of(cls, receipts: list[Receipt]) -> "Pipeline":
        dead, facts = [], {}
        for receipt in receipts:
            if not is_readable(receipt.body):
                dead.append(receipt)
            elif isinstance(event := parse_payload(receipt.body), StatusReport):
                facts.setdefault(event.sms_id, MessageState("acme", event.sms_id)).add_report(
                    event, receipt.received_at
                )
        lifecycle = LifecycleRules(build_status_table({}))
        return cls(
            list(receipts), [msgspec.to_builtins(lifecycle.derive_version(each)) for each in facts.values()], dead
        )

    def land(self, data: Path) -> None:
        for topic, receipts in ((topics.RAW, self.raw), (topics.DEADLETTERS, self.dead)):
            records = [
                MadeRecord(topic, 0, offset, r.received_at, None, r.body, headers_of(r))
                for offset, r in enumerate(receipts)
            ]
            land_records(data, 0, records)
        land_records(
            data,
            0,
            [
                MadeRecord(topics.MESSAGES, 0, offset, v["last_seen_at"], key_of(v), orjson.dumps(v), [])
                for offset, v in enumerate(self.versions)
            ],
        )


def headers_of(receipt: Receipt) -> list[tuple[str, bytes | None]]:
    return [
        ("source", b"acme"),
        ("ingest_id", receipt.ingest_id.encode()),
        ("received_at", str(receipt.received_at).encode()),
    ]


def key_of(version: dict[str, Any]) -> bytes:
    return f"acme:{version['sms_id']}".encode()


BEHAVIOUR = replace(GatewayBehaviour(), malformed=0.2, incoming=0.2)


async def simulated(truth: Path, loses: Callable[[int, bytes], bool] = lambda _, __: False, **options: Any) -> Pipeline:
    """Simulate traffic with lost answers, write its truth, and return the output of a correct pipeline."""
    fast: dict[str, Any] = {"rate": 5000, "time_scale": 0.001, "max_delay_s": 0.01}
    async with receiving() as receiver:
        receiver.answer = lambda number, body: "store_and_drop" if loses(number, body) else "accept"
        await Simulation(receiver.url, generate_scenarios(3, 60, BEHAVIOUR), truth=truth, **fast | options).run()
    return Pipeline.of(receiver.receipts)


def first_answers() -> Callable[[int, bytes], bool]:
    """Lose the first answer to each unreadable body, and to some others."""
    seen: set[bytes] = set()

    def loses(number: int, body: bytes) -> bool:
        is_first = body not in seen
        seen.add(body)
        return is_first and (number < 10 or not is_readable(body))

    return loses


def is_readable(body: bytes) -> bool:
    try:
        parse_payload(body)
    except UnreadablePayload:
        return False
    return True


@pytest.fixture(scope="module")
def simulation(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pipeline, Path]:
    """A simulation without faults, and its truth. Read-only."""
    truth = tmp_path_factory.mktemp("simulation") / "truth"
    return asyncio.run(simulated(truth)), truth


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    return tmp_path / "truth"


@pytest.fixture
def pipeline(simulation: tuple[Pipeline, Path], truth: Path) -> Pipeline:
    """A copy of the simulation for damage, with its truth in `truth`."""
    made, written = simulation
    shutil.copy(written, truth)
    return copy.deepcopy(made)


def test_a_correct_warehouse_is_reconciled_in_one_line(published: Path, truth: Path, pipeline: Pipeline) -> None:
    pipeline.land(published)
    comparison = compare_with_truth(published, truth)
    assert comparison.is_reconciled, comparison
    webhooks, dead = len(pipeline.raw), len(pipeline.dead)
    assert comparison.format_result() == (
        f"reconciled: {webhooks:,} sent = {webhooks:,} accepted = {webhooks:,} landed; 60 messages = truth; "
        f"{dead:,} dead letters = {dead:,} malformed"
    )
    assert dead > 0


async def test_webhooks_that_landed_without_an_answer_are_distinguished_from_unknown_ones(
    published: Path, truth: Path
) -> None:
    pipeline = await simulated(truth, first_answers())
    pipeline.land(published)
    comparison = compare_with_truth(published, truth)
    assert comparison.is_reconciled, comparison
    lost = sum(not receipt.answered for receipt in pipeline.raw)
    assert (comparison.unanswered, comparison.unanswered_allowed) == (lost, lost)
    assert f"{lost} landed of {lost} requests without an answer" in comparison.format_result()
    assert comparison.malformed == comparison.deadletters == len(pipeline.dead)
    assert any(not receipt.answered for receipt in pipeline.dead)


async def test_an_unreadable_webhook_that_landed_without_an_answer_must_be_a_dead_letter(
    published: Path, truth: Path
) -> None:
    pipeline = await simulated(truth, first_answers())
    pipeline.dead.remove(next(receipt for receipt in pipeline.dead if not receipt.answered))
    pipeline.land(published)
    assert compare_with_truth(published, truth).list_problems() == ["1 malformed webhooks are no dead letters"]


@pytest.mark.parametrize("arrived", [True, False])
async def test_the_last_webhook_of_a_scenario_may_have_arrived_or_not(
    published: Path, truth: Path, arrived: bool
) -> None:
    pipeline = await simulated(truth, lambda number, _: number >= 150, deadline_s=0.05)
    if not arrived:
        pipeline = Pipeline.of([receipt for receipt in pipeline.raw if receipt.answered])
    pipeline.land(published)
    comparison = compare_with_truth(published, truth)
    assert comparison.is_reconciled, comparison
    assert comparison.abandoned > 0
    assert "given up without an answer" in comparison.format_result()


def lose_a_webhook(p: Pipeline) -> None:
    p.raw.pop()


def land_a_webhook_twice(p: Pipeline) -> None:
    p.raw.append(p.raw[3])


def land_a_webhook_nobody_sent(p: Pipeline) -> None:
    readable = next(receipt for receipt in p.raw if is_readable(receipt.body))
    p.raw.append(readable._replace(ingest_id="stray"))


def lose_a_message(p: Pipeline) -> None:
    p.versions.pop()


def lose_an_incoming_message(p: Pipeline) -> None:
    # Its webhook is lost with it: the view of incoming messages reads the webhooks.
    p.raw.remove(next(receipt for receipt in p.raw if b'"address"' in receipt.body))


def invent_a_message(p: Pipeline) -> None:
    p.versions.append(p.versions[0] | {"sms_id": 42})


def lose_a_dead_letter(p: Pipeline) -> None:
    p.dead.pop()


def repeat_a_dead_letter(p: Pipeline) -> None:
    p.dead.append(p.dead[0])


def bury_a_good_webhook(p: Pipeline) -> None:
    p.dead.append(next(receipt for receipt in p.raw if receipt not in p.dead))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lose_a_webhook, ["1 accepted webhooks have not landed"]),
        (land_a_webhook_twice, ["1 accepted webhooks have landed more than once"]),
        (land_a_webhook_nobody_sent, ["1 webhooks have landed beyond those that requests can explain"]),
        (lose_a_message, ["1 messages are missing"]),
        (lose_an_incoming_message, ["1 accepted webhooks have not landed", "1 messages are missing"]),
        (invent_a_message, ["1 messages were never sent"]),
        (lose_a_dead_letter, ["1 malformed webhooks are no dead letters"]),
        (repeat_a_dead_letter, ["1 dead letters are repeated"]),
        (bury_a_good_webhook, ["1 dead letters were not malformed"]),
    ],
)
def test_each_fault_is_detected_and_no_other(
    published: Path, truth: Path, pipeline: Pipeline, spoil: Callable[[Pipeline], None], says: list[str]
) -> None:
    # The last webhook and message must have no other trace.
    pipeline.raw.sort(key=lambda receipt: b'"status_id"' in receipt.body)
    spoil(pipeline)
    pipeline.land(published)
    comparison = compare_with_truth(published, truth)
    assert comparison.list_problems() == says
    assert comparison.format_result().startswith("not reconciled: " + says[0])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("outcome", "expired"),
        ("last_status_id", 99),
        ("device_id", 1),
        ("device_id", None),
        ("channel_id", 7),
        ("attempts", 9),
        ("contradicted", None),
    ],
)
def test_a_field_that_differs_is_named(
    published: Path, truth: Path, pipeline: Pipeline, field: str, value: object
) -> None:
    want, sms_id = pipeline.versions[4][field], pipeline.versions[4]["sms_id"]
    pipeline.versions[4] |= {field: value}
    pipeline.land(published)
    comparison = compare_with_truth(published, truth)
    assert comparison.differences == [FieldDifference(sms_id, field, value, want)]
    assert comparison.list_problems() == ["1 messages differ from the truth"]


def test_an_incoming_message_of_another_type_differs(published: Path, truth: Path, pipeline: Pipeline) -> None:
    lines = (truth).read_bytes().splitlines(keepends=True)
    i = next(i for i, line in enumerate(lines) if b'"text"' in line)
    lines[i] = lines[i].replace(b'"text"', b'"img"')
    (truth).write_bytes(b"".join(lines))
    pipeline.land(published)
    (difference,) = compare_with_truth(published, truth).differences
    assert difference[1:] == ("message_type", "text", "img")


async def test_a_refused_webhook_is_no_reconciliation(published: Path, truth: Path) -> None:
    async with receiving() as receiver:
        receiver.answer = lambda number, _: "too_large" if number == 9 else "accept"
        await Simulation(
            receiver.url, generate_scenarios(3, 20, BEHAVIOUR), truth=truth, rate=5000, time_scale=0, max_delay_s=0
        ).run()
    Pipeline.of(receiver.receipts).land(published)
    assert compare_with_truth(published, truth).list_problems() == ["1 sent webhooks were refused"]


def test_traffic_before_and_after_the_simulation_is_ignored(published: Path, truth: Path, pipeline: Pipeline) -> None:
    day = 86_400_000
    others = [
        receipt._replace(ingest_id=f"{receipt.ingest_id}{shift}", received_at=receipt.received_at + shift)
        for receipt in pipeline.raw
        for shift in (-day, day)
    ]
    versions = [
        version | {"sms_id": version["sms_id"] + shift, "first_seen_at": version["first_seen_at"] + shift}
        for version in pipeline.versions
        for shift in (-day, day)
    ]
    both = Pipeline(
        pipeline.raw + [receipt for receipt in others if b'"address"' not in receipt.body],
        pipeline.versions + versions,
        pipeline.dead + Pipeline.of(others).dead,
    )
    both.land(published)
    assert compare_with_truth(published, truth).is_reconciled


def test_a_missing_or_incomplete_truth_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TruthError, match="no truth file"):
        compare_with_truth(tmp_path, tmp_path / "truth")
    (tmp_path / "truth").write_text('{"kind": "incoming"}\n')
    with pytest.raises(TruthError, match="incomplete"):
        compare_with_truth(tmp_path, tmp_path / "truth")
    (tmp_path / "truth").write_text('{"kind": ')
    with pytest.raises(TruthError, match="is not a truth file"):
        compare_with_truth(tmp_path, tmp_path / "truth")


def test_a_data_folder_without_a_warehouse_is_an_error(tmp_path: Path, truth: Path, pipeline: Pipeline) -> None:
    with pytest.raises(NoWarehouseError):
        compare_with_truth(tmp_path / "nothing", truth)
