"""Notifications of a real Alertmanager, with the routes of the example, for alerts of `smspulse alerts send`."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import permutations
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from alertmanager import Receiver, alertmanager, alerts, configured, receiving
from msgspec.structs import replace
from running import program
from warehouse_records import alert

from core.alerts import KINDS, Alert, ChannelFailures, Scope, alert_id, decode_alert
from core.kafka_settings import KafkaSettings
from smspulse.alerting.alert_state import AlertState, format_rfc3339
from smspulse.alerting.alert_topic import AlertTopicWriter
from smspulse.alerting.receivers import AlertmanagerClient
from smspulse.alerting.settings import AlertSettings
from smspulse.alerting.silences import SilenceStore
from smspulse.broker.embedded import MemoryBroker
from smspulse.broker.topic_admin import ensure_topics
from smspulse.processes.children import READY_FD_VARIABLE, find_free_port

NOW = int(time.time() * 1000) - 60_000


def make_alert(
    kind: str, scope: Scope, source: str, device: int | None = None, *, phase: str = "firing", at: int = NOW
) -> Alert:
    of = {"source": (), "pipeline": (), "device": (device,), "channel": (device, 1)}[scope]
    fields = {
        "id": alert_id(kind, source, *of), "kind": kind, "scope": scope, "source": source, "device_id": device,
        "channel_id": 1 if scope == "channel" else None, "changed_at": at, "since": NOW, "fired_at": NOW,
        "resolved_at": at if phase == "resolved" else None,
    }  # fmt: skip
    return decode_alert(alert(0, phase, **fields).value or b"")


@dataclass
class Setting:
    """A broker with `sms.alerts`, an Alertmanager, and the receiver of its notifications."""

    data: Path
    kafka: KafkaSettings
    config: Path
    port: int
    receiver: Receiver

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def write(self, *alerts: Alert) -> None:
        assert len(AlertTopicWriter(self.kafka)(alerts)) == len(alerts)

    def alertmanager(self) -> Any:
        return alertmanager(program("prometheus-alertmanager"), self.config, self.port)

    @contextmanager
    def sender(self, repeat_s: float = 1) -> Iterator[subprocess.Popen[bytes]]:
        """Run `smspulse alerts send`; yield once it is ready."""
        with sending(self.data, SMSPULSE_ALERTS_ALERTMANAGER=self.url, SMSPULSE_ALERTS_REPEAT_S=str(repeat_s)) as run:
            yield run

    async def notified(self, within_s: float = 120) -> tuple[str, str, set[tuple[str, str | None, str]]]:
        """Return the next notification: the source of the group, its state, and its alerts."""
        body = await self.receiver.next(within_s)
        found = {(each["labels"]["alertname"], each["labels"].get("device"), each["status"]) for each in body["alerts"]}
        return body["groupLabels"]["source"], body["status"], found


@contextmanager
def sending(data: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "smspulse", "alerts", "send", "--data", str(data)],
        env={**os.environ, **environment, READY_FD_VARIABLE: str(writing)},
        pass_fds=(writing,),
    )
    os.close(writing)
    try:
        assert os.read(reading, 1) == b"1"
        yield process
    finally:
        os.close(reading)
        process.terminate()
        assert process.wait(60) == 0


@pytest.fixture
async def setting(tmp_path: Path) -> AsyncIterator[Setting]:
    program("prometheus-alertmanager")
    with MemoryBroker(tmp_path) as broker:
        kafka = KafkaSettings(bootstrap=broker.address, in_memory=True)
        ensure_topics(kafka, timeout_s=10)
        async with receiving() as receiver:
            config = configured(tmp_path, receiver.url, "1s", "1s")
            yield Setting(tmp_path, kafka, config, find_free_port(), receiver)


async def test_a_source_is_one_notification_and_inhibits_its_alerts_until_it_is_resolved(setting: Setting) -> None:
    of_source = make_alert("failure_ratio", "source", "acme")
    devices = [make_alert("failure_ratio", "channel", "acme", 1), make_alert("device_down", "device", "acme", 2)]
    others = [make_alert("silent", "device", "other", 1), make_alert("failure_ratio", "channel", "other", 2)]
    with setting.alertmanager(), setting.sender():
        # Before the alerts that it explains. They are in other partitions, and only `group_wait` would delay them.
        setting.write(of_source)
        assert await setting.notified() == ("acme", "firing", {("SmsFailureRatio", None, "firing")})
        setting.write(*devices, *others)
        wanted = {("SmsSilent", "1", "firing"), ("SmsFailureRatio", "2", "firing")}
        seen: set[tuple[str, str | None, str]] = set()
        while not seen >= wanted:
            source, _, found = await setting.notified()
            assert source == "other"
            seen |= found
        assert seen == wanted
        await alerts(setting.url, lambda found: len(found) == 5)
        seen.clear()
        setting.write(make_alert("failure_ratio", "source", "acme", phase="resolved", at=NOW + 30_000))
        wanted = {
            ("SmsFailureRatio", "1", "firing"),
            ("SmsDeviceDown", "2", "firing"),
            ("SmsFailureRatio", None, "resolved"),
        }
        while not seen >= wanted:
            source, _, found = await setting.notified()
            assert source == "acme"
            seen |= found
        assert setting.receiver.requests.empty()


async def test_an_alert_stays_active_while_it_is_repeated(setting: Setting) -> None:
    setting.write(make_alert("failure_ratio", "channel", "acme", 1))
    with setting.alertmanager(), setting.sender(repeat_s=0.5):
        (first,) = await alerts(setting.url, len)
        # Without a repetition, it would have ended after two seconds.
        (later,) = await alerts(setting.url, lambda found: not found or found[0]["updatedAt"] > plus(first, 3))
        assert (later["fingerprint"], later["status"]["state"]) == (first["fingerprint"], "active")


async def test_an_alert_stays_active_across_restarts_of_both_and_ends_when_it_is_resolved(setting: Setting) -> None:
    setting.write(make_alert("failure_ratio", "channel", "acme", 1))
    with setting.alertmanager():
        with setting.sender(repeat_s=30):  # longer than any restart
            assert await setting.notified() == ("acme", "firing", {("SmsFailureRatio", "1", "firing")})
            (first,) = await alerts(setting.url, len)
            assert first["startsAt"] == format_rfc3339(NOW)
        with setting.sender(repeat_s=30):
            await alerts(setting.url, lambda found: not found or found[0]["updatedAt"] > first["updatedAt"])
    with setting.sender(repeat_s=30):  # while Alertmanager is down
        with setting.alertmanager():
            (again,) = await alerts(setting.url, len)
            assert (again["fingerprint"], again["startsAt"]) == (first["fingerprint"], first["startsAt"])
            # No notification is repeated. The next one is that of a later alert.
            setting.write(make_alert("silent", "source", "later"))
            later = ("later", "firing", {("SmsSilent", None, "firing")})
            assert await setting.notified() == later
        setting.write(make_alert("failure_ratio", "channel", "acme", 1, phase="resolved", at=NOW + 30_000))
        await asyncio.sleep(1)  # it is read, and Alertmanager is down
        with setting.alertmanager():
            found = await setting.notified()
            if found == later:  # again, if Alertmanager ended before it stored that it had notified
                found = await setting.notified()
            assert found == ("acme", "resolved", {("SmsFailureRatio", "1", "resolved")})


@pytest.mark.parametrize("source_first", [True, False])
async def test_a_phone_that_explains_the_rise_of_its_source_is_the_only_notification_in_either_order(
    setting: Setting, source_first: bool
) -> None:
    now = int(time.time() * 1000)  # a new alert of a source waits for that of the phone
    by_channel = [ChannelFailures(1, 1, 9, 0.2), ChannelFailures(2, 1, 1, 0.2)]
    of_source = replace(
        make_alert("failure_ratio", "source", "acme"),
        by_channel=by_channel,
        fired_at=now,
        count=40,
        failures=10,
        share=1.0,
    )
    of_phone = make_alert("failure_ratio", "channel", "acme", 1)
    first, second = (of_source, of_phone) if source_first else (of_phone, of_source)
    with setting.alertmanager(), setting.sender(repeat_s=0.5):
        setting.write(first)
        if source_first:
            # The other source is sent in a cycle after the one that did not send this source.
            setting.write(make_alert("silent", "device", "other", 3))
            assert (await setting.notified())[0] == "other"
        setting.write(second)
        assert await setting.notified() == ("acme", "firing", {("SmsFailureRatio", "1", "firing")})
        setting.write(replace(of_source, phase="resolved", resolved_at=now + 1_000, changed_at=now + 1_000))
        setting.write(make_alert("failure_ratio", "channel", "acme", 1, phase="resolved", at=now + 2_000))
        assert await setting.notified() == ("acme", "resolved", {("SmsFailureRatio", "1", "resolved")})


def plus(alert: dict[str, Any], seconds: float) -> str:
    return format_rfc3339(int((datetime.fromisoformat(alert["updatedAt"]).timestamp() + seconds) * 1000))


async def test_alerts_end_without_their_sender(setting: Setting) -> None:
    setting.write(make_alert("silent", "source", "acme"))
    with setting.alertmanager():
        with setting.sender(repeat_s=0.5):
            assert (await setting.notified())[1] == "firing"
        assert (await setting.notified())[1] == "resolved"


async def test_a_silence_of_smspulse_ends_the_alert_in_alertmanager_until_it_is_lifted(
    setting: Setting,
) -> None:
    one, other = make_alert("silent", "device", "acme", 1), make_alert("silent", "device", "other", 2)
    silences = SilenceStore(setting.data)
    silences.set_silence(one.id, 600)
    with setting.alertmanager(), setting.sender(repeat_s=0.5):
        setting.write(one, other)
        assert await setting.notified() == ("other", "firing", {("SmsSilent", "2", "firing")})
        silences.set_silence(one.id, 0)
        assert await setting.notified() == ("acme", "firing", {("SmsSilent", "1", "firing")})
        silences.set_silence(one.id, 600)
        assert await setting.notified() == ("acme", "resolved", {("SmsSilent", "1", "resolved")})
        silences.set_silence(one.id, 0)
        assert await setting.notified() == ("acme", "firing", {("SmsSilent", "1", "firing")})


async def test_a_silence_of_alertmanager_by_alert_id_holds_across_repetitions(setting: Setting) -> None:
    one, other = make_alert("silent", "device", "acme", 1), make_alert("silent", "device", "other", 2)
    with setting.alertmanager(), setting.sender(repeat_s=0.5):
        silence = ["silence", "add", f"alert_id={one.id}", "--duration=1h", "--author=us", "--comment=fixed"]
        adding = await asyncio.create_subprocess_exec(program("amtool"), f"--alertmanager.url={setting.url}", *silence)
        assert await adding.wait() == 0
        setting.write(one, other)
        assert await setting.notified() == ("other", "firing", {("SmsSilent", "2", "firing")})
        found = await alerts(setting.url, lambda found: len(found) == 2)
        assert {each["labels"]["source"]: each["status"]["state"] for each in found} == {
            "acme": "suppressed", "other": "active",
        }  # fmt: skip
        # A silenced alert is never notified. The next notification is that of a later alert.
        setting.write(make_alert("silent", "source", "later"))
        assert await setting.notified() == ("later", "firing", {("SmsSilent", None, "firing")})


async def test_an_alert_that_ends_before_its_start_does_not_prevent_others(setting: Setting) -> None:
    backwards = make_alert("failure_ratio", "channel", "acme", 1, phase="resolved", at=NOW - 5_000)
    with setting.alertmanager():
        async with aiohttp.ClientSession() as session:
            client = AlertmanagerClient(session, AlertSettings(), setting.url)
            await client.send([make_alert("silent", "source", "acme"), backwards], time.time())
        assert len(await alerts(setting.url, len)) == 1


EVERY: Sequence[tuple[str, Scope, int | None]] = [
    *(
        (kind, "source", None)
        for kind in KINDS
        if kind not in {"not_permitted", "device_down", "quality_check", "pipeline"}
    ),
    *((kind, "device", 1) for kind in ("failure_ratio", "silent", "stuck_messages", "latency_shift", "device_down")),
    *((kind, "device", 2) for kind in ("silent", "stuck_messages", "device_down")),
    *((kind, "channel", 1) for kind in ("failure_ratio", "not_permitted")),
]


@pytest.mark.parametrize("of_all", [None, "silent", "pipeline", "quality_check"])
async def test_its_rules_inhibit_the_same_alerts_as_smspulse(tmp_path: Path, of_all: str | None) -> None:
    pairs = [
        (make_alert(*one[:2], f"s{number}", one[2]), make_alert(*other[:2], f"s{number}", other[2]))
        for number, (one, other) in enumerate(permutations(EVERY, 2))
    ]
    wide = [] if of_all is None else [make_alert(of_all, "pipeline", "*")]
    every = {each.id: each for each in (*wide, *(each for pair in pairs for each in pair))}
    ours = set()
    for pair in pairs:
        state = AlertState()
        for each in (*wide, *pair):
            state.update_alert(each)
        ours |= {each.id for each in pair if state.is_inhibited(each, NOW)}
    assert ours
    config = configured(tmp_path, "http://127.0.0.1:9/", "1h", "1h")
    with alertmanager(program("prometheus-alertmanager"), config) as url:
        async with aiohttp.ClientSession() as session:
            await AlertmanagerClient(session, AlertSettings(), url).send(list(every.values()), time.time())
        # Its inhibitor processes them asynchronously, without an event.
        await alerts(url, lambda found: len(found) == len(every) and inhibited_of(found) == ours)


def inhibited_of(found: list[Any]) -> set[str]:
    return {each["labels"]["alert_id"] for each in found if each["status"]["inhibitedBy"]}


async def test_a_signal_stops_the_sender_while_kafka_does_not_answer(tmp_path: Path) -> None:
    command = ("-m", "smspulse", "broker", "--data", str(tmp_path), "--mode", "memory")
    broker = await asyncio.create_subprocess_exec(sys.executable, *command)
    try:
        while not (tmp_path / "broker.json").exists():
            assert broker.returncode is None
            await asyncio.sleep(0.1)
        with sending(tmp_path, SMSPULSE_ALERTS_WATCH_S="0.1") as process:
            broker.send_signal(signal.SIGSTOP)
            await asyncio.sleep(1)  # an evaluation begins, and waits
            process.terminate()
            assert await asyncio.to_thread(process.wait, 60) == 0
    finally:
        broker.send_signal(signal.SIGCONT)
        broker.terminate()
        await broker.wait()
