"""Settings of the page."""

from typing import Final

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from core.settings import EnvironmentSettings
from ingest.settings import Networks

DEFAULT_MEMORY: Final = "100MB"


class PageSettings(EnvironmentSettings):
    """Environment: `SMSPULSE_PAGE_` and the field's name in capitals."""

    model_config = SettingsConfigDict(env_prefix="SMSPULSE_PAGE_")

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(8081, ge=0, le=65535)
    """Port; 0 is any free one."""
    password: SecretStr = SecretStr("")
    """Password of the page, with any user name; needed unless the address is loopback."""
    trusted_proxies: Networks = ()
    """Networks of proxies whose `X-Forwarded-For` names the client; that of others is ignored."""
    refresh_s: float = Field(5, gt=0)
    """Minimum of seconds between two refreshes from the warehouse."""
    memory: str = DEFAULT_MEMORY
    """Memory limit of DuckDB. It writes the rest to a temporary folder. More makes a page of many messages faster."""
