"""Scenarios of messages: the webhooks that a gateway sends about each, and the truth after each of them.

A scenario starts from the events of the message; then misbehaviours are added. The truth follows from the part of each
report in the scenario (a stage, the start of another attempt, an end, the contradiction of an end, a repetition,
noise). The writer has that part, and a reader of the webhooks must infer it. So the truth does not share the reader's
errors.

Everything is a pure function of seed and behaviour: the same arguments give the same bytes.
"""

import itertools
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Final

from smspulse.simulator.options import GatewayBehaviour
from smspulse.simulator.payload_formats import MALFORMED_BODIES
from smspulse.simulator.scenario_writer import MessageScenario, ScenarioWriter, SimulatedWebhook

# Start of the times in payloads, so that the bytes depend only on the seed.
_FIRST_TIME: Final = datetime(2026, 1, 5, 8, tzinfo=UTC)
# Each seed has a range of ids of this size, so that no two runs report the same message.
_IDS_PER_SEED: Final = 1_000_000_000
_SEEDS: Final = 1 << 20


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
        writer = ScenarioWriter(rng, behaviour, next(ids), _FIRST_TIME + timedelta(seconds=number), resend)
        yield writer.write_outgoing()
        resend = writer.resend
        if rng.random() < behaviour.incoming:
            yield ScenarioWriter(rng, behaviour, next(ids), writer.base).write_incoming()
        if rng.random() < behaviour.malformed:
            yield _build_malformed(rng, next(ids))


def _build_malformed(rng: random.Random, sms_id: int) -> MessageScenario:
    flaw = rng.choice(list(MALFORMED_BODIES))
    body, content_type = MALFORMED_BODIES[flaw](sms_id)
    webhook = SimulatedWebhook(0.0, body, content_type, flaw)
    return MessageScenario("malformed", sms_id, (webhook,), frozenset({"malformed"}))
