"""Receivers of alerts: Alertmanager (API v2), a webhook (signed by Standard Webhooks 1.0), and services of Apprise."""

import asyncio
import base64
import hashlib
import hmac
import importlib
import time
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
import orjson

from core.alerts import FAILURE_RATIO, Alert, alert_id
from smspulse.alerting.alert_state import alert_evidence, alert_severity, alert_summary, format_rfc3339
from smspulse.alerting.errors import NoReceiverError, ReceiverError, ReceiverGoneError
from smspulse.alerting.settings import AlertSettings, decode_secret

# A receiver that takes longer is sent the alert again.
_TIMEOUT: Final = aiohttp.ClientTimeout(total=15)
# By Standard Webhooks, a receiver that answers 410 wants no further requests.
_HTTP_GONE: Final = 410
# Apprise's own types, by severity.
_NOTIFY_TYPES: Final = {"critical": "failure", "warning": "warning"}
# Alertmanager takes an alert as resolved after so many missed repetitions.
_MISSED_REPETITIONS: Final = 4


def alert_labels(alert: Alert) -> dict[str, str]:
    """Return the labels of an alert. They are its identity: they do not change while it fires."""
    found: dict[str, Any] = {
        "alertname": f"Sms{alert.kind.title().replace('_', '')}",
        "severity": alert_severity(alert),
        "scope": alert.scope,
        "source": alert.source,
        "device": alert.device_id,
        "channel": alert.channel_id,
        "alert_id": alert.id,
    }
    return {label: str(value) for label, value in found.items() if value is not None}


def alert_links(alert: Alert, settings: AlertSettings) -> dict[str, str]:
    """Return the links to the runbook and to the page that are set."""
    runbook = f"{settings.runbooks}/{alert.kind}.md" if settings.runbooks else ""
    return {link: url for link, url in (("runbook_url", runbook), ("page_url", settings.page)) if url}


class AlertmanagerClient:
    """Client of one Alertmanager.

    Args:
        session: For requests.
        settings: Links, and the interval of repetitions.
        url: Base URL of the Alertmanager.
    """

    def __init__(self, session: aiohttp.ClientSession, settings: AlertSettings, url: str) -> None:
        self._session, self._settings, self._url = session, settings, url

    async def send(self, alerts: Sequence[Alert], now_s: float) -> None:
        """Send the state of alerts at a time in seconds since 1970.

        Raises:
            ReceiverError: Alertmanager did not accept it.
        """
        until = int((now_s + _MISSED_REPETITIONS * self._settings.repeat_s) * 1000)
        body = orjson.dumps([self._build_entry(alert, until) for alert in alerts])
        await _post_alerts(self._session, f"{self._url}/api/v2/alerts", body, {})

    def _build_entry(self, alert: Alert, until: int) -> dict[str, Any]:
        ends_at = until if alert.phase == "firing" else alert.resolved_at or alert.changed_at
        began_at = alert.fired_at or alert.changed_at
        lines = alert_evidence(alert) | alert_links(alert, self._settings)
        entry = {
            "labels": alert_labels(alert),
            "annotations": {"summary": alert_summary(alert)} | lines,
            "startsAt": format_rfc3339(began_at),
            # Messages end out of order. Alertmanager refuses the whole request if one alert ends before it began.
            "endsAt": format_rfc3339(max(ends_at, began_at)),
        }
        return entry | ({"generatorURL": self._settings.page} if self._settings.page else {})


class AlertWebhookClient:
    """Client of the webhook. It sends one JSON object for each alert that fires, and one for its resolution.

    Args:
        session: For requests.
        settings: URL and secret of the webhook.
    """

    def __init__(self, session: aiohttp.ClientSession, settings: AlertSettings) -> None:
        self._session, self._settings = session, settings
        self._secret = decode_secret(settings.webhook_secret)

    async def send(self, alert: Alert) -> None:
        """Send a change of an alert. The same change has the same `webhook-id`, however often it is sent.

        Raises:
            ReceiverGoneError: The webhook answered 410.
            ReceiverError: The webhook did not accept it.
        """
        body = self._build_body(alert)
        id_, sent_at = f"{alert.id}/{alert.fired_at}/{alert.phase}", str(int(time.time()))
        headers = {"webhook-id": id_, "webhook-timestamp": sent_at}
        if self._secret:
            signed = hmac.new(self._secret, f"{id_}.{sent_at}.".encode() + body, hashlib.sha256).digest()
            headers["webhook-signature"] = f"v1,{base64.b64encode(signed).decode()}"
        await _post_alerts(self._session, self._settings.webhook, body, headers)

    def _build_body(self, alert: Alert) -> bytes:
        data = {
            "alert_id": alert.id,
            "labels": alert_labels(alert),
            "summary": alert_summary(alert),
            "evidence": alert_evidence(alert),
            "links": alert_links(alert, self._settings),
            "fired_at": format_rfc3339(alert.fired_at or alert.changed_at),
            "resolved_at": format_rfc3339(alert.resolved_at) if alert.resolved_at else None,
        }
        timestamp = format_rfc3339(alert.changed_at)
        return orjson.dumps({"type": f"alert.{alert.phase}", "timestamp": timestamp, "data": data})


class AppriseClient:
    """Client of one service of Apprise. It sends a notification for each alert that fires, and one for its resolution.

    Args:
        settings: Links, and the URLs of all services.
        number: Position of the URL, from 1 on.

    Raises:
        ReceiverError: Apprise is not installed, or does not support the URL.
    """

    def __init__(self, settings: AlertSettings, number: int) -> None:
        try:
            apprise = importlib.import_module("apprise")
        except ImportError as error:
            msg = "SMSPULSE_ALERTS_APPRISE needs the extra `apprise`: pip install 'smspulse[apprise]'"
            raise ReceiverError(msg) from error
        self._settings, self._number, self._sender = settings, number, apprise.Apprise()
        if not self._sender.add(settings.apprise_urls[number - 1]):
            msg = f"URL {number} of SMSPULSE_ALERTS_APPRISE is not known to Apprise: see its list of services"
            raise ReceiverError(msg)

    async def send(self, alert: Alert) -> None:
        """Send a change of an alert.

        Raises:
            ReceiverError: The service did not accept it.
        """
        lines = alert_evidence(alert) | alert_links(alert, self._settings)
        taken = await asyncio.to_thread(
            self._sender.notify,
            title=f"[{alert.phase}] {alert_summary(alert)}",
            # Apprise escapes text for a service that shows HTML.
            body_format="text",
            body="\n".join(f"{label}: {text}" for label, text in lines.items()),
            notify_type="success" if alert.phase == "resolved" else _NOTIFY_TYPES[alert_severity(alert)],
        )
        if not taken:
            msg = f"URL {self._number} of SMSPULSE_ALERTS_APPRISE did not accept an alert: see Apprise's line above"
            raise ReceiverError(msg)


ReceiverClient = AlertmanagerClient | AlertWebhookClient | AppriseClient


def build_receivers(settings: AlertSettings, session: aiohttp.ClientSession) -> dict[str, ReceiverClient]:
    """Return the client of each receiver in the settings, by the suffix of its consumer group.

    Offsets are committed for a group, so a service of Apprise keeps its name when others are added or removed.

    Raises:
        ReceiverError: Apprise does not support one of its URLs, or is not installed.
    """
    clients: dict[str, ReceiverClient] = {
        f"alertmanager-{number}": AlertmanagerClient(session, settings, url)
        for number, url in enumerate(settings.alertmanager_urls, 1)
    }
    if settings.webhook:
        clients["webhook"] = AlertWebhookClient(session, settings)
    for number, url in enumerate(settings.apprise_urls, 1):
        # The URL holds secrets, and a group's name is visible to all users of Kafka. 48 bits distinguish a few URLs.
        clients[f"apprise-{hashlib.sha256(url.encode()).hexdigest()[:12]}"] = AppriseClient(settings, number)
    return clients


def check_receivers(settings: AlertSettings) -> None:
    """Check the settings of every receiver. Sends nothing.

    Raises:
        ReceiverError: Apprise does not support one of its URLs, or is not installed.
    """
    for number in range(1, len(settings.apprise_urls) + 1):
        AppriseClient(settings, number)


async def try_receivers(settings: AlertSettings, now_s: float) -> list[str]:
    """Send a test alert to each receiver, and then its resolution; return the errors.

    Args:
        settings: The receivers.
        now_s: Seconds since 1970.

    Raises:
        NoReceiverError: None is set.
    """

    async def try_receiver(client: ReceiverClient) -> None:
        for alert in _build_test_alerts(int(now_s * 1000)):
            await (client.send([alert], now_s) if isinstance(client, AlertmanagerClient) else client.send(alert))

    async with aiohttp.ClientSession() as session:
        clients = build_receivers(settings, session).values()
        if not clients:
            msg = "no receiver of alerts is set: set SMSPULSE_ALERTS_ALERTMANAGER, _WEBHOOK or _APPRISE"
            raise NoReceiverError(msg)
        results = await asyncio.gather(*map(try_receiver, clients), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, ReceiverError):
            raise result
    return [str(result) for result in results if result is not None]


def _build_test_alerts(at: int) -> tuple[Alert, Alert]:
    """Return a test alert that fires at a time in milliseconds, and its resolution."""
    # A device 0 of a source `test` exists nowhere, so the test neither ends nor hides a real alert.
    fields: dict[str, Any] = {
        "id": alert_id(FAILURE_RATIO, "test", 0, 0), "kind": FAILURE_RATIO, "scope": "channel", "source": "test",
        "device_id": 0, "channel_id": 0, "changed_at": at, "since": at, "fired_at": at, "count": 5, "failures": 5,
        "baseline": 0.03, "known": 1000, "bound": 0.04, "errors": {"9": 5}, "share": 0.0, "budget_days": 30.0,
    }  # fmt: skip
    return Alert(**fields, phase="firing"), Alert(**fields, phase="resolved", resolved_at=at)


async def _post_alerts(session: aiohttp.ClientSession, url: str, body: bytes, headers: dict[str, str]) -> None:
    parts = urlsplit(url)
    # User, path and query may be secret.
    receiver = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    headers = {"Content-Type": "application/json"} | headers
    try:
        async with session.post(url, data=body, headers=headers, timeout=_TIMEOUT, allow_redirects=False) as answer:
            status, after = answer.status, answer.headers.get("Retry-After", "")
            # A proxy answers with a whole page.
            detail = (await answer.text(errors="replace"))[:200]
    except (aiohttp.ClientError, TimeoutError) as error:
        msg = f"{receiver} cannot be reached: {type(error).__name__}"
        raise ReceiverError(msg) from error
    msg = f"{receiver} answered {status}: {' '.join(detail.split())}"
    if status == _HTTP_GONE:
        raise ReceiverGoneError(msg)
    if not 200 <= status < 300:  # noqa: PLR2004 - success, as HTTP has it
        raise ReceiverError(msg, float(after) if after.isdecimal() else 0.0)
