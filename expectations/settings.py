"""Settings of the checks."""

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class CheckSettings(BaseSettings):
    """Thresholds. Environment: `SMSPULSE_CHECK_` and the field's name in capitals."""

    model_config = SettingsConfigDict(env_prefix="SMSPULSE_CHECK_", frozen=True, extra="forbid", allow_inf_nan=False)

    recent_h: float = Field(24, gt=0, description="Hours back from now that count as recent.")
    max_unreadable_share: float = Field(
        0.05, ge=0, le=1, description="Share of a source's recent webhooks that may be unreadable."
    )
    max_flawed_share: float = Field(
        0.05, ge=0, le=1, description="Share of a source's recent webhooks that may have a field that cannot be read."
    )
    max_unknown_share: float = Field(
        0.05, ge=0, le=1, description="Share of a source's recent status reports that may be of undocumented statuses."
    )
    max_duplicate_share: float = Field(
        0.2, ge=0, le=1, description="Share of a source's recent status reports that may repeat another to the letter."
    )
    max_early_share: float = Field(
        0.01, ge=0, le=1, description="Share of a source's recent reports whose `senttime` may be after their receipt."
    )
    max_contradicted_share: float = Field(
        0.1, ge=0, le=1, description="Share of a source's recent messages whose ends may contradict each other."
    )
    max_stuck_share: float = Field(
        0.5, ge=0, le=1, description="Share of a device's recent messages that may be open an hour after their start."
    )
    min_volume: float = Field(
        0.5, ge=0, description="Lowest volume of an hour, relative to the same hour of the last four weeks."
    )
    max_volume: float = Field(3, ge=1, description="Highest volume of an hour, likewise.")
    min_expected: float = Field(
        50, ge=1, description="Messages that an hour needs in those weeks before its volume is judged."
    )
    max_unanswered_share: float = Field(
        0.01, ge=0, le=1, description="Landed webhooks without an answer, relative to those with one."
    )
    max_quiet_s: float = Field(3600, gt=0, description="Seconds without any webhook that are always accepted.")
    max_waiting_s: float = Field(60, gt=0, description="Seconds until a status report in `raw` must be in `messages`.")
    max_ahead_s: float = Field(
        5, ge=0, description="Seconds by which the receipt of a webhook may be ahead of this machine's clock."
    )
    max_open_h: float = Field(
        26, gt=0, description="Hours without a report that a message may be open; more than until its expiry."
    )
    max_latency_s: float = Field(604_800, gt=0, description="Largest plausible latency, in seconds.")
    max_channel: int = Field(31, ge=0, description="Largest plausible channel (SIM slot).")
    every_s: float = Field(600, gt=0, description="Seconds between two runs in `smspulse up`.")
    memory: str = Field("350MB", description="Memory limit of DuckDB. It writes the rest to a temporary folder.")
