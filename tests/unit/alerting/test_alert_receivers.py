"""The ways out of alerts, with receivers on real sockets."""

import asyncio
import base64
import hashlib
import hmac
import json
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from alertmanager import Receiver, receiving, unsilenced
from click.testing import CliRunner
from landing import land_records
from rich.console import Console
from warehouse_records import NOON, alert, at, moment, version

from core.alerts import EVALUATED_KINDS, KINDS, Alert, decode_alert
from smspulse.alerting.alert_state import AlertState, alert_evidence, alert_summary
from smspulse.alerting.alert_topic import AlertFeed, AlertRecord
from smspulse.alerting.backtest import read_message_ends, run_backtest
from smspulse.alerting.delivery_state import AlertmanagerState, ClockReading, WebhookState
from smspulse.alerting.dispatcher import resume_delivery, send_to_alertmanager, send_to_webhook
from smspulse.alerting.errors import NoSuchAlertError, PictureError, ReceiverError, ReceiverGoneError, SilenceError
from smspulse.alerting.receivers import AlertmanagerClient, AlertWebhookClient, AppriseClient, try_receivers
from smspulse.alerting.rendering import draw_backtest, print_alert_evidence, print_alerts, print_backtest
from smspulse.alerting.settings import AlertSettings
from smspulse.alerting.silences import SilenceStore
from smspulse.cli.main import cli
from smspulse.runtime import status
from streams.failure_baseline import DetectorPolicy
from warehouse.reader import query

SECRET = base64.b64encode(b"a secret of the receiver's").decode()


def told(phase: str = "firing", **fields: Any) -> Alert:
    return decode_alert(alert(0, phase, **fields).value or b"")


def of_source(phase: str = "firing", **fields: Any) -> Alert:
    return told(phase, id="failure_ratio:acme:*:*", scope="source", device_id=None, channel_id=None, **fields)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as made:
        yield made


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as made:
        yield made


def feed_of(*alerts: Alert) -> AlertFeed:
    """Return a feed with a past."""
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
    """Send to the Alertmanager of settings, in a task."""
    (url,) = settings.alertmanager_urls
    state = AlertmanagerState(settings.repeat_s, feed.alert_state, silenced)
    return asyncio.create_task(send_to_alertmanager(feed, AlertmanagerClient(session, settings, url), state))


async def test_alertmanager_is_told_what_fires_again_and_again_and_what_is_resolved(
    receiver: Receiver, session: aiohttp.ClientSession
) -> None:
    settings = AlertSettings(alertmanager=receiver.url, repeat_s=0.2, runbooks="https://docs.example.org/runbooks/")
    feed = feed_of(told())
    telling = sending(feed, session, settings)
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
    feed.update_alerts([told("resolved", seconds=60)])
    while (last := await receiver.next())[0]["endsAt"] != "2026-11-24T12:01:00.000Z":
        pass
    assert last[0]["labels"] == first[0]["labels"]
    telling.cancel()


async def test_an_alertmanager_that_was_down_learns_what_was_resolved_meanwhile(
    receiver: Receiver, session: aiohttp.ClientSession
) -> None:
    settings = AlertSettings(alertmanager=receiver.url, repeat_s=0.1)
    receiver.answers = [web.Response(status=503), web.Response(status=503)]
    feed = feed_of(told())
    telling = sending(feed, session, settings)
    await receiver.next()
    feed.update_alerts([told("resolved", seconds=60)])
    await receiver.next()
    assert (await receiver.next())[0]["endsAt"] == "2026-11-24T12:01:00.000Z"
    telling.cancel()


async def test_the_webhook_is_signed_and_the_same_change_has_the_same_id(
    receiver: Receiver, session: aiohttp.ClientSession
) -> None:
    settings = AlertSettings(webhook=f"{receiver.url}/hook", webhook_secret=f"whsec_{SECRET}")  # type: ignore[arg-type]
    way = AlertWebhookClient(session, settings)
    await way.send(told())
    await way.send(told())
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
        await AlertWebhookClient(session, AlertSettings(webhook=f"{receiver.url}/secret-token")).send(told())
    assert caught.type is error
    assert "secret-token" not in str(caught.value)
    assert error is ReceiverGoneError or caught.value.retry_after_s == 7


async def test_the_webhook_is_told_each_change_once_in_order_and_then_it_is_committed(
    receiver: Receiver, session: aiohttp.ClientSession
) -> None:
    feed, commits = feed_of(), []
    way = AlertWebhookClient(session, AlertSettings(webhook=receiver.url))
    state = WebhookState(feed.alert_state, unsilenced)
    running = asyncio.create_task(send_to_webhook(feed, way, state, lambda offsets: commits.append(offsets) or True))
    receiver.answers = [web.Response(status=500)]
    for each in (told("pending"), told(), told()):
        feed.update_alerts([each])
    assert (await receiver.next())["type"] == "alert.firing"  # it is refused
    feed.update_alerts([told("resolved", seconds=60)])
    feed.offsets = {0: 4}
    assert [(await receiver.next())["type"] for _ in range(2)] == ["alert.firing", "alert.resolved"]
    feed.update_alerts([told(seconds=99, fired_at=at(99))])
    feed.offsets = {0: 5}
    assert (await receiver.next())["data"]["fired_at"] == "2026-11-24T12:01:39.000Z"
    while commits[-1:] != [{0: 5}]:  # noqa: ASYNC110 - nothing says when
        await asyncio.sleep(0.01)
    assert commits == sorted(commits, key=lambda offsets: offsets[0])
    running.cancel()


async def test_a_webhook_that_answers_410_is_sent_nothing_any_more(
    receiver: Receiver, session: aiohttp.ClientSession
) -> None:
    receiver.answers = [web.Response(status=410)]
    feed, commits = feed_of(told()), []
    way, state = (
        AlertWebhookClient(session, AlertSettings(webhook=receiver.url)),
        WebhookState(feed.alert_state, unsilenced),
    )
    await asyncio.wait_for(send_to_webhook(feed, way, state, lambda offsets: commits.append(offsets) or True), 10)
    assert commits == []


async def test_apprise_notifies_of_an_alert_and_of_its_end_and_says_when_it_could_not(receiver: Receiver) -> None:
    way = AppriseClient(AlertSettings(apprise=receiver.url.replace("http", "json") + "/secret-token"), 1)  # type: ignore[arg-type]
    await way.send(told())
    await way.send(told("resolved", seconds=60))
    fired, ended = await receiver.next(), await receiver.next()
    assert fired["title"] == "[firing] source acme, device 1, channel 2: 75% of messages fail, 3.0% is usual"
    assert "failed: 6 of 8 messages" in fired["message"]
    assert (fired["type"], ended["type"]) == ("warning", "success")
    receiver.answers = [web.Response(status=500)]
    with pytest.raises(ReceiverError, match="did not accept an alert") as caught:
        await way.send(told())
    assert "secret-token" not in str(caught.value)
    with pytest.raises(ReceiverError, match="URL 2 of SMSPULSE_ALERTS_APPRISE"):
        AppriseClient(AlertSettings(apprise=f"{receiver.url.replace('http', 'json')} nothing"), 2)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["text", "html"])
async def test_notifications_hold_texts_as_they_are(
    receiver: Receiver, session: aiohttp.ClientSession, form: str
) -> None:
    hostile = told(what="<b>x</b>\x1b[2J\n[red]y[/red]", errors={"<i>\x9b": 2})
    way = AppriseClient(AlertSettings(apprise=receiver.url.replace("http", "json") + f"/?format={form}"), 0)  # type: ignore[arg-type]
    await way.send(hostile)
    sent = await receiver.next()
    assert ("<i>" if form == "text" else "&lt;i&gt;") in sent["message"]
    settings = AlertSettings(webhook=receiver.url, alertmanager=receiver.url)
    await AlertWebhookClient(session, settings).send(hostile)
    assert (await receiver.next())["data"]["summary"].endswith(r"<b>x</b>\x1b[2J\n[red]y[/red]")
    await AlertmanagerClient(session, settings, receiver.url).send([hostile], NOON / 1000)
    annotations = (await receiver.next())[0]["annotations"]
    assert annotations["errors"] == r"2 of <i>\x9b"
    assert not any(mark in json.dumps(sent, ensure_ascii=False) for mark in ("\x1b", "\x9b"))


def test_without_apprise_its_setting_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "apprise", None)
    with pytest.raises(ReceiverError, match=r"smspulse\[apprise\]"):
        AppriseClient(AlertSettings(apprise="json://localhost"), 1)  # type: ignore[arg-type]


LATER = ClockReading(elapsed_s=0, now_s=NOON / 1000 + 3_600)


def following(*alerts: Alert, past: tuple[Alert, ...] = (), sent: bool = True) -> list[tuple[str, str]]:
    """Return what is told of alerts that come after others, which were sent unless this is the first start."""
    book, before = AlertState(), AlertState()
    for each in past:
        book.update_alert(each)
        before.update_alert(each)
    seen = WebhookState(book, unsilenced)
    if sent:
        seen.resume(before, [], LATER)
    found = []
    for each in ((), *alerts):
        if each:
            book.update_alert(each)
        for one in seen.next_alerts(LATER):
            found.append((one.id.partition(":")[2], one.phase))
            seen.mark_sent(one)
    return found


def test_what_was_told_is_not_told_again_after_a_restart() -> None:
    assert following(past=(told(),)) == []
    assert following(told("resolved", seconds=9), past=(told(),)) == [("acme:1:2", "resolved")]


def test_at_the_first_start_what_fires_is_told_and_what_was_resolved_is_not() -> None:
    past = (told(), told("resolved", id="failure_ratio:acme:3:1"))
    assert following(past=past, sent=False) == [("acme:1:2", "firing")]


def test_the_end_of_an_alert_whose_beginning_was_compacted_away_is_told() -> None:
    assert following(told("resolved", seconds=9)) == [("acme:1:2", "resolved")]


def test_what_was_pending_and_subsided_is_told_to_nobody() -> None:
    assert following(told("pending"), told("resolved", fired_at=None)) == []


def test_a_source_inhibits_its_devices_until_it_is_well() -> None:
    assert following(of_source(), told(), of_source("resolved", seconds=9)) == [
        ("acme:*:*", "firing"),
        ("acme:1:2", "firing"),
        ("acme:*:*", "resolved"),
    ]
    assert following(of_source(), told(source="other")) == [("acme:*:*", "firing"), ("acme:1:2", "firing")]


def test_a_device_inhibits_its_channels_and_no_others() -> None:
    book = AlertState()
    book.update_alert(told(id="failure_ratio:acme:1:*", scope="device", channel_id=None))
    assert book.is_inhibited(told(), at(0))
    assert not book.is_inhibited(told(device_id=3), at(0))
    assert not book.is_inhibited(told(kind="not_permitted"), at(0))


def test_what_is_silenced_is_told_when_its_silence_ends_and_what_was_told_is_resolved() -> None:
    silenced, book = {told().id}, AlertState()
    seen = WebhookState(book, lambda _: frozenset(silenced))
    book.update_alert(told())
    assert seen.next_alerts(LATER) == []
    silenced.clear()
    assert [each.phase for each in seen.next_alerts(LATER)] == ["firing"]
    seen.mark_sent(told())
    silenced.add(told().id)
    assert seen.next_alerts(LATER) == []
    book.update_alert(told("resolved", seconds=60))
    assert [each.phase for each in seen.next_alerts(LATER)] == ["resolved"]


def test_what_was_silenced_at_a_restart_is_told_when_its_silence_ends() -> None:
    silenced, book = {told().id}, AlertState()
    book.update_alert(told())
    seen = WebhookState(book, lambda _: frozenset(silenced))
    seen.resume(book, [], LATER)
    silenced.clear()
    assert [each.phase for each in seen.next_alerts(LATER)] == ["firing"]


def test_what_changed_behind_the_committed_offsets_is_told_after_a_restart() -> None:
    unknown = told("resolved", id="failure_ratio:acme:3:1", device_id=3, seconds=70)
    records = [AlertRecord(0, 0, told()), AlertRecord(0, 1, told("resolved", seconds=60)), AlertRecord(1, 7, unknown)]
    book = AlertState()
    for each in records:
        book.update_alert(each.alert)
    for committed, expected in (
        ({0: 1}, ["acme:1:2", "acme:3:1"]),
        ({0: 2, 1: 7}, ["acme:3:1"]),
        ({0: 2, 1: 8}, []),
        ({}, []),
    ):
        seen = WebhookState(book, unsilenced)
        resume_delivery(seen, AlertState(), records, committed)
        found = seen.next_alerts(LATER)
        assert {each.phase for each in found} <= {"resolved"}
        assert [each.id.partition(":")[2] for each in found] == expected, committed


async def test_an_alertmanager_is_not_told_what_is_silenced(receiver: Receiver, session: aiohttp.ClientSession) -> None:
    settings = AlertSettings(alertmanager=receiver.url, repeat_s=0.1)
    feed, silenced = feed_of(told(), told(id="failure_ratio:acme:3:1", device_id=3)), {told().id}
    telling = sending(feed, session, settings, lambda _: frozenset(silenced))
    assert [each["labels"]["device"] for each in await receiver.next()] == ["3"]
    silenced.clear()
    while len(await receiver.next()) < 2:
        pass
    telling.cancel()


def test_a_silence_lasts_as_long_as_it_was_set_for_and_can_be_lifted(tmp_path: Path) -> None:
    silences, before = SilenceStore(tmp_path), time.time()
    silences.set_silence("a:b:1:2", 60)
    silences.set_silence("a:b:3:*", 600)
    after = time.time()
    active = SilenceStore(tmp_path).active_silences(before + 59)
    assert list(active) == ["a:b:1:2", "a:b:3:*"]
    assert before + 60 <= active["a:b:1:2"] <= after + 60
    assert silences.silenced_ids(after + 60) == {"a:b:3:*"}
    silences.set_silence("a:b:3:*", 0)
    assert silences.silenced_ids(before) == {"a:b:1:2"}


def test_silences_that_cannot_be_read_silence_nothing_and_say_what_to_do(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "silences.json").write_text("{")
    assert SilenceStore(tmp_path).silenced_ids(1_000) == frozenset()
    assert "remove it, and set the silences again; until then all alerts are sent" in caplog.text
    with pytest.raises(SilenceError, match="remove it"):
        SilenceStore(tmp_path).set_silence("a:b:1:2", 60)


def test_the_command_silences_lists_and_lifts_and_a_silenced_alert_is_still_listed(data: Path) -> None:
    def run(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(cli, ["alerts", *arguments, "--data", str(data)])
        return result.exit_code, result.output

    id_ = "failure_ratio:acme:3:1"
    code, text = run("silence", id_, "--for", "2h")
    assert (code, f"{id_} until 2" in text) == (0, True)
    assert "silenced" in run("list")[1]
    assert id_ in run("silence")[1]
    assert run("silence", id_, "--lift") == (0, "no alert is silenced\n")
    assert "silenced" not in run("list")[1]
    assert run("silence", id_)[0] == run("silence", "--for", "2h")[0] == run("silence", id_, "--for", "2 h")[0] == 2


def test_a_summary_is_one_line_without_numbers_of_phones() -> None:
    assert alert_summary(told()) == "source acme, device 1, channel 2: 75% of messages fail, 3.0% is usual"
    assert alert_summary(told(kind="not_permitted")).endswith("messages are not permitted")


@pytest.fixture
def data(published: Path) -> Path:
    land_records(
        published,
        0,
        [
            alert(0, "firing"),
            alert(1, "resolved", seconds=600),
            alert(2, "firing", id="failure_ratio:acme:3:1", device_id=3, fired_at=at(9), seconds=9),
        ],
    )
    return published


def test_alerts_are_listed_and_explained_from_the_warehouse(data: Path) -> None:
    def shown(print_: Callable[[Console], None]) -> str:
        console = Console(width=200)
        with console.capture() as captured:
            print_(console)
        return captured.get()

    assert "acme:3:1" in shown(lambda console: print_alerts(data, console, everything=False))
    assert "acme:1:2" not in shown(lambda console: print_alerts(data, console, everything=False))
    assert "acme:1:2" in shown(lambda console: print_alerts(data, console, everything=True))
    text = shown(lambda console: print_alert_evidence(data, console, "failure_ratio:acme:1:2"))
    for words in ("6 of 8 messages", "3.0%, at most 4.0%, from 2,000 messages", "acme:17", "runbooks/failure_ratio.md"):
        assert words in text
    with pytest.raises(NoSuchAlertError, match="alerts list --all"):
        print_alert_evidence(data, Console(), "failure_ratio:acme:9:9")


async def test_each_way_out_can_be_tried(receiver: Receiver) -> None:
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


def test_without_a_way_out_trying_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SMSPULSE_ALERTS_ALERTMANAGER", raising=False)
    monkeypatch.delenv("SMSPULSE_ALERTS_WEBHOOK", raising=False)
    monkeypatch.delenv("SMSPULSE_ALERTS_APPRISE", raising=False)
    result = CliRunner().invoke(cli, ["alerts", "test"])
    assert "set SMSPULSE_ALERTS_ALERTMANAGER" in str(result.exception)


def test_every_kind_has_a_runbook() -> None:
    runbooks = Path(__file__).parents[3] / "docs" / "runbooks"
    assert {path.stem for path in runbooks.glob("*.md")} == set(KINDS)


def test_a_backtest_finds_what_the_stream_would_have_told(published: Path) -> None:
    outcomes = ["delivered"] * 300 + ["undelivered"] * 12 + ["delivered"] * 60
    landed = [
        version(number, number, outcome, seconds=60 * number - 86_400, last_status_id=8)
        for number, outcome in enumerate(outcomes)
    ]
    land_records(published, 0, landed)
    found = run_backtest(read_message_ends(published, None), DetectorPolicy(), 0.2)
    ((fired, resolved),) = found.alert_episodes()
    assert (found.messages, fired.id, fired.failures, fired.since) == (
        372, "failure_ratio:acme:1:2", fired.count, at(60 * 300 - 86_400),
    )  # fmt: skip
    assert resolved is not None
    assert found.threshold == [("acme:1:2", at(60 * 303 - 86_400))]
    console = Console(width=200)
    with console.capture() as captured:
        print_backtest(found, console)
    text = captured.get()
    assert "372 messages of 0.3 days: 1 alerts" in text
    assert all(kind in text.partition("not run over the past:")[2] for kind in EVALUATED_KINDS)
    draw_backtest(found, published / "alerts.html")
    assert "acme:1:2" in (published / "alerts.html").read_text()
    with pytest.raises(PictureError, match="cannot be drawn"):
        draw_backtest(found, published / "alerts.doc")
    assert run_backtest(read_message_ends(published, moment(0)), DetectorPolicy(), 0.2).messages == 0


def test_a_rise_that_became_the_new_normal_says_so_wherever_alerts_are_read(data: Path) -> None:
    ended = told(phase="resolved", resolution="new_normal", resolved_at=at(600))
    assert alert_summary(ended) == "source acme, device 1, channel 2: new normal, 75% of messages fail, 3.0% was usual"
    assert alert_evidence(ended)["ended"].startswith("new normal")
    assert "ended" not in alert_evidence(told())
    land_records(data, 3, [alert(3, "firing", fired_at=at(20), seconds=20)])
    land_records(data, 4, [alert(4, "resolved", fired_at=at(20), seconds=900, resolution="new_normal")])
    listed = CliRunner().invoke(cli, ["alerts", "list", "--all", "--data", str(data)]).output
    assert listed.count("new normal") == 2  # as the state of one of two episodes, and in its summary
    explained = CliRunner().invoke(cli, ["alerts", "explain", "failure_ratio:acme:1:2", "--data", str(data)]).output
    assert "the failures stayed, and are the baseline from now on" in explained
    resolutions = query(data, "SELECT resolution FROM alerts WHERE alert_id LIKE '%:1:2' ORDER BY fired_at")
    assert resolutions["resolution"].tolist() == ["", "new_normal"]


def test_units_that_learn_are_listed_until_they_have_learnt(data: Path) -> None:
    def listed() -> str:
        return CliRunner().invoke(cli, ["alerts", "list", "--data", str(data)]).output

    assert "learning" not in listed()
    new = {"id": "failure_ratio:acme:9:0", "device_id": 9, "channel_id": 0, "fired_at": None, "count": 0, "failures": 0}
    land_records(data, 3, [alert(3, "learning", **new)])
    assert "learning what is usual: acme:9:0. Until then only near-total failure fires" in listed()
    assert [row["alert_id"] for row in status.collect_status(data, "auto", port=1)["learning"]] == [new["id"]]
    shown = CliRunner().invoke(cli, ["status", "--data", str(data), "--port", "1", "--format", "json"])
    assert json.loads(shown.output)["learning"][0]["state_since"].endswith("Z")
    land_records(data, 4, [alert(4, "resolved", seconds=60, **new)])
    assert "learning" not in listed()
    states = query(data, "SELECT alert_id, state FROM failure_detectors ORDER BY alert_id").values.tolist()
    assert states == [
        ["failure_ratio:acme:1:2", "quiet"],
        ["failure_ratio:acme:3:1", "firing"],
        ["failure_ratio:acme:9:0", "quiet"],
    ]
