"""Settings of the receivers of alerts."""

import base64
from typing import Annotated, Any

from pydantic import AfterValidator, Field, SecretStr, ValidationError
from pydantic_settings import SettingsConfigDict

from core.settings import EnvironmentSettings
from core.urls import parse_base_url, parse_http_url
from smspulse.alerting.alert_state import CAUSE_WAIT_S
from smspulse.alerting.errors import AlertSettingsError

_PREFIX = "SMSPULSE_ALERTS_"


def decode_secret(secret: SecretStr) -> bytes:
    """Return the key of the webhook's signature; empty if there is no secret.

    Raises:
        ValueError: It is not in the format of Standard Webhooks.
    """
    text = secret.get_secret_value()
    msg = "it is not `whsec_` and base64: make one with `openssl rand -base64 32`"
    try:
        key = base64.b64decode(text.removeprefix("whsec_"), validate=True)
    except ValueError as error:
        raise ValueError(msg) from error
    if text and not key:
        raise ValueError(msg)
    return key


def _parse_alertmanagers(text: str) -> str:
    return ",".join(parse_base_url(url, assume_http=True) for url in text.split(",") if url.strip())


def _check_url(text: str) -> str:
    if text:
        parse_http_url(text)
    return text


def _check_secret(secret: SecretStr) -> SecretStr:
    decode_secret(secret)
    return secret


_OptionalUrl = Annotated[str, AfterValidator(_check_url)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]


class AlertSettings(EnvironmentSettings):
    """Environment: `SMSPULSE_ALERTS_` and the field's name in capitals."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX)

    alertmanager: Annotated[str, AfterValidator(_parse_alertmanagers)] = ""
    """URL of an Alertmanager, several of a cluster separated by commas; `HOST:PORT` is taken as `http://HOST:PORT`."""
    webhook: _OptionalUrl = ""
    """URL that is sent each alert that fires or is resolved."""
    webhook_secret: Annotated[SecretStr, AfterValidator(_check_secret)] = SecretStr("")
    """Secret of the webhook's signature, in the format of Standard Webhooks: `whsec_` and base64."""
    apprise: SecretStr = SecretStr("")
    """URLs of Apprise, for mail, chat and pagers, separated by spaces; needs the extra `apprise`."""
    group: str = Field("smspulse-alerts", min_length=1)
    """Kafka's consumer group: its committed offsets mark the alerts that were sent."""
    repeat_s: Seconds = 60
    """Seconds after which firing alerts are sent to Alertmanager again."""
    watch_s: Seconds = 60
    """Seconds between two evaluations of the rules outside the stream, such as silent devices."""
    cause_wait_s: float = Field(CAUSE_WAIT_S, ge=0, le=86_400)
    """Seconds that a source's alert waits for the alert of the phone that explains most of it."""
    page: _OptionalUrl = ""
    """URL of a page for people, linked from each alert."""
    runbooks: Annotated[str, AfterValidator(lambda text: text and parse_base_url(text))] = ""
    """URL of the folder of the runbooks, linked from each alert."""

    @property
    def alertmanager_urls(self) -> list[str]:
        """The URL of each Alertmanager."""
        return self.alertmanager.split(",") if self.alertmanager else []

    @property
    def apprise_urls(self) -> list[str]:
        """The URL of each service of Apprise."""
        return self.apprise.get_secret_value().split()


def read_alert_settings() -> AlertSettings:
    """Return the settings of the environment.

    Raises:
        AlertSettingsError: One of them cannot be used.
    """
    try:
        return AlertSettings()
    except ValidationError as error:
        problem = "; ".join(map(_describe_setting_error, error.errors()))
    # Raised outside the handler, without Pydantic's error as its cause. The text of that error holds the rejected
    # value, which may be a secret. The garbage collector cannot see the errors in it, so a frame that keeps it is never
    # freed.
    raise AlertSettingsError(problem)


def _describe_setting_error(error: Any) -> str:
    name = f"{_PREFIX}{'.'.join(map(str, error['loc']))}".upper()
    cause = error.get("ctx", {}).get("error")
    return f"{name} cannot be used: {cause or error['msg']}"
