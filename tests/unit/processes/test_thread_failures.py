"""Every process that runs on ends when a thread of it fails."""

import logging
import threading
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from core import background_tasks
from smspulse.cli.main import cli

PROCESSES = {
    "up": "smspulse.runtime.pipeline.run_pipeline",
    "broker": "smspulse.broker.foreground.run_broker",
    "ingest": "ingest.server.run_ingest",
    "stream": "streams.app.run_worker",
    "land": "warehouse.lander.run_lander",
    "page": "smspulse.dashboard.server.run_page",
    "alerts send": "smspulse.alerting.dispatcher.run_dispatcher",
}
"""What each command runs until a signal."""


@pytest.mark.parametrize(("command", "runs"), PROCESSES.items(), ids=list(PROCESSES))
def test_a_thread_that_fails_ends_the_process_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, runs: str
) -> None:
    hooks: list[Any] = []

    def run(*_: object, **__: object) -> int:
        hooks.append(threading.excepthook)
        raise SystemExit(0)

    monkeypatch.setattr(runs, run)
    monkeypatch.setattr("smspulse.broker.topic_admin.ensure_topics", lambda *_: None)
    monkeypatch.setattr("smspulse.processes.metrics_endpoint.serve_metrics", lambda *_: None)
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", list(root.handlers))
    arguments = [*command.split(), "--data", str(tmp_path)]
    if command not in {"up", "broker"}:
        arguments += ["--broker", "127.0.0.1:1"]
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert hooks == [background_tasks._end_process]
