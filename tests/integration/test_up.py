"""`smspulse up` as an operator meets it: what it refuses, what it survives, and what it leaves alone."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from running import post

from ingest.sources import add_source, list_sources, webhook_url
from smspulse.broker import MemoryBroker
from smspulse.broker_file import read_broker_file
from smspulse.endpoints import announced
from smspulse.processes import free_port
from warehouse import views
from warehouse.errors import NoWarehouseError
from warehouse.read import query

PATIENCE_S = 180
UP = (sys.executable, "-m", "smspulse", "up")


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"SMSPULSE_BROKER_PORT": "0", "SMSPULSE_BROKER_CONTROLLER_PORT": "0"} | more


@contextmanager
def started(data: Path, *arguments: str, stdout: Any = None, **more: str) -> Iterator["subprocess.Popen[str]"]:
    """Start `smspulse up` in memory, yield it, and stop it at the end. What it prints is in `printed(data)`."""
    with printed_to(data).open("w") as log:
        process = subprocess.Popen(
            [*UP, "--data", str(data), "--broker", "memory", *arguments],
            env=environment(**more),
            stdout=stdout or log,
            stderr=log,
            text=True,
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def printed_to(data: Path) -> Path:
    return data.with_name(data.name + ".log")


def wait_until(process: "subprocess.Popen[str]", data: Path, holds: Callable[[], Any]) -> Any:
    """Return what a condition returns as soon as it holds, while the process runs."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := holds()):
        assert process.poll() is None, printed_to(data).read_text()
        assert time.monotonic() < deadline, printed_to(data).read_text()
        time.sleep(0.05)  # there is nothing to await across processes
    return found


def line_of(data: Path, part: str) -> str:
    return next((line for line in printed_to(data).read_text().splitlines() if part in line), "")


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=10) as response:  # noqa: S310 - loopback
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False


def refused(*arguments: str, **more: str) -> str:
    """Run `smspulse up` that cannot start; return the only line on standard error."""
    done = subprocess.run(
        [*UP, *arguments], env=environment(**more), capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    return line


def test_the_in_memory_broker_leaves_all_landed_data_in_place(tmp_path: Path) -> None:
    data = tmp_path / "data"
    landed = [data / "raw/date=2026-11-01/sms.raw+0+00000000000000000000.parquet", data / "accepted/2026-11-01.log"]
    for path in landed:
        path.parent.mkdir(parents=True)
        path.write_bytes(b"landed from another broker")
    with started(data, "--port", str(free_port())) as process:
        wait_until(process, data, lambda: line_of(data, "receiving webhooks at"))
        assert [path.read_bytes() for path in landed] == [b"landed from another broker"] * 2
        assert not list(data.glob("before-*"))


def test_every_process_of_a_run_in_memory_gets_the_id_of_the_run(tmp_path: Path) -> None:
    with started(tmp_path / "data", "--port", str(free_port())) as process:
        wait_until(process, tmp_path / "data", lambda: line_of(tmp_path / "data", "ready after"))
        broker = read_broker_file(tmp_path / "data")
        assert broker is not None
        for endpoint in announced(tmp_path / "data"):
            variables = Path(f"/proc/{endpoint.pid}/environ").read_text().split("\0")
            assert f"SMSPULSE_KAFKA_MEMORY_RUN={broker.run_id}" in variables, endpoint


def test_a_kafka_store_without_java_ends_at_once_with_the_cause(tmp_path: Path) -> None:
    (tmp_path / "kafka" / "store").mkdir(parents=True)
    line = refused("--data", str(tmp_path), "--port", str(free_port()), PATH=str(tmp_path))
    assert "holds a Kafka store" in line
    assert "no `java` on PATH" in line


@pytest.mark.parametrize("output", ["a full disk", "a reader that ends after two lines", "a reader that reads nothing"])
def test_output_that_nobody_takes_does_not_stop_the_pipeline(tmp_path: Path, output: str) -> None:
    data, port = tmp_path / "data", free_port()
    reading, writing = os.pipe()
    if output == "a full disk":
        os.dup2(os.open("/dev/full", os.O_WRONLY), writing)
    elif output == "a reader that reads nothing":
        os.write(writing, b"x" * fcntl.fcntl(writing, fcntl.F_GETPIPE_SZ))
    with started(data, "--port", str(port), stdout=writing) as process:
        os.close(writing)
        if output == "a reader that ends after two lines":
            with os.fdopen(reading) as pipe:
                assert [pipe.readline() for _ in range(2)]
        wait_until(process, data, lambda: answers(f"http://127.0.0.1:{port}"))
        names = {"ingest", "lander-up", "stream-0", "page", "alerts"}
        wait_until(process, data, lambda: {each.name for each in announced(data) if each.is_running} == names)
        (killed,) = (each.pid for each in announced(data) if each.name == "ingest")
        os.kill(killed, signal.SIGKILL)
        wait_until(process, data, lambda: killed not in {each.pid for each in announced(data)})
        wait_until(process, data, lambda: answers(f"http://127.0.0.1:{port}"))
    assert process.returncode == 0
    assert printed_to(data).read_text() == "", "no traceback, and nothing else, on standard error"


def test_output_that_cannot_encode_a_line_shows_it_with_escapes(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with started(data, "--port", str(free_port()), PYTHONIOENCODING="ascii", PYTHONUTF8="0") as process:
        wait_until(process, data, lambda: line_of(data, "ready after"))
        assert "ingest \\u2502 receiving webhooks" in printed_to(data).read_text()
    assert process.returncode == 0


def test_a_second_up_on_a_running_folder_is_refused_and_leaves_the_first_alone(tmp_path: Path) -> None:
    data, port = tmp_path / "data", free_port()
    with started(data, "--port", str(port)) as process:
        wait_until(process, data, lambda: line_of(data, "ready after"))
        before = {path.name: path.read_bytes() for path in (data / "run").iterdir()}
        for taken in (port, free_port()):
            line = refused("--data", str(data), "--port", str(taken), "--broker", "memory")
            assert line == (
                f"smspulse: `smspulse up` already runs on {data}: process {process.pid}; stop it, or choose another "
                "folder with --data"
            )
        assert before.items() <= {path.name: path.read_bytes() for path in (data / "run").iterdir()}.items()
        assert answers(f"http://127.0.0.1:{port}")
    assert process.returncode == 0


def test_up_next_to_a_broker_that_somebody_else_started_says_how_to_use_it(tmp_path: Path) -> None:
    with MemoryBroker(tmp_path) as broker:
        line = refused("--data", str(tmp_path), "--port", str(free_port()))
        assert f"a broker already runs on {tmp_path}: process {os.getpid()}" in line
        assert f"--broker {broker.address}" in line


def test_after_a_kill_up_starts_again_at_once_while_its_processes_are_still_ending(tmp_path: Path) -> None:
    data, port = tmp_path / "data", free_port()
    with started(data, "--port", str(port)) as process:
        wait_until(process, data, lambda: line_of(data, "ready after"))
        process.kill()
        process.wait()
    with started(data, "--port", str(port)) as process:
        wait_until(process, data, lambda: line_of(data, "receiving webhooks at"))
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("variables", "cause"),
    [
        ({"SMSPULSE_LANDER_FLUSH_INTERVAL_S": "-1"}, "cannot start: LanderSettings, flush_interval_s: "),
        ({"SMSPULSE_UPKEEP_MINUTES": "inf"}, "UpkeepSettings, minutes: Input should be a finite number"),
        ({"SMSPULSE_PAGE_HOST": "0.0.0.0"}, "page cannot start: the page on 0.0.0.0 needs a password"),  # noqa: S104
        ({"SMSPULSE_KAFKA_PARTITIONS": "6"}, "broker cannot start: The topics of smspulse do not fit together"),
        ({"SMSPULSE_METRICS_PORT": "65535"}, "is no port: set a number up to 65535"),
        ({"SMSPULSE_INGEST_MAX_IN_FLIGHT": "0"}, "IngestSettings, max_in_flight: "),
        ({"SMSPULSE_INGEST_HOST": "192.0.2.1"}, "ingest cannot listen on 192.0.2.1"),
        ({"SMSPULSE_INGEST_SOURCES": "nonsense"}, "ingest cannot start: SMSPULSE_INGEST_SOURCES: entry 1"),
    ],
)
def test_a_process_with_a_wrong_setting_ends_up_with_its_line(
    tmp_path: Path, variables: dict[str, str], cause: str
) -> None:
    line = refused("--data", str(tmp_path / "data"), "--broker", "memory", "--port", str(free_port()), **variables)
    assert cause in line


@pytest.mark.parametrize("host", ["127.0.0.2", "::1", "::"])
def test_on_any_address_ready_status_doctor_and_the_page_find_ingest(tmp_path: Path, host: str) -> None:
    data, port = tmp_path / "data", free_port()
    with started(data, "--port", str(port), SMSPULSE_INGEST_HOST=host) as process:
        ready = wait_until(process, data, lambda: line_of(data, "ready after"))
        url = ready.partition("webhooks at ")[2].partition(",")[0]
        assert answers(url)
        if host == "::":
            assert answers(f"http://127.0.0.1:{port}"), "every address is those of IPv4 too"
        quiet = {name: value for name, value in os.environ.items() if not name.startswith("SMSPULSE_")}
        status = subprocess.run(
            [sys.executable, "-m", "smspulse", "status", "--data", str(data), "--format", "json"],
            env=quiet,
            capture_output=True,
            text=True,
            check=False,
        )
        (ingest,) = (each for each in json.loads(status.stdout)["processes"] if each["name"] == "ingest")
        assert ingest["ok"], ingest
        doctor = subprocess.run(
            [sys.executable, "-m", "smspulse", "doctor", "--data", str(data)],
            env=quiet | {"COLUMNS": "200"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert "an ingest answers there" in doctor.stdout
        (page,) = wait_until(process, data, lambda: [each for each in announced(data) if each.name == "page"])
        with urllib.request.urlopen(f"http://{page.host}:{page.port}/", timeout=60) as response:
            assert "none answers" not in response.read().decode()
    assert process.returncode == 0


def test_a_demo_next_to_sources_of_the_same_names_uses_others(tmp_path: Path) -> None:
    data = tmp_path / "data"
    add_source(data, "demo")
    done = subprocess.run(
        [*UP, "--demo", "--for", "30", "--data", str(data), "--broker", "memory", "--port", str(free_port())],
        env=environment(SMSPULSE_INGEST_SOURCES="mine=a-token-of-the-user"),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "reconciled: " in done.stdout
    assert "/webhooks/mine-2/" in done.stdout
    assert list_sources(data) == {"demo": 1, "demo-2": 1, "mine-2": 1}
    assert not (data / "demo.token").exists()


def test_a_data_path_with_braces_percent_signs_and_the_like_works(tmp_path: Path) -> None:
    data, port = tmp_path / "{raw} {x} %s [a]* 'q' ü#&" / "data", free_port()
    data.parent.mkdir()
    with started(data, "--port", str(port)) as process:
        wait_until(process, data, lambda: line_of(data, "ready after"))
        url = webhook_url(f"http://127.0.0.1:{port}", "mine", add_source(data, "mine"))
        body = (Path(__file__).parents[2] / "examples" / "webhooks" / "status.json").read_bytes()
        assert post(url, body)[0] == 202

        def landed() -> bool:
            try:
                return not query(data, "SELECT 1 FROM messages, raw_webhooks").empty
            except NoWarehouseError:
                return False

        wait_until(process, data, landed)
        assert "ended with code" not in printed_to(data).read_text()
    assert process.returncode == 0


def test_a_user_without_home_and_without_an_entry_in_the_password_database_is_served(tmp_path: Path) -> None:
    nobody = ("unshare", "--user", "--map-user=54321", "--map-group=54321", "env", "-u", "HOME", "-u", "XDG_CACHE_HOME")
    if subprocess.run([*nobody, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this test needs a user of its own, which `unshare` cannot make here")

    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*nobody, sys.executable, "-m", "smspulse", *arguments, "--data", str(tmp_path / "data")],
            env=environment(COLUMNS="300"),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    assert "this user has no home folder" in run("doctor").stdout
    up = run("up", "--broker", "kafka", "--port", str(free_port()))
    assert up.returncode == 2
    assert up.stderr.startswith("smspulse: broker cannot start: A real Kafka cannot be started. Missing: ")
    assert "set XDG_CACHE_HOME to a folder that this user can write" in up.stderr
    views.publish(tmp_path / "data")
    check = run("check")
    assert check.returncode == 0, check.stdout + check.stderr
