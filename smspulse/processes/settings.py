"""Settings of every process. The text below each field is its description."""

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from core.settings import EnvironmentSettings
from smspulse.processes.children import LOOPBACK


class MetricsSettings(EnvironmentSettings):
    """Environment: `SMSPULSE_METRICS_` and the field's name in capitals."""

    model_config = SettingsConfigDict(env_prefix="SMSPULSE_METRICS_")

    host: str = LOOPBACK
    """Where stream, lander and `alerts send` answer `/metrics`."""
    port: int = Field(0, ge=0, le=65535)
    """Its port; 0: any free one. Under `smspulse up` the lander's; alerts and workers have the next ones."""


class DataFolderSettings(EnvironmentSettings):
    """The data folder. Environment: `SMSPULSE_` and the field's name in capitals."""

    model_config = SettingsConfigDict(env_prefix="SMSPULSE_")

    read_group: str = ""
    """Group that may read the data folder, in addition to its owner. The folder keeps it: without this setting a folder
    does not change, and a new one is for its user alone."""
