"""Settings of the ways out of alerts."""

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class AlertSettings(BaseSettings):
    """Environment: `SMSPULSE_ALERTS_` and the field's name in capitals."""

    model_config = SettingsConfigDict(env_prefix="SMSPULSE_ALERTS_", frozen=True, extra="forbid", allow_inf_nan=False)

    alertmanager: str = Field("", description="URL of an Alertmanager, several of a cluster separated by commas.")
    webhook: str = Field("", description="URL that is sent each alert that fires or is resolved.")
    webhook_secret: SecretStr = Field(
        SecretStr(""), description="Of the webhook's signature, as Standard Webhooks write it: `whsec_` and base64."
    )
    apprise: SecretStr = Field(
        SecretStr(""),
        description="URLs of Apprise, for mail, chat and pagers, separated by spaces; needs the extra `apprise`.",
    )
    group: str = Field("smspulse-alerts", description="Kafka's consumer group: what it has committed is told.")
    repeat_s: float = Field(60, gt=0, description="Seconds after which Alertmanager is told again what fires.")
    watch_s: float = Field(
        60, gt=0, description="Seconds between two looks for what time or the warehouse tells, such as silent devices."
    )
    page: str = Field("", description="URL of a page that people look at, linked from each alert.")
    runbooks: str = Field("", description="URL of the folder of the runbooks, linked from each alert.")

    @property
    def alertmanagers(self) -> list[str]:
        """The Alertmanagers one by one."""
        return [url.strip().rstrip("/") for url in self.alertmanager.split(",") if url.strip()]

    @property
    def is_set(self) -> bool:
        """Whether there is a way out."""
        return bool(self.alertmanagers or self.webhook or self.apprise.get_secret_value())
