"""Alerts in the commands: lists, evidence, silences and backtests."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from decoded_alerts import decoded_alert
from landing import land_records
from rich.console import Console
from warehouse_records import alert, at, moment, version

from core.alerts import EVALUATED_KINDS, KINDS
from smspulse.alerting.alert_state import alert_evidence, alert_summary
from smspulse.alerting.backtest import read_message_ends, run_backtest
from smspulse.alerting.errors import NoSuchAlertError, PictureError
from smspulse.alerting.rendering import draw_backtest, print_alert_evidence, print_alerts, print_backtest
from smspulse.cli.main import cli
from smspulse.runtime import status
from streams.failure_baseline import DetectorPolicy
from warehouse.reader import query


def test_the_command_sets_lists_and_lifts_silences_and_silenced_alerts_stay_listed(data: Path) -> None:
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


def test_a_summary_is_one_line_without_phone_numbers() -> None:
    assert alert_summary(decoded_alert()) == "source acme, device 1, channel 2: 75% of messages fail, 3.0% is usual"
    assert alert_summary(decoded_alert(kind="not_permitted")).endswith("messages are not permitted")


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


def test_every_kind_has_a_runbook() -> None:
    runbooks = Path(__file__).parents[3] / "docs" / "runbooks"
    assert {path.stem for path in runbooks.glob("*.md")} == set(KINDS)


def test_a_backtest_finds_the_alerts_of_the_stream(published: Path) -> None:
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


def test_a_new_normal_is_named_in_every_list_of_alerts(data: Path) -> None:
    ended = decoded_alert(phase="resolved", resolution="new_normal", resolved_at=at(600))
    assert alert_summary(ended) == "source acme, device 1, channel 2: new normal, 75% of messages fail, 3.0% was usual"
    assert alert_evidence(ended)["ended"].startswith("new normal")
    assert "ended" not in alert_evidence(decoded_alert())
    land_records(data, 3, [alert(3, "firing", fired_at=at(20), seconds=20)])
    land_records(data, 4, [alert(4, "resolved", fired_at=at(20), seconds=900, resolution="new_normal")])
    listed = CliRunner().invoke(cli, ["alerts", "list", "--all", "--data", str(data)]).output
    assert listed.count("new normal") == 2  # in the state of one of two episodes, and in its summary
    explained = CliRunner().invoke(cli, ["alerts", "explain", "failure_ratio:acme:1:2", "--data", str(data)]).output
    assert "the failures stayed, and are the baseline from now on" in explained
    resolutions = query(data, "SELECT resolution FROM alerts WHERE alert_id LIKE '%:1:2' ORDER BY fired_at")
    assert resolutions["resolution"].tolist() == ["", "new_normal"]


def test_learning_units_are_listed_until_they_have_a_baseline(data: Path) -> None:
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
