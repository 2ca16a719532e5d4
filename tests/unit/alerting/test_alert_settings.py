"""Settings of alerts are checked when a process starts, and a wrong one is one line that names it."""

import gc
import os
import subprocess
import sys
import traceback
import weakref
from pathlib import Path

import pytest
from click.testing import CliRunner

from core.urls import parse_base_url, parse_http_url
from smspulse.alerting.errors import AlertSettingsError
from smspulse.alerting.settings import AlertSettings, read_alert_settings
from smspulse.cli.main import cli

PREFIX = "SMSPULSE_ALERTS_"


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in AlertSettings.model_fields:
        monkeypatch.delenv(f"{PREFIX}{name.upper()}", raising=False)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("http://alerts.example.org:9093/", ["http://alerts.example.org:9093"]),
        ("127.0.0.1:9093", ["http://127.0.0.1:9093"]),
        ("alerts.example.org", ["http://alerts.example.org"]),
        ("[::1]:9093", ["http://[::1]:9093"]),
        ("localhost:9093/prefix/", ["http://localhost:9093/prefix"]),
        ("a:9093, https://b/x ,,c:1", ["http://a:9093", "https://b/x", "http://c:1"]),
        ("https://user:secret@b", ["https://user:secret@b"]),
        ("", []),
        (" , ", []),
    ],
)
def test_an_alertmanager_is_a_url_or_host_and_port_as_prometheus_has_its_targets(
    written: str, meant: list[str]
) -> None:
    assert AlertSettings(alertmanager=written).alertmanager_urls == meant


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("alertmanager", "ftp://a", "write http://HOST:PORT or HOST:PORT"),
        ("alertmanager", "a:9093,http:/b", "write http://HOST:PORT or HOST:PORT"),
        ("alertmanager", "a:99999", "write http://HOST:PORT or HOST:PORT"),
        ("alertmanager", "a:port", "write http://HOST:PORT or HOST:PORT"),
        ("alertmanager", "http://a:9093/#/alerts", "leave out what begins with"),
        ("alertmanager", "http://", "write http://HOST:PORT or HOST:PORT"),
        ("alertmanager", "http://a b:9093", "write http://HOST:PORT or HOST:PORT"),
        ("webhook", "hooks.example.org/secret-token", "write https://HOST/PATH"),
        ("webhook", "hooks.example.org:443", "write https://HOST/PATH"),
        ("webhook", "file:///etc/passwd", "write https://HOST/PATH"),
        ("page", "127.0.0.1:8081", "write https://HOST/PATH"),
        ("runbooks", "docs", "write https://HOST/PATH"),
        ("runbooks", "https://docs.example.org?page=1", "leave out what begins with"),
        ("webhook_secret", "secret-token", "openssl rand -base64 32"),
        ("webhook_secret", "whsec_", "openssl rand -base64 32"),
        ("repeat_s", "0", "greater than 0"),
        ("repeat_s", "inf", "finite"),
        ("repeat_s", "often", "number"),
        ("watch_s", "nan", "finite"),
        ("watch_s", "-1", "greater than 0"),
        ("cause_wait_s", "-1", "greater than or equal to 0"),
        ("group", "", "at least 1"),
    ],
)
def test_a_setting_that_cannot_be_used_is_one_line_that_names_it_and_holds_no_secret(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, reason: str
) -> None:
    monkeypatch.setenv(f"{PREFIX}{name.upper()}", text)
    with pytest.raises(AlertSettingsError) as caught:
        read_alert_settings()
    line = str(caught.value)
    assert f"{PREFIX}{name.upper()} cannot be used: " in line
    assert reason in line
    assert "\n" not in line
    assert "secret-token" not in "".join(traceback.format_exception(caught.value))


def test_an_error_that_is_kept_is_freed_with_the_frame_that_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{PREFIX}WEBHOOK", "nowhere")

    def read_and_keep_the_error() -> weakref.ref[AlertSettingsError]:
        with pytest.raises(AlertSettingsError) as caught:
            read_alert_settings()
        return weakref.ref(caught.value)

    kept = read_and_keep_the_error()
    gc.collect()
    assert kept() is None


def test_each_setting_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{PREFIX}WEBHOOK", "nowhere")
    monkeypatch.setenv(f"{PREFIX}WATCH_S", "0")
    with pytest.raises(AlertSettingsError, match=r"SMSPULSE_ALERTS_WEBHOOK .*; SMSPULSE_ALERTS_WATCH_S "):
        read_alert_settings()


@pytest.mark.parametrize("command", [["up"], ["alerts", "send"], ["alerts", "test"], ["alerts", "list"]])
def test_a_command_with_a_wrong_setting_ends_at_once_with_2_and_one_line(tmp_path: Path, command: list[str]) -> None:
    place = [] if command == ["alerts", "test"] else ["--data", str(tmp_path / "data")]
    ended = subprocess.run(
        [sys.executable, "-m", "smspulse", *command, *place],
        env=os.environ | {f"{PREFIX}ALERTMANAGER": "ftp://host"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert line.startswith("smspulse: SMSPULSE_ALERTS_ALERTMANAGER cannot be used: it is not a URL of http or https")
    assert not (tmp_path / "data").exists()


def test_a_url_of_apprise_that_it_does_not_know_ends_alerts_send_before_kafka_is_asked(tmp_path: Path) -> None:
    pytest.importorskip("apprise")
    arguments = ["alerts", "send", "--data", str(tmp_path), "--broker", "127.0.0.1:1"]
    ended = CliRunner().invoke(cli, arguments, env={f"{PREFIX}APPRISE": "nothing"})
    assert "URL 1 of SMSPULSE_ALERTS_APPRISE is not known to Apprise" in str(ended.exception)


@pytest.mark.parametrize("command", [["source", "add", "mine"], ["source", "rotate", "mine"], ["simulate"]])
def test_a_url_without_a_scheme_is_refused_by_options_too(tmp_path: Path, command: list[str]) -> None:
    place = [] if command == ["simulate"] else ["--data", str(tmp_path)]
    ended = CliRunner().invoke(cli, [*command, *place, "--url", "sms.example.org"])
    assert ended.exit_code == 2
    assert "it is not a URL of http or https: write https://HOST/PATH" in ended.output
    assert list(tmp_path.iterdir()) == []


def test_a_url_keeps_its_path_and_loses_the_slash_at_its_end() -> None:
    assert parse_http_url(" https://sms.example.org/hooks/?a=b ") == "https://sms.example.org/hooks/?a=b"
    assert parse_base_url("https://sms.example.org/hooks/") == "https://sms.example.org/hooks"
