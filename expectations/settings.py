"""Settings of the checks."""

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class CheckSettings(BaseSettings):
    """Thresholds. Environment: `SMSPULSE_CHECK_` and the field's name in capitals."""

    model_config = SettingsConfigDict(env_prefix="SMSPULSE_CHECK_", frozen=True, extra="forbid")

    max_unreadable_share: float = Field(
        0.05, ge=0, le=1, description="Share of a source's recent webhooks that may be unreadable."
    )
    recent_h: float = Field(24, gt=0, description="Hours back from now that count as recent.")
    max_quiet_s: float = Field(3600, gt=0, description="Seconds without any webhook that pass without a remark.")
    max_waiting_s: float = Field(
        60, gt=0, description="Seconds that a status report may wait in `raw` before it shows in `messages`."
    )
    max_ahead_s: float = Field(
        5, ge=0, description="Seconds that a webhook's receipt may lie ahead of this machine's clock."
    )
