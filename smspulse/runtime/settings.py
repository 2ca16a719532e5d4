"""Settings of the maintenance."""

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class MaintenanceSettings(BaseSettings):
    """Environment: `SMSPULSE_UPKEEP_` and the field's name in capitals."""

    model_config = SettingsConfigDict(env_prefix="SMSPULSE_UPKEEP_", frozen=True, extra="forbid", allow_inf_nan=False)

    minutes: float = Field(60, ge=0, description="Minutes between two runs; 0: never.")
