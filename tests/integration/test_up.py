"""`smspulse up` as an operator uses it: refused settings, survived faults, and data that it must not change."""

import fcntl
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme
from commands import invoke
from running import post

from ingest.sources import add_source, list_sources, webhook_url
from smspulse.broker.embedded import MemoryBroker
from smspulse.broker.locate import find_kafka_settings
from smspulse.broker.lockfile import read_broker_file
from smspulse.broker.topic_admin import ensure_topics
from smspulse.dashboard.queries import PageFilter, PageSnapshot
from smspulse.dashboard.rendering import render_content
from smspulse.processes.children import NEVER_READY, READY_FD_VARIABLE, find_free_port, find_listen_error
from smspulse.processes.metrics_endpoint import list_endpoints
from smspulse.runtime.status import collect_pipeline_status
from warehouse import catalog
from warehouse.errors import NoWarehouseError
from warehouse.reader import query

PATIENCE_S = 180
SMSPULSE = (sys.executable, "-m", "smspulse")
UP = (*SMSPULSE, "up")
EXAMPLE = (Path(__file__).parents[2] / "examples" / "webhooks" / "status.json").read_bytes()
ANSWERING = {"ingest", "lander-up", "stream-0", "page", "alerts"}
"""Processes of a pipeline that publish their address."""


def answering(data: Path) -> set[str]:
    return {each.name for each in list_endpoints(data) if each.read_metrics() is not None}


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"SMSPULSE_BROKER_PORT": "0", "SMSPULSE_BROKER_CONTROLLER_PORT": "0"} | more


@contextmanager
def started(data: Path, *arguments: str, stdout: Any = None, **more: str) -> Iterator["subprocess.Popen[str]"]:
    """Start `smspulse up` in memory, yield it, and stop it at the end. Its output is in `printed_to(data)`."""
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


def wait_until(process: "subprocess.Popen[str]", log: Path, holds: Callable[[], Any]) -> Any:
    """Wait until a condition holds while the process runs; return its value."""
    deadline = time.monotonic() + PATIENCE_S
    began = time.monotonic()
    while not (found := holds()):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        # No event is available across processes, and they need the processor.
        time.sleep(max(0.1, 2 * (time.monotonic() - began)))
        began = time.monotonic()
    return found


def line_of(log: Path, part: str) -> str:
    return next((line for line in log.read_text().splitlines() if part in line), "")


def answers(url: str, trusting: ssl.SSLContext | None = None) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=10, context=trusting) as response:  # noqa: S310 - loopback
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False


def refused(*arguments: str, **more: str) -> str:
    """Run `smspulse up` with a cause that prevents its start; return the only line on standard error."""
    done = subprocess.run(
        [*UP, *arguments], env=environment(**more), capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    return line


def kill_ingest_and_wait(process: "subprocess.Popen[str]", data: Path, url: str) -> None:
    """Kill ingest, and wait until its successor answers."""
    (killed,) = (each.pid for each in list_endpoints(data) if each.name == "ingest")
    os.kill(killed, signal.SIGKILL)
    wait_until(process, printed_to(data), lambda: killed not in {each.pid for each in list_endpoints(data)})
    wait_until(process, printed_to(data), lambda: answers(url))


def assert_ingest_is_found(data: Path) -> None:
    """Assert that `status` and `doctor` find ingest without its address."""
    quiet: dict[str, str | None] = {name: None for name in os.environ if name.startswith("SMSPULSE_")}
    quiet["COLUMNS"] = "200"
    status = invoke("status", "--data", str(data), "--format", "json", environment=quiet)
    (ingest,) = (each for each in json.loads(status.stdout)["processes"] if each["name"] == "ingest")
    assert ingest["ok"], ingest
    doctor = invoke("doctor", "--data", str(data), environment=quiet)
    assert "an ingest answers there" in doctor.stdout, doctor.output


@dataclass
class Unusual:
    """A running `smspulse up` in memory with unusual settings."""

    process: "subprocess.Popen[str]"
    data: Path
    log: Path
    port: int
    first_metrics_port: int
    ready: str
    trusting: ssl.SSLContext

    @property
    def url(self) -> str:
        return self.ready.partition("webhooks at ")[2].partition(",")[0]


@pytest.fixture(scope="module")
def unusual(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Unusual]:
    """A pipeline with special characters in its path, an IPv6 address, HTTPS, two receivers, and output in ASCII."""
    data = tmp_path_factory.mktemp("unusual") / "{raw} {x} %s [a]* 'q' ü#&" / "data"
    data.parent.mkdir()
    authority, trusting = trustme.CA(), ssl.create_default_context()
    authority.configure_trust(trusting)
    pem = data.parent / "both.pem"
    authority.issue_cert("::1").private_key_and_cert_chain_pem.write_to_path(pem)
    host, log = "::1", printed_to(data)
    port = find_free_port(0, host)
    first = next(
        first
        for first in iter(find_free_port, 0)
        if find_listen_error(first + 1) is None and find_listen_error(first + 2) is None
    )
    variables = {
        "SMSPULSE_INGEST_HOST": host,
        "SMSPULSE_INGEST_TLS_CERT": str(pem),
        "SMSPULSE_INGEST_PROCESSES": "2",
        "SMSPULSE_METRICS_PORT": str(first),
        "PYTHONIOENCODING": "ascii",
        "PYTHONUTF8": "0",
    }
    with started(data, "--port", str(port), **variables) as process:
        ready = wait_until(process, log, lambda: line_of(log, "ready after"))
        wait_until(process, log, lambda: answering(data) == ANSWERING)
        yield Unusual(process, data, log, port, first, ready, trusting)
    assert process.returncode == 0
    assert "ended with code" not in log.read_text()


def test_at_an_ipv6_address_status_doctor_and_the_page_find_several_receivers_over_https(
    unusual: Unusual,
) -> None:
    assert unusual.url == f"https://[::1]:{unusual.port}"
    assert answers(unusual.url, unusual.trusting)
    assert_ingest_is_found(unusual.data)
    processes = collect_pipeline_status(unusual.data, "auto", unusual.port)["processes"]
    assert [row["ok"] for row in processes if row["name"] == "ingest"] == [True], processes
    (page,) = (each for each in list_endpoints(unusual.data) if each.name == "page")
    with urllib.request.urlopen(f"http://{page.host}:{page.port}/", timeout=60) as response:
        assert "none answers" not in response.read().decode()


def test_webhooks_land_on_a_data_path_with_special_characters(unusual: Unusual) -> None:
    url = webhook_url(unusual.url, "mine", add_source(unusual.data, "mine"))
    for number in range(4):
        assert post(url, EXAMPLE.replace(b"48210377", b"%d" % number), unusual.trusting)[0] == 202

    def landed() -> bool:
        try:
            return (
                len(query(unusual.data, "SELECT DISTINCT sms_id FROM messages JOIN raw_webhooks USING (sms_id)")) == 4
            )
        except NoWarehouseError:
            return False

    wait_until(unusual.process, unusual.log, landed)


def test_output_that_cannot_encode_a_line_shows_it_with_escapes(unusual: Unusual) -> None:
    assert "ingest \\u2502 receiving webhooks" in unusual.log.read_text()


def test_every_process_of_a_run_in_memory_gets_the_id_of_the_run_and_its_own_port_for_metrics(
    unusual: Unusual,
) -> None:
    broker = read_broker_file(unusual.data)
    assert broker is not None
    endpoints = list(list_endpoints(unusual.data))
    assert {each.name for each in endpoints} == ANSWERING
    for endpoint in endpoints:
        variables = Path(f"/proc/{endpoint.pid}/environ").read_text().split("\0")
        assert f"SMSPULSE_KAFKA_MEMORY_RUN={broker.run_id}" in variables, endpoint
    ports = {each.name: each.port - unusual.first_metrics_port for each in endpoints}
    assert (ports["lander-up"], ports["alerts"], ports["stream-0"]) == (0, 1, 2)


def test_a_second_up_on_a_running_folder_is_refused_and_leaves_the_first_alone(unusual: Unusual) -> None:
    data = unusual.data
    before = {path.name: path.read_bytes() for path in (data / "run").iterdir()}
    for taken in (unusual.port, find_free_port()):
        line = refused("--data", str(data), "--port", str(taken), "--broker", "memory")
        assert line == (
            f"smspulse: `smspulse up` already runs on {data}: process {unusual.process.pid}; stop it, or choose "
            "another folder with --data"
        )
    assert before.items() <= {path.name: path.read_bytes() for path in (data / "run").iterdir()}.items()
    assert answers(unusual.url, unusual.trusting)


def test_after_a_kill_up_restarts_at_once_with_its_landed_data_and_its_output_on_a_full_disk(
    tmp_path: Path,
) -> None:
    data, port, log = tmp_path / "data", find_free_port(), printed_to(tmp_path / "data")
    url = f"http://127.0.0.1:{port}"
    with started(data, "--port", str(port)) as process:
        wait_until(process, log, lambda: line_of(log, "receiving webhooks at"))
        assert post(webhook_url(url, "mine", add_source(data, "mine")), EXAMPLE)[0] == 202
        wait_until(process, log, lambda: list(data.glob("raw/date=*/*.parquet")))
        process.kill()
        process.wait()
    kept = [path for kind in ("raw", "accepted") for path in (data / kind).rglob("*") if path.is_file()]
    landed = {path: path.read_bytes() for path in kept}
    assert {path.relative_to(data).parts[0] for path in landed} == {"raw", "accepted"}
    # The processes of the first pipeline are still ending.
    with Path("/dev/full").open("w") as full, started(data, "--port", str(port), stdout=full) as process:
        wait_until(process, log, lambda: answers(url))
        wait_until(process, log, lambda: answering(data) == ANSWERING)
        kill_ingest_and_wait(process, data, url)
        assert {path: path.read_bytes() for path in landed} == landed, "another broker leaves it in place"
        assert not list(data.glob("before-*"))
    assert process.returncode == 0
    assert log.read_text() == "", "no traceback, and nothing else, on standard error"


def test_a_blocked_reader_that_then_ends_does_not_stop_a_demo_which_a_signal_stops(tmp_path: Path) -> None:
    data, port = tmp_path / "data", find_free_port()
    reading, writing = os.pipe()
    url, log = f"http://127.0.0.1:{port}", printed_to(data)
    # The reader stopped long ago, so the pipe has no space for a line.
    room = fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    os.write(writing, b"x" * (room - 1) + b"\n")
    with started(data, "--port", str(port), "--demo", stdout=writing) as process:
        os.close(writing)
        wait_until(process, log, lambda: answers(url))
        wait_until(process, log, lambda: answering(data) == ANSWERING)
        kill_ingest_and_wait(process, data, url)
        with os.fdopen(reading) as pipe:
            assert pipe.readline().startswith("xxx")
            assert [pipe.readline() for _ in range(2)]
        kill_ingest_and_wait(process, data, url)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert log.read_text() == "", "no traceback, and nothing else, on standard error"


def test_a_kafka_store_without_java_ends_at_once_with_the_cause(tmp_path: Path) -> None:
    (tmp_path / "kafka" / "store").mkdir(parents=True)
    line = refused("--data", str(tmp_path), "--port", str(find_free_port()), PATH=str(tmp_path))
    assert "holds a Kafka store" in line
    assert "no `java` on PATH" in line


def test_up_next_to_the_broker_of_another_process_names_the_option_to_use_it(tmp_path: Path) -> None:
    with MemoryBroker(tmp_path) as broker:
        line = refused("--data", str(tmp_path), "--port", str(find_free_port()))
        assert f"a broker already runs on {tmp_path}: process {os.getpid()}" in line
        assert f"--broker {broker.address}" in line


@pytest.mark.parametrize(
    ("variables", "cause"),
    [
        ({"SMSPULSE_UPKEEP_MINUTES": "inf"}, "MaintenanceSettings, minutes: Input should be a finite number"),
        # The line of a child process.
        ({"SMSPULSE_KAFKA_PARTITIONS": "6"}, "broker cannot start: The topics of smspulse do not fit together"),
        ({"SMSPULSE_INGEST_MAX_IN_FLIGHT": "0"}, "IngestSettings, max_in_flight: "),
        ({"SMSPULSE_INGEST_HOST": "192.0.2.1"}, "ingest cannot listen on 192.0.2.1"),
    ],
)
def test_a_wrong_setting_ends_up_with_one_line(tmp_path: Path, variables: dict[str, str], cause: str) -> None:
    line = refused("--data", str(tmp_path / "data"), "--broker", "memory", "--port", str(find_free_port()), **variables)
    assert cause in line


@pytest.mark.parametrize(
    ("command", "variables", "cause"),
    [
        (["land"], {"SMSPULSE_LANDER_FLUSH_INTERVAL_S": "-1"}, "LanderSettings, flush_interval_s: "),
        (["page"], {"SMSPULSE_PAGE_HOST": "0.0.0.0"}, "the page on 0.0.0.0 needs a password"),  # noqa: S104
        (
            ["alerts", "send"],
            {"SMSPULSE_METRICS_PORT": "65536"},
            "MetricsSettings, port: Input should be less than or equal to 65535",
        ),
        (["ingest"], {"SMSPULSE_INGEST_SOURCES": "nonsense"}, "SMSPULSE_INGEST_SOURCES: entry 1"),
    ],
)
def test_a_process_with_a_wrong_setting_reports_to_up_that_it_can_never_start_and_ends_with_its_line(
    tmp_path: Path, command: Sequence[str], variables: dict[str, str], cause: str
) -> None:
    reading, writing = os.pipe()
    with MemoryBroker(tmp_path) as broker:
        ensure_topics(find_kafka_settings(tmp_path, "auto"))
        run = {"SMSPULSE_KAFKA_MEMORY_RUN": broker.run_id, READY_FD_VARIABLE: str(writing), "SMSPULSE_INGEST_PORT": "0"}
        done = subprocess.run(
            [*SMSPULSE, *command, "--data", str(tmp_path)],
            env=environment(**run, **variables),
            pass_fds=(writing,),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
    os.close(writing)
    with os.fdopen(reading, "rb") as report:
        assert report.read() == NEVER_READY, done.stderr
    assert done.returncode == 2
    line = done.stderr.splitlines()[-1]
    assert line.startswith("ERROR ")
    assert cause in line


@pytest.mark.parametrize("host", ["127.0.0.2", "::"])
def test_on_any_address_status_doctor_and_the_page_assert_ingest_is_found(tmp_path: Path, host: str) -> None:
    data, port, log = tmp_path / "data", find_free_port(), tmp_path / "log"
    nobody = f"127.0.0.1:{find_free_port()}"
    arguments = ("--data", str(data), "--broker", nobody, "--port", str(port), "--host", host)
    with log.open("w") as out:
        process = subprocess.Popen([*SMSPULSE, "ingest", *arguments], stderr=out, text=True)
    try:
        line = wait_until(process, log, lambda: line_of(log, "receiving webhooks at "))
        assert answers(line.partition("receiving webhooks at ")[2])
        if host == "::":
            assert answers(f"http://127.0.0.1:{port}"), "every address is those of IPv4 too"
        assert_ingest_is_found(data)
        numbers = PageSnapshot(data, lambda: collect_pipeline_status(data, "auto"))
        numbers.refresh()
        (shown,) = re.findall(r"<tr[^>]*>(?:(?!<tr).)*ingest.*?</tr>", render_content(numbers, PageFilter()), re.DOTALL)
        assert f"port {port}" in shown
    finally:
        process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0


def test_a_demo_without_java_next_to_sources_of_the_same_names_uses_the_in_memory_broker_and_other_names(
    tmp_path: Path,
) -> None:
    data = tmp_path / "data"
    add_source(data, "demo")
    done = subprocess.run(
        [*UP, "--demo", "--for", "30", "--data", str(data), "--port", str(find_free_port())],
        env=environment(SMSPULSE_INGEST_SOURCES="mine=a-token-of-the-user", PATH=str(tmp_path)),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("USING THE IN-MEMORY BROKER") == 1
    assert "reconciled: " in done.stdout
    assert "/webhooks/mine-2/" in done.stdout
    assert list_sources(data) == {"demo": 1, "demo-2": 1, "mine-2": 1}
    assert not (data / "demo.token").exists()


def test_up_works_for_a_user_without_home_and_without_an_entry_in_the_password_database(tmp_path: Path) -> None:
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
    up = run("up", "--broker", "kafka", "--port", str(find_free_port()))
    assert up.returncode == 2
    assert up.stderr.startswith("smspulse: broker cannot start: A real Kafka cannot be started. Missing: ")
    assert "set XDG_CACHE_HOME to a folder that this user can write" in up.stderr
    catalog.publish_views(tmp_path / "data")
    check = run("check")
    assert check.returncode == 0, check.stdout + check.stderr
