"""The behaviour of a gateway that never errs."""

from dataclasses import fields
from typing import Final

from smspulse.simulator.options import GatewayBehaviour

RATES: Final = [field.name for field in fields(GatewayBehaviour) if field.type is float]
FLAWLESS: Final = GatewayBehaviour(**dict.fromkeys(RATES, 0.0), unhealthy=())  # type: ignore[arg-type] # rates are floats
