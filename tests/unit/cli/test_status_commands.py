import json
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from landing import land_records
from prometheus_client import CollectorRegistry
from warehouse_records import NOON, raw, status, version

from ingest.sources import add_source
from smspulse.broker.lockfile import acquire_broker_lock
from smspulse.cli.main import cli
from smspulse.processes import metrics_endpoint
from smspulse.processes.children import find_free_port
from smspulse.runtime import status as status_command
from warehouse import catalog
from warehouse import metrics as lander_metrics


@pytest.fixture
def data(published: Path) -> Path:
    return published


def smspulse(*arguments: str, data: Path) -> Result:
    environment = {"SMSPULSE_DATA": str(data), "COLUMNS": "160", "SMSPULSE_KAFKA_BOOTSTRAP": None}
    return CliRunner().invoke(cli, arguments, catch_exceptions=False, env=environment)


def commands(group: click.Group, above: str = "smspulse") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        yield f"{above} {name}", command
        if isinstance(command, click.Group):
            yield from commands(command, f"{above} {name}")


@pytest.mark.parametrize(("name", "command"), list(commands(cli)))
def test_every_help_has_an_example(name: str, command: click.Command) -> None:
    # In its printed form, because the indentation of docstrings differs between versions of Python.
    shown = command.get_help(click.Context(command, terminal_width=160))
    assert re.search(rf"^  {name}\b", shown, re.MULTILINE)


def test_without_a_command_the_next_step_is_shown(tmp_path: Path) -> None:
    result = smspulse(data=tmp_path)
    assert result.exit_code == 0
    assert "smspulse up --demo" in result.output
    add_source(tmp_path, "acme")
    again = smspulse(data=tmp_path).output
    assert "has 1 source, and nothing runs on it" in again
    assert "--demo" not in again


def test_the_history_of_a_delivered_message_is_described(data: Path) -> None:
    observations = [
        [1, 7, None, None, NOON, NOON],
        [2, 7, 1, None, NOON + 1500, NOON + 1500],
        [6, 7, 1, None, NOON + 2500, NOON + 2500],
        [7, 7, 1, None, NOON + 9000, NOON + 12_000],
    ]
    fields = {"queue_s": 1.5, "device_s": 1.0, "network_s": 6.5, "total_s": 9.0, "last_status_id": 7}
    land_records(
        data, 0, [version(0, 5, "delivered", observations=observations, flags=["duplicated"], device_id=7, **fields)]
    )
    result = smspulse("message", "acme:5", data=data)
    assert result.exit_code == 0
    lines = [" ".join(line.split()) for line in result.output.splitlines() if line]
    assert lines == [
        "acme:5 was delivered 9.0 s after its first report.",
        "2026-11-24 12:00:00.000 UTC pending, phone 7, channel None",
        "+1.5 s taken by the phone, phone 7, channel 1",
        "+2.5 s sent by the phone",
        "+9.0 s delivered; repeated up to 3.0 s later",
        "It spent 1.5 s in the queue, 1.0 s on the phone, 6.5 s in the network, as the reports were received.",
        "Note: a report was delivered more than once.",
    ]
    found = json.loads(smspulse("message", "acme:5", "--format", "json", data=data).output)
    assert [report["after_s"] for report in found["reports"]] == [0, 1.5, 2.5, 9]
    assert "49157" not in json.dumps(found)  # no phone number


@pytest.mark.parametrize(
    ("outcome", "fields", "words"),
    [
        ("not_sent", {"last_status_id": 10}, "failed: not sent: no service"),
        ("expired", {}, "expired: it has no end"),
        ("sent", {}, "is open: sent by the phone"),
        ("unknown", {"last_status_id": 42}, "is open: undocumented status 42"),
    ],
)
def test_the_outcome_comes_first(data: Path, outcome: str, fields: dict[str, int], words: str) -> None:
    land_records(data, 0, [version(0, 5, outcome, **fields)])
    assert smspulse("message", "acme:5", data=data).output.startswith(f"acme:5 {words}")


def test_an_unknown_message_exits_with_1_and_an_invalid_key_with_2(data: Path) -> None:
    result = smspulse("message", "acme:6", data=data)
    assert (result.exit_code, result.output.startswith("no status report of acme:6 has landed")) == (1, True)
    assert "such as acme:48210377" in smspulse("message", "acme", data=data).output


def test_without_a_pipeline_status_names_the_missing_parts(tmp_path: Path) -> None:
    result = smspulse("status", "--port", str(find_free_port()), data=tmp_path)
    assert result.exit_code == 1
    assert "none runs here: start `smspulse up`" in result.output
    assert "newest landed: nothing" in result.output


def test_status_shows_processes_with_and_without_an_answer(data: Path) -> None:
    metrics_endpoint.serve_metrics(data, "lander", CollectorRegistry())
    (data / "run" / "stream.json").write_text('{"name": "stream", "pid": 1, "host": "127.0.0.1", "port": 1}')
    land_records(data, 0, [raw(0, status(5, 6))])
    found = json.loads(smspulse("status", "--format", "json", "--port", str(find_free_port()), data=data).output)
    running = {each["name"]: each["ok"] for each in found["processes"]}
    assert running["lander"]
    assert not running["stream"]
    assert "stream: does not run" in found["trouble"]
    assert [row["dataset"] for row in found["freshness"]] == ["raw"]


def test_status_connects_to_this_machine_only(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connected: list[str] = []

    def note(address: tuple[str, int], *_: Any, **__: Any) -> None:
        connected.append(address[0])
        raise OSError

    monkeypatch.setattr(socket, "create_connection", note)
    lock = acquire_broker_lock(data)
    elsewhere = {"pid": os.getpid(), "host": "192.0.2.1", "port": 80}
    (data / "run").mkdir()
    for name, announced in {
        "stream-0": {"name": "stream-0", **elsewhere},
        "ingest": {"name": "ingest", **elsewhere},
        "lander": {"name": "\x1b[2J ✓ all is well", **elsewhere, "host": "127.0.0.1"},
        "page": {"name": ["page"], **elsewhere, "host": "127.0.0.1"},
        "alerts": {"name": "alerts", **elsewhere, "pid": "1"},
    }.items():
        (data / "run" / f"{name}.json").write_text(json.dumps(announced))
    broker = {"bootstrap": "192.0.2.1:9092", "kind": "kafka", "pid": os.getpid()}
    (data / "broker.json").write_text(json.dumps(broker))
    found = json.loads(smspulse("status", "--format", "json", data=data).output)["processes"]
    os.close(lock)
    assert set(connected) == {"127.0.0.1"}, "where an ingest is that nobody named"
    assert [each["name"] for each in found] == ["broker", "ingest", "stream-0"]
    assert found[2]["what"] == "announced at 192.0.2.1, which is not this machine: not queried"


def test_a_lander_that_cannot_write_is_a_problem_in_status_and_on_the_page(tmp_path: Path) -> None:
    data = tmp_path
    catalog.publish_views(data)
    registry = CollectorRegistry()
    registry.register(lander_metrics.BLOCKED)
    metrics_endpoint.serve_metrics(data, "lander", registry)

    def lander() -> dict[str, Any]:
        (found,) = [
            each
            for each in status_command.collect_pipeline_status(data, "auto", find_free_port())["processes"]
            if each["name"] == "lander"
        ]
        return dict(found)

    assert lander()["ok"]
    lander_metrics.BLOCKED.set(1)
    try:
        assert not lander()["ok"]
        assert f"cannot write to {data}, so nothing new comes into SQL" in lander()["what"]
        assert any(
            "cannot write to" in line
            for line in status_command.collect_status(data, "auto", find_free_port())["trouble"]
        )
    finally:
        lander_metrics.BLOCKED.set(0)
