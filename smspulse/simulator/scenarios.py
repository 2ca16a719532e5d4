"""Scenarios of messages: the webhooks a gateway sends about each, and what is true after each of them.

A scenario is written from what happens to the message, then misbehaviours are worked into it. What is true afterwards
follows from the part that each report plays in the scenario (a stage, the start of another attempt, an end, the
contradiction of an end, a repetition, noise), which the writer knows and a reader of the webhooks has to infer. So the
truth does not share the reader's errors.

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

_FIRST_TIME: Final = datetime(2026, 1, 5, 8, tzinfo=UTC)
"""Times in payloads start here, so that bytes depend on the seed alone."""
_IDS_PER_SEED: Final = 1_000_000_000
_SEEDS: Final = 1 << 20


def generate_scenarios(
    seed: int, messages: int | None, behaviour: GatewayBehaviour | None = None, first_id: int | None = None
) -> Iterator[MessageScenario]:
    """Write the scenarios of a number of outgoing messages, with incoming and malformed ones among them.

    Args:
        seed: Any whole number.
        messages: Outgoing messages; None goes on for ever.
        behaviour: The default behaviour if None.
        first_id: The smallest sms_id. By default each seed below 2**20 has a range of its own, so runs with different
            seeds never report the same message.
    """
    behaviour = behaviour or GatewayBehaviour()
    ids = itertools.count((seed % _SEEDS + 1) * _IDS_PER_SEED if first_id is None else first_id)
    resend: tuple[str, float] | None = None
    for number in itertools.count() if messages is None else range(messages):
        # A generator for each message: a scenario does not depend on how much chance its neighbours used.
        rng = random.Random(f"{seed}/{number}")  # noqa: S311 - repeatable on purpose
        writer = ScenarioWriter(rng, behaviour, next(ids), _FIRST_TIME + timedelta(seconds=number), resend)
        yield writer.write_outgoing()
        resend = writer.resend
        if rng.random() < behaviour.incoming:
            yield ScenarioWriter(rng, behaviour, next(ids), writer.base).write_incoming()
        if rng.random() < behaviour.malformed:
            sms_id, flaw = next(ids), rng.choice(list(MALFORMED_BODIES))
            body, content_type = MALFORMED_BODIES[flaw](sms_id)
            yield MessageScenario(
                "malformed", sms_id, (SimulatedWebhook(0.0, body, content_type, flaw),), frozenset({"malformed"})
            )
