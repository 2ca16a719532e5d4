import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from core.atomic_file import write_file_atomically
from smspulse.broker import foreground, kafka_broker
from smspulse.broker.errors import BrokerError, FileLimitError
from smspulse.broker.kafka_broker import build_server_properties, find_last_error_line
from smspulse.broker.lockfile import BrokerFile, acquire_broker_lock, read_broker_file
from smspulse.broker.settings import BrokerSettings


def write_broker_file(data: Path, pid: int) -> None:
    write_file_atomically(data / "broker.json", json.dumps({"bootstrap": "127.0.0.1:1", "kind": "kafka", "pid": pid}))


def test_a_broker_is_found_while_its_lock_is_held(tmp_path: Path) -> None:
    lock = acquire_broker_lock(tmp_path)
    write_broker_file(tmp_path, os.getpid())
    assert read_broker_file(tmp_path) == BrokerFile("127.0.0.1:1", "kafka", os.getpid())
    os.close(lock)
    assert read_broker_file(tmp_path) is None, "the process lives, but it is no broker: its number was used again"


def test_a_broker_file_of_a_dead_process_counts_as_none(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    lock = acquire_broker_lock(tmp_path)
    write_broker_file(tmp_path, dead.pid)
    assert read_broker_file(tmp_path) is None
    os.close(lock)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"bootstrap": 1}', "null"])
def test_a_broken_broker_file_counts_as_none(tmp_path: Path, text: str) -> None:
    lock = acquire_broker_lock(tmp_path)
    (tmp_path / "broker.json").write_text(text)
    assert read_broker_file(tmp_path) is None
    os.close(lock)


def test_a_data_folder_without_a_broker_has_none(tmp_path: Path) -> None:
    assert read_broker_file(tmp_path) is None
    assert read_broker_file(tmp_path / "nowhere") is None
    assert list(tmp_path.iterdir()) == [], "looking leaves nothing behind"


def test_a_second_lock_is_refused_with_the_holder_and_its_address(tmp_path: Path) -> None:
    lock = acquire_broker_lock(tmp_path)
    write_broker_file(tmp_path, os.getpid())
    with pytest.raises(BrokerError, match=rf"{tmp_path}: process {os.getpid()}, at 127\.0\.0\.1:1; use it, stop it"):
        acquire_broker_lock(tmp_path)
    os.close(lock)


def test_a_lock_left_by_a_crash_is_taken(tmp_path: Path) -> None:
    os.close(acquire_broker_lock(tmp_path))
    assert (tmp_path / "kafka" / "lock").read_text() == str(os.getpid())
    os.close(acquire_broker_lock(tmp_path))


def test_the_lock_lives_as_long_as_the_last_process_that_holds_it(tmp_path: Path) -> None:
    lock = acquire_broker_lock(tmp_path)
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(lock,))
    os.close(lock)
    with pytest.raises(BrokerError):
        acquire_broker_lock(tmp_path)
    other.communicate(b"\n")
    os.close(acquire_broker_lock(tmp_path))


def test_kafka_listens_on_loopback_only() -> None:
    text = build_server_properties(1, 2, BrokerSettings())
    lines = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    assert lines["listeners"] == "CLIENTS://127.0.0.1:1,CONTROLLER://127.0.0.1:2"
    assert lines["controller.quorum.voters"] == "1@127.0.0.1:2"


def test_every_batch_is_fsynced_unless_the_setting_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SMSPULSE_BROKER_FLUSH_MESSAGES", raising=False)
    assert "log.flush.interval.messages=1\n" in build_server_properties(1, 2, BrokerSettings())
    monkeypatch.setenv("SMSPULSE_BROKER_FLUSH_MESSAGES", "500")
    assert "log.flush.interval.messages=500\n" in build_server_properties(1, 2, BrokerSettings())


@pytest.mark.parametrize(
    ("log", "output", "words"),
    [
        (
            "2026-01-01 ERROR Exiting Kafka due to fatal exception (kafka.Kafka$)\n"
            "java.lang.RuntimeException: Failed to start\n\tat kafka.Kafka.main(Kafka.scala)\n"
            "Caused by: java.net.BindException: Address already in use\n\tat java.base/x.y(Z.java:1)\n",
            "",
            "Address already in use",
        ),
        (
            "2026-01-01 INFO  starting\n2026-01-01 ERROR Shutdown: the disk failed (a.B)\n",
            "",
            "Shutdown: the disk failed (a.B)",
        ),
        ("", "Error: Invalid maximum heap size: -Xmx1m\n", "Error: Invalid maximum heap size: -Xmx1m"),
        ("", "", "its log is empty"),
    ],
)
def test_the_last_words_of_kafka_are_its_cause(tmp_path: Path, log: str, output: str, words: str) -> None:
    (tmp_path / "log").write_text(log)
    (tmp_path / "out").write_text(output)
    assert find_last_error_line(tmp_path / "out", tmp_path / "log") == words


def test_the_last_words_are_of_this_run_even_after_the_log_was_rotated(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("2026-01-01 ERROR old\n")
    start = log.stat().st_size
    with log.open("a") as file:
        file.write("2026-01-01 ERROR new\n")
    assert find_last_error_line(tmp_path / "out", log, start) == "new"
    log.write_text("2026-01-01 ERROR x\n")
    assert find_last_error_line(tmp_path / "out", log, start) == "x"


def limited(soft: int, hard: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_too_few_open_files_refuse_kafka_before_it_touches_its_store(tmp_path: Path) -> None:
    segments = tmp_path / "kafka" / "store" / "sms.raw-0"
    segments.mkdir(parents=True)
    for number in range(100):
        (segments / f"{number:020d}.log").touch()
    program = "import sys; from pathlib import Path; from smspulse.broker.kafka_broker import KafkaBroker; "
    program += "KafkaBroker(Path(sys.argv[1])).start()"
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=limited(128, 711),
    )
    assert "FileLimitError: Kafka needs 712 open files, and this process may have 711; " in done.stderr
    assert not (tmp_path / "kafka" / "server.properties").exists()
    doctor = subprocess.run(
        [sys.executable, "-m", "smspulse", "doctor", "--data", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"COLUMNS": "200"},
        preexec_fn=limited(711, 711),
    )
    assert "711 are allowed, and Kafka needs 712" in doctor.stdout


def test_a_broker_that_too_few_open_files_refuse_knows_that_no_restart_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(foreground, "choose_broker", lambda data, *_, **__: kafka_broker.KafkaBroker(data))
    monkeypatch.setattr(kafka_broker, "count_needed_files", lambda _: sys.maxsize + 1)
    monkeypatch.setattr(kafka_broker, "fetch_kafka", lambda: pytest.fail("Kafka is not refused"))
    with pytest.raises(FileLimitError) as caught:
        foreground.run_broker(tmp_path, "kafka")
    assert caught.value.is_permanent, "the command reports that to its supervisor"


def test_the_soft_limit_of_open_files_is_raised_to_the_hard_one() -> None:
    program = "from smspulse.processes.children import raise_file_limit as up; import resource; "
    program += "print(up(), *resource.getrlimit(resource.RLIMIT_NOFILE))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, preexec_fn=limited(128, 1000)
    )
    assert done.stdout.split() == ["1000"] * 3


STOPPED_IN_A_CLEAN_UP = """
import os, signal, sys, threading
from pathlib import Path
from smspulse.broker.foreground import run_broker

def ready():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(0.1)
    except BaseException:
        pass  # as in a destructor, of whose exceptions Python only prints a line
    threading.Event().wait(float(sys.argv[2]))

run_broker(Path(sys.argv[1]), "memory", on_ready=ready)
"""


@pytest.mark.parametrize("longer_s", [0, 1000])
def test_a_stop_request_is_neither_lost_in_what_a_client_does_nor_waits_for_it(tmp_path: Path, longer_s: int) -> None:
    """An exception in the signal handler was lost, or broke a clean-up: one stop in twenty soon after the start."""
    done = subprocess.run(
        [sys.executable, "-c", STOPPED_IN_A_CLEAN_UP, str(tmp_path), str(longer_s)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert not (tmp_path / "broker.json").exists()
