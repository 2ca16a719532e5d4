"""Whoever can read a data folder can ask it: a group that may, and on a read-only mount."""

import asyncio
import grp
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import pytest
from privileges import as_seen_by_group, drop_file_capabilities

from ingest.settings import IngestSettings
from ingest.sources import add_source
from ingest.spool import WebhookSpool
from smspulse.broker.embedded import MemoryBroker
from smspulse.broker.locate import find_kafka_settings
from smspulse.broker.topic_admin import ensure_topics
from smspulse.cli.options import ensure_data_folder
from smspulse.processes.data_folder import set_private_umask
from warehouse import catalog

COMMANDS = {
    "": 0,
    "status --format json": 1,
    "sql SELECT(1)FROM(messages)": 0,
    "message mine:1": 1,
    "alerts list": 0,
    "alerts silence": 0,
    "doctor": 0,
    "check": 0,
}
"""Commands that read, and their exit codes."""
# All in one process: the imports of each would take longer than the rest.
PROGRAM = """
import json, sys
from click.testing import CliRunner
from smspulse.cli.main import cli

for command in json.loads(sys.argv[1]):
    done = CliRunner().invoke(cli, command.split(), prog_name="smspulse")
    fault = None if isinstance(done.exception, SystemExit) else done.exception
    print(json.dumps([command, done.exit_code, done.stdout, done.stderr, fault and repr(fault)]))
"""
MOUNT = 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && shift && exec "$@"'


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A data folder with a broker that runs, a warehouse, a source, a spool and what ingest keeps of its answers.

    Those who are tested here cannot change it.
    """
    folder = tmp_path_factory.mktemp("read") / "data"
    before = os.umask(0o022)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SMSPULSE_READ_GROUP", grp.getgrgid(os.getegid()).gr_name)
        set_private_umask(folder)
        ensure_data_folder(folder)
    with MemoryBroker(folder) as broker:
        ensure_topics(find_kafka_settings(folder, broker.address))
        catalog.publish_views(folder)
        add_source(folder, "mine")

        async def open_once() -> None:
            WebhookSpool(folder, IngestSettings()).close()

        asyncio.run(open_once())
        hour = folder / "accepted" / "2099-12-31T00"
        hour.mkdir(mode=0o700, parents=True)
        (hour / "mine").touch(mode=0o600)
        os.umask(before)
        yield folder


class Answer(NamedTuple):
    """What a command answered; `fault` is an exception that it did not expect."""

    code: int
    stdout: str
    stderr: str
    fault: str | None


@pytest.fixture(scope="module", params=["a member of the group", "a read-only mount"])
def answers(request: pytest.FixtureRequest, data: Path) -> dict[str, Answer]:
    """The answers of all commands to somebody who can read the folder and no more, by command."""
    inside = ["unshare", "--mount", *(["--map-root-user"] if os.geteuid() else []), "sh", "-c", MOUNT, "-", str(data)]
    is_group = request.param == "a member of the group"
    if not is_group and subprocess.run([*inside, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this test needs a mount of its own, which `unshare` cannot make here")
    with as_seen_by_group(data) if is_group else nullcontext():
        done = subprocess.run(
            [*([] if is_group else inside), sys.executable, "-c", PROGRAM, json.dumps(list(COMMANDS))],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"COLUMNS": "300", "SMSPULSE_DATA": str(data)},
            preexec_fn=drop_file_capabilities if is_group else None,
        )
    assert done.returncode == 0, done.stderr
    return {command: Answer(*answer) for command, *answer in map(json.loads, done.stdout.splitlines())}


def test_status_sees_the_broker_that_runs(answers: dict[str, Answer]) -> None:
    done = answers["status --format json"]
    broker = json.loads(done.stdout)["processes"][0]
    assert (broker["name"], broker["ok"]) == ("broker", True), done


@pytest.mark.parametrize(("command", "code"), COMMANDS.items())
def test_a_command_that_reads_answers(answers: dict[str, Answer], command: str, code: int) -> None:
    done = answers[command]
    assert (done.code, done.fault) == (code, None), done


def test_doctor_says_that_the_folder_can_be_read(answers: dict[str, Answer]) -> None:
    assert "it can be read" in answers["doctor"].stdout, answers["doctor"]


def test_check_says_what_it_could_not_look_at(answers: dict[str, Answer], request: pytest.FixtureRequest) -> None:
    done = answers["check"]
    is_left_out = "the suite reconciliation was left out: this user may not read" in done.stdout
    # On a mount that is read-only for all, its owner reads everything.
    assert is_left_out == ("group" in request.node.callspec.id), done


def test_the_first_step_is_shown_to_who_may_not_read_the_sources(answers: dict[str, Answer], data: Path) -> None:
    assert answers[""].stdout.startswith(f"The pipeline runs on {data}."), answers[""]
