"""The ways out: Alertmanager's API v2, a webhook signed as Standard Webhooks 1.0 wants it, and what Apprise knows."""

import asyncio
import base64
import hashlib
import hmac
import importlib
import time
from collections.abc import Callable, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
import orjson

from core.alerts import Alert
from core.errors import SmspulseError
from smspulse.alerting.alert_state import alert_evidence, alert_name, alert_severity, alert_summary, format_rfc3339
from smspulse.alerting.settings import AlertSettings, decode_secret
from smspulse.processes.terminal import escape_to_line

_TIMEOUT: Final = aiohttp.ClientTimeout(total=15)
_HTTP_GONE: Final = 410
_NOTIFY_TYPES: Final = {"critical": "failure", "warning": "warning"}
_MISSED_REPETITIONS: Final = 4  # repetitions that Alertmanager misses before it takes an alert as resolved


class ReceiverError(SmspulseError):
    """A way out did not take what it was sent. The text says which, and why."""

    def __init__(self, text: str, retry_after_s: float = 0.0) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s


class ReceiverGoneError(ReceiverError):
    """The receiver wants nothing any more: 410."""


def alert_labels(alert: Alert) -> dict[str, str]:
    """Return the labels of an alert, which are its identity: the same as long as it is on."""
    found: dict[str, Any] = {
        "alertname": alert_name(alert.kind),
        "severity": alert_severity(alert),
        "scope": alert.scope,
        "source": alert.source,
        "device": alert.device_id,
        "channel": alert.channel_id,
        "alert_id": alert.id,
    }
    return {label: str(value) for label, value in found.items() if value is not None}


def alert_links(alert: Alert, settings: AlertSettings) -> dict[str, str]:
    """Return the links to the runbook and to the page, as far as they are set."""
    runbook = f"{settings.runbooks}/{alert.kind}.md" if settings.runbooks else ""
    return {link: url for link, url in (("runbook_url", runbook), ("page_url", settings.page)) if url}


class AlertmanagerClient:
    """One Alertmanager: told again and again what fires, and once what is resolved.

    Args:
        session: For requests.
        settings: Links, and how often it is told.
        url: Where it is.
    """

    def __init__(self, session: aiohttp.ClientSession, settings: AlertSettings, url: str) -> None:
        self._session, self._settings, self._url = session, settings, url

    async def send(self, firing: Sequence[Alert], resolved: Sequence[Alert], now: float) -> None:
        """Send how alerts stand at a time in seconds since 1970.

        Raises:
            WayOutError: It did not take it.
        """
        until = int((now + _MISSED_REPETITIONS * self._settings.repeat_s) * 1000)
        body = orjson.dumps(
            [self._build_entry(alert, until) for alert in firing]
            + [self._build_entry(alert, alert.resolved_at or alert.changed_at) for alert in resolved]
        )
        await _post_alerts(self._session, f"{self._url}/api/v2/alerts", body, {})

    def _build_entry(self, alert: Alert, ends_at: int) -> dict[str, Any]:
        annotations = (
            {"summary": _printable_summary(alert)} | _printable_evidence(alert) | alert_links(alert, self._settings)
        )
        began_at = alert.fired_at or alert.changed_at
        entry = {
            "labels": alert_labels(alert),
            "annotations": annotations,
            "startsAt": format_rfc3339(began_at),
            # Messages end out of order. It takes no alert that ends before it began, and says so of all it is sent.
            "endsAt": format_rfc3339(max(ends_at, began_at)),
        }
        return entry | ({"generatorURL": self._settings.page} if self._settings.page else {})


class AlertWebhookClient:
    """Sent one JSON object for each alert that fires, and one when it is resolved.

    Args:
        session: For requests.
        settings: Where it is, and its secret.
        clock: Returns the seconds since 1970.
    """

    def __init__(
        self, session: aiohttp.ClientSession, settings: AlertSettings, clock: Callable[[], float] = time.time
    ) -> None:
        self._session, self._settings, self._clock = session, settings, clock
        self._secret = decode_secret(settings.webhook_secret)

    async def send(self, alert: Alert) -> None:
        """Send how an alert stands. The same change has the same `webhook-id`, however often it is sent.

        Raises:
            WayOutGone: It answered 410.
            WayOutError: It did not take it.
        """
        body = orjson.dumps(
            {
                "type": f"alert.{alert.phase}",
                "timestamp": format_rfc3339(alert.changed_at),
                "data": {
                    "alert_id": alert.id,
                    "labels": alert_labels(alert),
                    "summary": _printable_summary(alert),
                    "evidence": _printable_evidence(alert),
                    "links": alert_links(alert, self._settings),
                    "fired_at": format_rfc3339(alert.fired_at or alert.changed_at),
                    "resolved_at": format_rfc3339(alert.resolved_at) if alert.resolved_at else None,
                },
            }
        )
        id_, sent_at = f"{alert.id}/{alert.fired_at}/{alert.phase}", str(int(self._clock()))
        headers = {"webhook-id": id_, "webhook-timestamp": sent_at}
        if self._secret:
            signed = hmac.new(self._secret, f"{id_}.{sent_at}.".encode() + body, hashlib.sha256).digest()
            headers["webhook-signature"] = f"v1,{base64.b64encode(signed).decode()}"
        await _post_alerts(self._session, self._settings.webhook, body, headers)


class AppriseClient:
    """One service of Apprise: sent one notification for each alert that fires, and one when it is resolved.

    Args:
        settings: Links, and the URLs of all services.
        number: Which of the URLs, from 1 on.

    Raises:
        WayOutError: Apprise is not installed, or does not know the URL.
    """

    def __init__(self, settings: AlertSettings, number: int) -> None:
        try:
            apprise = importlib.import_module("apprise")
        except ImportError as error:
            msg = "SMSPULSE_ALERTS_APPRISE needs the extra `apprise`: pip install 'smspulse[apprise]'"
            raise ReceiverError(msg) from error
        self._settings, self._number, self._sender = settings, number, apprise.Apprise()
        if not self._sender.add(settings.apprise_urls[number - 1]):
            msg = f"URL {number} of SMSPULSE_ALERTS_APPRISE is none that Apprise knows: see its list of services"
            raise ReceiverError(msg)

    async def send(self, alert: Alert) -> None:
        """Send how an alert stands.

        Raises:
            WayOutError: The service did not take it.
        """
        lines = _printable_evidence(alert) | alert_links(alert, self._settings)
        taken = await asyncio.to_thread(
            self._sender.notify,
            title=f"[{alert.phase}] {_printable_summary(alert)}",
            body_format="text",  # a service that shows HTML gets it escaped
            body="\n".join(f"{label}: {text}" for label, text in lines.items()),
            notify_type="success" if alert.phase == "resolved" else _NOTIFY_TYPES[alert_severity(alert)],
        )
        if not taken:
            msg = f"URL {self._number} of SMSPULSE_ALERTS_APPRISE did not take an alert: its own line above says why"
            raise ReceiverError(msg)


def _printable_summary(alert: Alert) -> str:
    """Return the summary as one line without control characters: it can hold text from outside."""
    return escape_to_line(alert_summary(alert))


def _printable_evidence(alert: Alert) -> dict[str, str]:
    return {name: escape_to_line(text) for name, text in alert_evidence(alert).items()}


async def _post_alerts(session: aiohttp.ClientSession, url: str, body: bytes, headers: dict[str, str]) -> None:
    kind = {"Content-Type": "application/json"}
    try:
        async with session.post(
            url, data=body, headers=kind | headers, timeout=_TIMEOUT, allow_redirects=False
        ) as answer:
            status, after = answer.status, answer.headers.get("Retry-After", "")
            detail = (await answer.text(errors="replace"))[:200]
    except (aiohttp.ClientError, TimeoutError) as error:
        msg = f"{_url_origin(url)} cannot be reached: {type(error).__name__}"
        raise ReceiverError(msg) from error
    if 200 <= status < 300:  # noqa: PLR2004 - success, as HTTP has it
        return
    msg = f"{_url_origin(url)} answered {status}: {' '.join(detail.split())}"
    if status == _HTTP_GONE:
        raise ReceiverGoneError(msg)
    raise ReceiverError(msg, float(after) if after.isdecimal() else 0.0)


def _url_origin(url: str) -> str:
    """Return a URL without what may be secret in it."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
