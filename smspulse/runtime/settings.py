"""Settings of the maintenance."""

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from core.settings import EnvironmentSettings


class MaintenanceSettings(EnvironmentSettings):
    """Environment: `SMSPULSE_UPKEEP_` and the field's name in capitals."""

    model_config = SettingsConfigDict(env_prefix="SMSPULSE_UPKEEP_")

    minutes: float = Field(60, ge=0)
    """Minutes between two runs; 0: never."""
