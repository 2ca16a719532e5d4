"""Settings of the checks."""

from typing import Annotated

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat
from pydantic_settings import SettingsConfigDict

from core.settings import EnvironmentSettings

Share = Annotated[float, Field(ge=0, le=1)]


class CheckSettings(EnvironmentSettings):
    """Thresholds. Environment: `SMSPULSE_CHECK_` and the field's name in capitals."""

    model_config = SettingsConfigDict(env_prefix="SMSPULSE_CHECK_")

    recent_h: PositiveFloat = 24
    """Hours back from now that count as recent."""
    max_unreadable_share: Share = 0.05
    """Share of a source's recent webhooks that may be unreadable."""
    max_flawed_share: Share = 0.05
    """Share of a source's recent webhooks that may have a field that cannot be read."""
    max_unknown_share: Share = 0.05
    """Share of a source's recent status reports that may be of undocumented statuses."""
    max_duplicate_share: Share = 0.2
    """Share of a source's recent status reports that may repeat another to the letter."""
    max_early_share: Share = 0.01
    """Share of a source's recent reports whose `senttime` may be after their receipt."""
    max_contradicted_share: Share = 0.1
    """Share of a source's recent messages whose ends may contradict each other."""
    min_volume: NonNegativeFloat = 0.5
    """Lowest volume of an hour, relative to the same hour of the last four weeks."""
    max_volume: float = Field(3, ge=1)
    """Highest volume of an hour, likewise."""
    min_expected: float = Field(50, ge=1)
    """Messages that an hour needs in those weeks before its volume is judged."""
    max_unanswered_share: Share = 0.01
    """Landed webhooks without an answer, relative to those with one."""
    max_quiet_s: PositiveFloat = 3600
    """Seconds without any webhook that are always accepted."""
    max_waiting_s: PositiveFloat = 60
    """Seconds until a status report in `raw` must be in `messages`."""
    max_ahead_s: NonNegativeFloat = 5
    """Seconds by which the receipt of a webhook may be ahead of this machine's clock."""
    max_open_h: PositiveFloat = 26
    """Hours without a report that a message may be open; more than until its expiry."""
    max_latency_s: PositiveFloat = 604_800
    """Largest plausible latency, in seconds."""
    max_channel: NonNegativeInt = 31
    """Largest plausible channel (SIM slot)."""
    every_s: PositiveFloat = 600
    """Seconds between two runs in `smspulse up`."""
    memory: str = "350MB"
    """Memory limit of DuckDB. It writes the rest to a temporary folder."""
