"""Clients of the receivers of alerts, with servers on real sockets."""

import asyncio
import base64
import hashlib
import hmac
import json
import sys
from collections.abc import AsyncIterator, Callable

import aiohttp
import pytest
from aiohttp import web
from alertmanager import Receiver, receiving, unsilenced
from click.testing import CliRunner
from decoded_alerts import decoded_alert
from warehouse_records import NOON, at

from core.alerts import Alert
from smspulse.alerting.alert_state import AlertState
from smspulse.alerting.alert_topic import AlertFeed
from smspulse.alerting.delivery_state import AlertmanagerState, WebhookState
from smspulse.alerting.dispatcher import send_to_alertmanager, send_to_webhook
from smspulse.alerting.errors import ReceiverError, ReceiverGoneError
from smspulse.alerting.receivers import AlertmanagerClient, AlertWebhookClient, AppriseClient, try_receivers
from smspulse.alerting.settings import AlertSettings
from smspulse.cli.main import cli

SECRET = base64.b64encode(b"a secret of the receiver's").decode()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as made:
        yield made


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as made:
        yield made


def feed_of(*alerts: Alert) -> AlertFeed:
    """Return a feed with existing alerts."""
    feed = AlertFeed(AlertState(), {0: len(alerts)})
    for each in alerts:
        feed.alert_state.update_alert(each)
    return feed


def sending(
    feed: AlertFeed,
    session: aiohttp.ClientSession,
    settings: AlertSettings,
    silenced: Callable[[float], frozenset[str]] = unsilenced,
) -> asyncio.Task[None]:
    """Run the delivery to the Alertmanager of the settings in a task."""
    (url,) = settings.alertmanager_urls
    state = AlertmanagerState(settings.repeat_s, feed.alert_state, silenced)
    return asyncio.create_task(send_to_alertmanager(feed, AlertmanagerClient(session, settings, url), state))


async def test_alertmanager_receives_firing_alerts_repeatedly_and_resolved_ones(
    receiver: Receiver, session: aiohttp.ClientSession
) -> None:
    settings = AlertSettings(alertmanager=receiver.url, repeat_s=0.2, runbooks="https://docs.example.org/runbooks/")
    feed = feed_of(decoded_alert())
    running = sending(feed, session, settings)
    first, again = await receiver.next(), await receiver.next()
    assert first[0]["labels"] == again[0]["labels"] == {
        "alertname": "SmsFailureRatio", "severity": "warning", "scope": "channel", "source": "acme", "device": "1",
        "channel": "2", "alert_id": "failure_ratio:acme:1:2",
    }  # fmt: skip
    assert first[0]["startsAt"] == "2026-11-24T12:00:00.000Z"
    assert first[0]["endsAt"] < again[0]["endsAt"]
    assert first[0]["annotations"]["failed"] == "6 of 8 messages"
    assert first[0]["annotations"]["errors"] == "6 of status 10 (not sent: no service)"
    assert first[0]["annotations"]["runbook_url"] == "https://docs.example.org/runbooks/failure_ratio.md"
    feed.update_alerts([decoded_alert("resolved", seconds=60)])
    while (last := await receiver.next())[0]["endsAt"] != "2026-11-24T12:01:00.000Z":
        pass
    assert last[0]["labels"] == first[0]["labels"]
    running.cancel()


async def test_an_alertmanager_that_was_down_receives_alerts_resolved_meanwhile(
    receiver: Receiver, session: aiohttp.ClientSession
) -> None:
    settings = AlertSettings(alertmanager=receiver.url, repeat_s=0.1)
    receiver.answers = [web.Response(status=503), web.Response(status=503)]
    feed = feed_of(decoded_alert())
    running = sending(feed, session, settings)
    await receiver.next()
    feed.update_alerts([decoded_alert("resolved", seconds=60)])
    await receiver.next()
    assert (await receiver.next())[0]["endsAt"] == "2026-11-24T12:01:00.000Z"
    running.cancel()


async def test_the_webhook_is_signed_and_the_same_change_has_the_same_id(
    receiver: Receiver, session: aiohttp.ClientSession
) -> None:
    settings = AlertSettings(webhook=f"{receiver.url}/hook", webhook_secret=f"whsec_{SECRET}")  # type: ignore[arg-type]
    client = AlertWebhookClient(session, settings)
    await client.send(decoded_alert())
    await client.send(decoded_alert())
    (path, headers, body), (_, again, _) = await receiver.requests.get(), await receiver.requests.get()
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    digest = hmac.new(base64.b64decode(SECRET), signed, hashlib.sha256).digest()
    assert headers["webhook-signature"] == f"v1,{base64.b64encode(digest).decode()}"
    assert headers["webhook-id"] == again["webhook-id"]
    assert path == "/hook"
    assert json.loads(body)["type"] == "alert.firing"


@pytest.mark.parametrize(
    ("status", "error"), [(500, ReceiverError), (301, ReceiverError), (429, ReceiverError), (410, ReceiverGoneError)]
)
async def test_nothing_but_2xx_is_success(
    receiver: Receiver, session: aiohttp.ClientSession, status: int, error: type[ReceiverError]
) -> None:
    receiver.answers = [web.Response(status=status, headers={"Retry-After": "7", "Location": "/"})]
    with pytest.raises(error, match=f"answered {status}") as caught:
        await AlertWebhookClient(session, AlertSettings(webhook=f"{receiver.url}/secret-token")).send(decoded_alert())
    assert caught.type is error
    assert "secret-token" not in str(caught.value)
    assert error is ReceiverGoneError or caught.value.retry_after_s == 7


async def test_the_webhook_receives_each_change_once_and_in_order_before_it_is_committed(
    receiver: Receiver, session: aiohttp.ClientSession
) -> None:
    feed, commits = feed_of(), []
    client = AlertWebhookClient(session, AlertSettings(webhook=receiver.url))
    state = WebhookState(feed.alert_state, unsilenced)
    running = asyncio.create_task(send_to_webhook(feed, client, state, lambda offsets: commits.append(offsets) or True))
    receiver.answers = [web.Response(status=500)]
    for each in (decoded_alert("pending"), decoded_alert(), decoded_alert()):
        feed.update_alerts([each])
    assert (await receiver.next())["type"] == "alert.firing"  # it is refused
    feed.update_alerts([decoded_alert("resolved", seconds=60)])
    feed.offsets = {0: 4}
    assert [(await receiver.next())["type"] for _ in range(2)] == ["alert.firing", "alert.resolved"]
    feed.update_alerts([decoded_alert(seconds=99, fired_at=at(99))])
    feed.offsets = {0: 5}
    assert (await receiver.next())["data"]["fired_at"] == "2026-11-24T12:01:39.000Z"
    while commits[-1:] != [{0: 5}]:  # noqa: ASYNC110 - nothing says when
        await asyncio.sleep(0.01)
    assert commits == sorted(commits, key=lambda offsets: offsets[0])
    running.cancel()


async def test_a_webhook_that_answers_410_receives_no_further_requests(
    receiver: Receiver, session: aiohttp.ClientSession
) -> None:
    receiver.answers = [web.Response(status=410)]
    feed, commits = feed_of(decoded_alert()), []
    client, state = (
        AlertWebhookClient(session, AlertSettings(webhook=receiver.url)),
        WebhookState(feed.alert_state, unsilenced),
    )
    await asyncio.wait_for(send_to_webhook(feed, client, state, lambda offsets: commits.append(offsets) or True), 10)
    assert commits == []


async def test_apprise_notifies_of_an_alert_and_its_end_and_reports_failures(receiver: Receiver) -> None:
    client = AppriseClient(AlertSettings(apprise=receiver.url.replace("http", "json") + "/secret-token"), 1)  # type: ignore[arg-type]
    await client.send(decoded_alert())
    await client.send(decoded_alert("resolved", seconds=60))
    fired, ended = await receiver.next(), await receiver.next()
    assert fired["title"] == "[firing] source acme, device 1, channel 2: 75% of messages fail, 3.0% is usual"
    assert "failed: 6 of 8 messages" in fired["message"]
    assert (fired["type"], ended["type"]) == ("warning", "success")
    receiver.answers = [web.Response(status=500)]
    with pytest.raises(ReceiverError, match="did not accept an alert") as caught:
        await client.send(decoded_alert())
    assert "secret-token" not in str(caught.value)
    with pytest.raises(ReceiverError, match="URL 2 of SMSPULSE_ALERTS_APPRISE"):
        AppriseClient(AlertSettings(apprise=f"{receiver.url.replace('http', 'json')} nothing"), 2)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["text", "html"])
async def test_notifications_have_literal_texts(receiver: Receiver, session: aiohttp.ClientSession, form: str) -> None:
    hostile = decoded_alert(what="<b>x</b>\x1b[2J\n[red]y[/red]", errors={"<i>\x9b": 2})
    client = AppriseClient(AlertSettings(apprise=receiver.url.replace("http", "json") + f"/?format={form}"), 0)  # type: ignore[arg-type]
    await client.send(hostile)
    sent = await receiver.next()
    assert ("<i>" if form == "text" else "&lt;i&gt;") in sent["message"]
    settings = AlertSettings(webhook=receiver.url, alertmanager=receiver.url)
    await AlertWebhookClient(session, settings).send(hostile)
    assert (await receiver.next())["data"]["summary"].endswith(r"<b>x</b>\x1b[2J\n[red]y[/red]")
    await AlertmanagerClient(session, settings, receiver.url).send([hostile], NOON / 1000)
    annotations = (await receiver.next())[0]["annotations"]
    assert annotations["errors"] == r"2 of <i>\x9b"
    assert not any(mark in json.dumps(sent, ensure_ascii=False) for mark in ("\x1b", "\x9b"))


def test_without_apprise_its_setting_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "apprise", None)
    with pytest.raises(ReceiverError, match=r"smspulse\[apprise\]"):
        AppriseClient(AlertSettings(apprise="json://localhost"), 1)  # type: ignore[arg-type]


async def test_an_alertmanager_does_not_receive_silenced_alerts(
    receiver: Receiver, session: aiohttp.ClientSession
) -> None:
    settings = AlertSettings(alertmanager=receiver.url, repeat_s=0.1)
    feed, silenced = (
        feed_of(decoded_alert(), decoded_alert(id="failure_ratio:acme:3:1", device_id=3)),
        {decoded_alert().id},
    )
    running = sending(feed, session, settings, lambda _: frozenset(silenced))
    assert [each["labels"]["device"] for each in await receiver.next()] == ["3"]
    silenced.clear()
    while len(await receiver.next()) < 2:
        pass
    running.cancel()


async def test_each_receiver_can_be_tested(receiver: Receiver) -> None:
    apprise = receiver.url.replace("http", "json")
    settings = AlertSettings(alertmanager=receiver.url, webhook=receiver.url, apprise=apprise)  # type: ignore[arg-type]
    assert await try_receivers(settings, NOON / 1000) == []
    assert receiver.requests.qsize() == 6
    receiver.answers = [web.Response(status=400, text="bad") for _ in range(3)]
    assert await try_receivers(settings, NOON / 1000) == [
        f"{receiver.url} answered 400: bad",
        f"{receiver.url} answered 400: bad",
        "URL 1 of SMSPULSE_ALERTS_APPRISE did not accept an alert: see Apprise's line above",
    ]


def test_without_a_receiver_the_test_names_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SMSPULSE_ALERTS_ALERTMANAGER", raising=False)
    monkeypatch.delenv("SMSPULSE_ALERTS_WEBHOOK", raising=False)
    monkeypatch.delenv("SMSPULSE_ALERTS_APPRISE", raising=False)
    result = CliRunner().invoke(cli, ["alerts", "test"])
    assert "set SMSPULSE_ALERTS_ALERTMANAGER" in str(result.exception)
