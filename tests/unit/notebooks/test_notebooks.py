"""Each notebook runs on landed data. Its results are compared with manually computed numbers."""

import importlib
import os
import subprocess
import sys
from datetime import date, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from landing import land_records
from warehouse_records import alert, deadletter, moment, raw, status, version

from notebooks.common import NotebookFilter, open_notebook
from warehouse.quality import append_check_results

NUMBER = "+4915700000001"
TEXT = "a text that is nobody's business"
NOTEBOOKS = ("delivery_overview", "latency", "data_quality", "first_steps", "alert_review")

DAY = date(2026, 11, 24)


@pytest.fixture
def data(published: Path) -> Path:
    """Eight messages of two phones and sources, with their webhooks, a duplicate and an unreadable one."""
    steps = {"queue_s": 1.0, "device_s": 2.0, "total_s": 20.0}
    made = [version(n, n, "delivered", seconds=n, network_s=float(n), **steps) for n in range(1, 5)]
    made += [version(n, n, "not_sent", seconds=n, device_id=2, failure_class="no_service") for n in (5, 6)]
    made += [
        version(7, 7, "sent", seconds=7, device_id=2),
        version(8, 8, "delivered", source="beta", seconds=-86_400 * 9),
    ]
    land_records(published, 1, made)
    incoming = {"sms_id": 9, "type": "text", "address": NUMBER, "body": TEXT, "device_id": 1}
    bodies = [status(1, 6), status(1, 6), status(2, 77), b"{", incoming]
    land_records(published, 0, [raw(offset, body) for offset, body in enumerate(bodies)])
    land_records(published, 0, [deadletter(0, b"{", "not_json", "sms.raw:0:3")])
    changes = [alert(0, "firing"), alert(1, "resolved", seconds=600)]
    land_records(published, 0, changes)
    words = {
        "severity": "critical",
        "dataset": "raw",
        "observed": "3 gaps",
        "expected": "",
        "meaning": "",
        "action": "",
    }
    found = [{"expectation": name, "success": name == "fresh", "rows": [], **words} for name in ("whole", "fresh")]
    append_check_results(published, moment(0), found)
    return published


def run(name: str, data: Path, choice: NotebookFilter | None = None) -> tuple[str, dict[str, Any]]:
    """Run a notebook, with the initial or another choice; return its outputs as text, and its variables."""
    app = importlib.import_module(f"notebooks.{name}").app
    with patch.dict(os.environ, SMSPULSE_DATA=str(data)), pytest.MonkeyPatch.context() as patched:
        if choice:
            patched.setattr("notebooks.common.read_choice", lambda _: choice)
        outputs, found = app.run()
    return "\n".join(str(getattr(output, "text", output)) for output in outputs if output is not None), dict(found)


def test_delivery_has_its_interval(data: Path) -> None:
    _, found = run("delivery_overview", data)
    assert found["verdict"] == (
        "**66.7% of the messages that ended were delivered** in the 7 days up to 24 Nov 2026: 4 of 6 (95 % "
        "interval 30.0% to 90.3%). Of all 7 attempted it is 57.1%, and 14.3% are open."
    )
    assert found["outcomes"].drop(columns="share").to_numpy().tolist() == [
        ["delivered", 4],
        ["not_sent", 2],
        ["open", 1],
    ]
    of_device = run("delivery_overview", data, choice=NotebookFilter(DAY, 30, "acme", device=2))[1]["verdict"]
    assert of_device.startswith(
        "**0.0% of the messages that ended were delivered** in the 30 days up to 24 Nov 2026: 0"
    )
    of_channel = run("delivery_overview", data, choice=NotebookFilter(DAY, channel=7))[1]["verdict"]
    assert of_channel.startswith("No message in the 7 days")
    before = run("delivery_overview", data, choice=NotebookFilter(DAY - timedelta(days=1), 1, "beta"))[1]
    assert before["delivery"]["attempted"].iloc[0] == 1


def test_the_controls_offer_every_source_and_device(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMSPULSE_DATA", str(data))
    _, problem, picked = open_notebook()
    assert (problem, picked and picked.value) == (
        "",
        {"source": None, "device": None, "channel": None, "days": 7, "until": DAY},
    )
    assert picked is not None
    assert list(picked["device"].options) == ["all", "1", "2"]
    assert list(picked["source"].options) == ["all", "acme", "beta"]


def test_latency_has_percentiles(data: Path) -> None:
    _, found = run("latency", data, choice=NotebookFilter(DAY, step="network"))
    assert found["verdict"] == (
        "**Half of the messages spent 2.5 s or less in the network**, 95 of 100 3.8 s or less, 99 of 100 4.0 s or less"
        ": 4 messages in the 7 days up to 24 Nov 2026, 100.0% of them within 10 s."
    )
    assert "20.0 s or less from first report to end" in run("latency", data)[1]["verdict"]
    of_none = run("latency", data, choice=NotebookFilter(DAY, 1, "beta", step="queue"))[1]
    assert of_none["verdict"].startswith("No message of the 24 hours up to 24 Nov 2026")


def test_errors_of_webhooks_are_counted(data: Path) -> None:
    _, found = run("data_quality", data)
    assert found["verdict"] == (
        "**5 webhooks in the 7 days up to 24 Nov 2026**: 1 duplicates (20.0%), 1 unreadable (20.0%), 0 flawed (0.0%), "
        "1 unknown (20.0%). 1 records are dead letters. 1 of 2 expectations held when `smspulse check` looked last, "
        "24 Nov 12:00 UTC. No message that `smspulse rebuild` has compared differs from the log."
    )
    assert found["failed"]["expectation"].tolist() == ["whole"]


def test_each_first_step_has_an_answer(data: Path) -> None:
    _, found = run("first_steps", data)
    assert {question: len(frame) for question, frame in found["answers"].items()} == {
        "What became of the messages?": 3,
        "Which phones deliver least?": 3,
        "How is it from day to day?": 2,
        "Why do attempts fail?": 1,
        "How far do they get?": 5,
        "What was reported of one message?": 1,
        "How fresh is it?": 3,
    }
    assert "holds 8 messages" in found["verdict"]


def test_alerts_are_reviewed(data: Path) -> None:
    _, found = run("alert_review", data)
    assert found["verdict"].startswith(
        "**1 alerts fired in the 30 days up to 24 Nov 2026**, and 0 of them still fire. "
    )
    assert found["alerts"]["lasted_min"].tolist() == [10.0]
    of_others = [
        NotebookFilter(DAY, source="beta"),
        NotebookFilter(DAY, device=3),
        NotebookFilter(DAY - timedelta(days=1)),
    ]
    for choice in of_others:
        assert run("alert_review", data, choice=choice)[1]["verdict"].startswith("No alert fired in the 7 days")


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_no_number_and_no_text_is_shown(name: str, data: Path) -> None:
    shown, _ = run(name, data)
    assert shown
    for secret in (NUMBER, NUMBER[1:], TEXT):
        assert secret not in shown


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_without_messages_one_line_names_the_next_step(name: str, tmp_path: Path) -> None:
    shown, found = run(name, tmp_path)
    assert "smspulse" in found["problem"]
    assert shown.count(str(tmp_path)) == 1
    assert "verdict" not in found


def test_marimo_check_passes_for_each() -> None:
    paths = [importlib.import_module(f"notebooks.{name}").__file__ or "" for name in NOTEBOOKS]
    result = subprocess.run(
        [sys.executable, "-m", "marimo", "check", "--strict", *paths], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
