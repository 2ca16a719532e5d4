import os
import select
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from privileges import run_unprivileged

from smspulse.broker.download import fetch_kafka, find_kafka_cache, list_missing_programs
from smspulse.broker.embedded import MemoryBroker
from smspulse.broker.errors import BrokerError
from smspulse.broker.foreground import choose_broker


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on PATH; the cache is empty."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def program(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


# Has the same effect on the file system as the goal copy-dependencies.
COPY = 'for a; do case "$a" in -DoutputDirectory=*) d="${a#*=}"; esac; done; /bin/mkdir "$d"; : > "$d/kafka_2.13.jar"'


def test_without_java_and_maven_both_are_named_with_the_remedy(tools: Path) -> None:
    java, maven = list_missing_programs()
    assert "Java 17 or newer (there is no `java` on PATH; install" in java
    assert "Maven" in maven
    assert "`mvn` on PATH" in maven


@pytest.mark.parametrize(
    ("output", "missing"),
    [
        ('openjdk version "17.0.15" 2025-04-15', False),
        ('openjdk version "11.0.2"', True),
        ('java version "1.8.0_392"', True),
    ],
)
def test_java_must_be_17_or_newer(tools: Path, output: str, missing: bool) -> None:
    program(tools, "java", f"echo '{output}' >&2")
    program(tools, "mvn", "exit 0")
    assert bool(list_missing_programs()) is missing


def test_maven_is_not_needed_once_the_jars_are_cached(tools: Path) -> None:
    program(tools, "java", "echo 'openjdk version \"21\"' >&2")
    find_kafka_cache().mkdir(parents=True)
    assert list_missing_programs() == []
    assert fetch_kafka() == find_kafka_cache()


def test_downloaded_jars_appear_atomically_and_nothing_else_is_left(tools: Path) -> None:
    program(tools, "mvn", COPY)
    folder = fetch_kafka()
    assert [jar.name for jar in folder.iterdir()] == ["kafka_2.13.jar"]
    assert list(folder.parent.iterdir()) == [folder]


def test_a_failed_download_leaves_nothing_and_has_the_error_of_maven(tools: Path) -> None:
    program(tools, "mvn", f"{COPY}; echo '[ERROR] Could not resolve host'; echo '[ERROR] Re-run with -X'; exit 1")
    with pytest.raises(BrokerError, match=r"^Maven could not fetch Kafka: Could not resolve host; see .*$"):
        fetch_kafka()
    assert list(find_kafka_cache().parent.iterdir()) == []


def test_a_killed_download_leaves_no_cache_and_no_maven(tools: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    program(tools, "mvn", f"{COPY}; echo $$ > {pipe}; exec /bin/sleep 60")
    fetching = subprocess.Popen(
        [sys.executable, "-c", "from smspulse.broker.download import fetch_kafka; fetch_kafka()"]
    )
    maven = os.pidfd_open(int(pipe.read_text()))
    fetching.kill()
    fetching.wait()
    assert select.select([maven], [], [], 10)[0], "Maven went on after the process that wanted its work"
    os.close(maven)
    assert not find_kafka_cache().exists()
    program(tools, "mvn", COPY)
    assert fetch_kafka().is_dir()


def test_a_read_only_cache_is_reported_in_one_line(tools: Path, tmp_path: Path) -> None:
    program(tools, "mvn", COPY)
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(BrokerError, match=r"cannot be stored in .*: Not a directory; .* XDG_CACHE_HOME$"):
        fetch_kafka()


def test_a_real_kafka_without_java_is_refused_with_the_missing_programs(tools: Path, tmp_path: Path) -> None:
    with pytest.raises(BrokerError, match=r"^A real Kafka cannot be started. Missing: Java 17 .*; Maven"):
        choose_broker(tmp_path, "kafka")


def test_without_java_the_in_memory_broker_is_chosen_with_one_warning(
    tools: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert isinstance(choose_broker(tmp_path, "auto"), MemoryBroker)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    for part in ("IN-MEMORY", "nothing survives a restart", "5 MiB", "Java 17", "Maven", "put `mvn` on PATH"):
        assert part in record.getMessage()
    assert "\n" not in record.getMessage()


def test_a_failed_download_counts_as_missing(tools: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    program(tools, "java", "echo 'openjdk version \"21\"' >&2")
    program(tools, "mvn", "echo '[ERROR] Unknown host'; exit 1")
    assert isinstance(choose_broker(tmp_path, "auto"), MemoryBroker)
    assert "Unknown host" in caplog.text


def no_java(tools: Path) -> None:
    find_kafka_cache().mkdir(parents=True)


def broken_java(tools: Path) -> None:
    find_kafka_cache().mkdir(parents=True)
    program(tools, "java", "exit 1")


def old_java(tools: Path) -> None:
    find_kafka_cache().mkdir(parents=True)
    program(tools, "java", "echo 'openjdk version \"11.0.2\"' >&2")


def no_jars_and_no_maven(tools: Path) -> None:
    program(tools, "java", "echo 'openjdk version \"21\"' >&2")


def no_jars_and_no_network(tools: Path) -> None:
    program(tools, "java", "echo 'openjdk version \"21\"' >&2")
    program(tools, "mvn", "echo '[ERROR] Unknown host'; exit 1")


@pytest.mark.parametrize(
    ("lack", "cause"),
    [
        (no_java, "no `java` on PATH"),
        (broken_java, "java does not work"),
        (old_java, "`java` on PATH is 11"),
        (no_jars_and_no_maven, "put `mvn` on PATH"),
        (no_jars_and_no_network, "Unknown host"),
    ],
)
def test_on_a_folder_with_a_kafka_store_auto_names_the_cause_and_starts_nothing(
    tools: Path, tmp_path: Path, lack: Callable[[Path], None], cause: str
) -> None:
    lack(tools)
    (tmp_path / "kafka" / "store").mkdir(parents=True)
    with pytest.raises(BrokerError, match="holds a Kafka store") as raised:
        choose_broker(tmp_path, "auto")
    assert cause in str(raised.value)
    assert "\n" not in str(raised.value)
    assert isinstance(choose_broker(tmp_path, "memory"), MemoryBroker), "the override"


def test_unreadable_jars_are_named_and_do_not_select_the_in_memory_broker(tools: Path, tmp_path: Path) -> None:
    program(tools, "java", "echo 'openjdk version \"21\"' >&2")
    find_kafka_cache().mkdir(parents=True)
    (find_kafka_cache() / "kafka_2.13.jar").touch()
    (tmp_path / "data" / "kafka" / "store").mkdir(parents=True)
    (tmp_path / "data").chmod(0o700)
    for hidden in (find_kafka_cache() / "kafka_2.13.jar", find_kafka_cache(), tmp_path / "cache"):
        mode = hidden.stat().st_mode
        hidden.chmod(0)
        done = run_unprivileged("-m", "smspulse", "broker", "--data", str(tmp_path / "data"))
        hidden.chmod(mode)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert "holds a Kafka store" in line
        assert f"Kafka's jars cannot be read: {find_kafka_cache()}" in line
        assert "Permission denied" in line


def test_a_chosen_in_memory_broker_causes_no_warning(
    tools: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert isinstance(choose_broker(tmp_path, "memory"), MemoryBroker)
    assert caplog.records == []
