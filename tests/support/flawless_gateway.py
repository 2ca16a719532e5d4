"""A simulated gateway without any failure, misbehaviour or incoming message."""

from typing import Final

from smspulse.simulator.options import GatewayBehaviour

FLAWLESS: Final = GatewayBehaviour(**dict.fromkeys(GatewayBehaviour.list_rates(), 0.0), unhealthy=())  # type: ignore[arg-type] # rates are floats
