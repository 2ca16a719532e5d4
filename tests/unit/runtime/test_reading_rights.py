"""Whoever can read a data folder can ask it: a group that may, and on a read-only mount."""

import asyncio
import grp
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from privileges import as_seen_by_group, run_unprivileged

from ingest.settings import IngestSettings
from ingest.sources import add_source
from ingest.spool import WebhookSpool
from smspulse.broker.embedded import MemoryBroker
from smspulse.broker.locate import find_kafka_settings
from smspulse.broker.topic_admin import ensure_topics
from smspulse.cli.options import ensure_data_folder
from smspulse.processes.data_folder import set_private_umask
from warehouse import catalog

Run = Callable[..., "subprocess.CompletedProcess[str]"]

WIDE = os.environ | {"COLUMNS": "300"}
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


@pytest.fixture(params=["a member of the group", "a read-only mount"])
def read(request: pytest.FixtureRequest, data: Path) -> Iterator[Run]:
    """Runs `smspulse` as somebody who can read the folder and no more."""
    if request.param == "a member of the group":
        with as_seen_by_group(data):
            yield lambda *arguments: run_unprivileged("-m", "smspulse", *arguments, "--data", str(data), env=WIDE)
        return
    inside = ["unshare", "--mount", *(["--map-root-user"] if os.geteuid() else [])]
    if subprocess.run([*inside, "sh", "-c", MOUNT, "-", data, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this test needs a mount of its own, which `unshare` cannot make here")
    yield lambda *arguments: subprocess.run(
        [*inside, "sh", "-c", MOUNT, "-", data, sys.executable, "-m", "smspulse", *arguments, "--data", data],
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
        env=WIDE,
    )


def test_status_sees_the_broker_that_runs(read: Run) -> None:
    done = read("status", "--format", "json")
    broker = json.loads(done.stdout)["processes"][0]
    assert (broker["name"], broker["ok"]) == ("broker", True), done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("sql", "SELECT count(*) FROM messages"), 0),
        (("message", "mine:1"), 1),
        (("alerts", "list"), 0),
        (("alerts", "silence"), 0),
    ],
)
def test_a_command_that_reads_answers(read: Run, arguments: tuple[str, ...], code: int) -> None:
    done = read(*arguments)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_doctor_says_that_the_folder_can_be_read(read: Run) -> None:
    done = read("doctor")
    assert "it can be read" in done.stdout, done.stdout + done.stderr


def test_check_answers_and_says_what_it_could_not_look_at(read: Run, request: pytest.FixtureRequest) -> None:
    done = read("check")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    is_left_out = "the suite reconciliation was left out: this user may not read" in done.stdout
    # On a mount that is read-only for all, its owner reads everything.
    assert is_left_out == ("group" in request.node.callspec.id), done.stdout + done.stderr


def test_the_first_step_is_shown_to_who_may_not_read_the_sources(data: Path) -> None:
    with as_seen_by_group(data):
        done = run_unprivileged("-m", "smspulse", env=os.environ | {"SMSPULSE_DATA": str(data)})
    assert done.stdout.startswith(f"The pipeline runs on {data}."), done.stdout + done.stderr
