"""Download of Apache Kafka's jars. Maven fetches them once, and they stay in the user's cache."""

import hashlib
import logging
import os
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Final

from smspulse.broker.errors import BrokerError
from smspulse.broker.settings import CacheSettings
from smspulse.processes.children import die_with_parent, ensure_home
from smspulse.processes.data_folder import use_original_umask

log = logging.getLogger(__name__)

# The folder with the pom, the fixed options and the log configuration of Kafka.
RESOURCES: Final = Path(__file__).with_name("kafka")
POM = RESOURCES / "pom.xml"
# Kafka 4's brokers are compiled for it.
JAVA_NEEDED = 17
# For 45 MB on a slow line.
FETCH_TIMEOUT_S = 300


def read_kafka_version() -> str:
    """Return the version of Kafka that the embedded broker runs."""
    found = re.search(r"<kafka\.version>(.+)</kafka\.version>", POM.read_text(encoding="utf-8"))
    if found is None:
        message = f"{POM} does not name a version of Kafka; reinstall smspulse"
        raise BrokerError(message)
    return found[1]


def find_kafka_cache() -> Path:
    """Return the folder of the jars. It exists only once it is complete. Its name changes with the pom.

    Raises:
        BrokerError: This user has no home folder, and the environment names no cache.
    """
    ensure_home()
    cache = CacheSettings().home
    if not cache and str(Path.home()) == os.devnull:
        message = (
            "Kafka's jars have no folder: HOME and XDG_CACHE_HOME are unset, and this user has no home folder; "
            "set XDG_CACHE_HOME to a folder that this user can write"
        )
        raise BrokerError(message)
    cache = cache or str(Path.home() / ".cache")
    # Another pom gets another folder, so versions do not mix.
    digest = hashlib.sha256(POM.read_bytes()).hexdigest()[:8]
    return Path(cache, "smspulse", f"kafka-{read_kafka_version()}-{digest}")


def is_kafka_cached() -> bool:
    """Return whether the jars are in the cache.

    Raises:
        BrokerError: They are there, but this user cannot read them; or there is no cache.
    """
    folder = find_kafka_cache()
    try:
        for jar in folder.iterdir():
            jar.open("rb").close()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        message = (
            f"Kafka's jars cannot be read: {error.filename}: {error.strerror}; give this user access, or set "
            "XDG_CACHE_HOME to another folder"
        )
        raise BrokerError(message) from error
    return True


def read_java_version() -> int | None:
    """Return the major version of the `java` on PATH; None without a working one."""
    try:
        done = subprocess.run(["java", "-version"], capture_output=True, text=True, timeout=30, check=False)  # noqa: S607 - of PATH
    except (OSError, subprocess.TimeoutExpired):
        return None
    # `openjdk version "17.0.15"`; Java 8 prints "1.8.0".
    found = re.search(r'version "(?:1\.)?(\d+)', done.stderr + done.stdout)
    return int(found[1]) if found else None


def list_missing_programs() -> list[str]:
    """Return a text for each program that a real Kafka lacks on this machine, with the fix; empty if none."""
    missing = []
    java, version = shutil.which("java"), read_java_version()
    if java is None:
        missing.append(f"Java {JAVA_NEEDED} or newer (there is no `java` on PATH; install a JRE and put it there)")
    elif version is None:
        missing.append(f"Java {JAVA_NEEDED} or newer ({java} does not work; see what `java -version` prints)")
    elif version < JAVA_NEEDED:
        missing.append(f"Java {JAVA_NEEDED} or newer (`java` on PATH is {version})")
    try:
        if not is_kafka_cached() and shutil.which("mvn") is None:
            missing.append("Maven, which fetches Kafka once (install it and put `mvn` on PATH)")
    except BrokerError as error:
        missing.append(str(error))
    return missing


def fetch_kafka() -> Path:
    """Return the folder of Kafka's jars (45 MB), fetching them first if the cache does not have them.

    The folder appears in one step. So an interrupted fetch leaves no partial folder, and two fetches at once are safe.

    Raises:
        BrokerError: Maven failed, or the cache cannot be read or written.
    """
    target = find_kafka_cache()
    if is_kafka_cached():
        return target
    log.info("Fetching Apache Kafka %s into %s", read_kafka_version(), target)
    try:
        # Other users may share the cache.
        with use_original_umask():
            _fill_cache(target)
    except OSError as error:
        message = f"Kafka's jars cannot be stored in {target.parent}: {error.strerror}; free it or set XDG_CACHE_HOME"
        raise BrokerError(message) from error
    return target


def _fill_cache(target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    # Scratch folders of killed fetches are older than any fetch can be.
    for folder in target.parent.glob(".fetch-*"):
        if time.time() - folder.stat().st_mtime > 2 * FETCH_TIMEOUT_S:
            shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=target.parent) as scratch:
        jars = Path(scratch, "jars")
        _copy_dependencies(jars)
        try:
            jars.rename(target)
        except OSError:
            # If the folder exists, another process was faster. Its jars are the same.
            if not target.is_dir():
                raise


def _copy_dependencies(target: Path) -> None:
    # Maven runs on a copy: it may write next to the pom, and the folder of the package may be read-only.
    pom = shutil.copy(POM, target.parent)
    goal = ["dependency:copy-dependencies", f"-DoutputDirectory={target}", "-DincludeScope=runtime"]
    try:
        done = subprocess.run(  # noqa: S603
            ["mvn", "-B", "-q", "-ntp", "-f", str(pom), *goal],  # noqa: S607 - of PATH
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=FETCH_TIMEOUT_S,
            check=False,
            preexec_fn=die_with_parent(),
        )
    except subprocess.TimeoutExpired as error:
        message = f"Maven did not fetch Kafka within {FETCH_TIMEOUT_S} s; see whether it reaches its repository"
        raise BrokerError(message) from error
    if done.returncode != 0 or not any(target.glob("kafka_*.jar")):
        lines = [line for line in (done.stdout + done.stderr).splitlines() if "[ERROR]" in line]
        reason = lines[0].replace("[ERROR]", "").strip()[:400] if lines else f"exit code {done.returncode}"
        message = f"Maven could not fetch Kafka: {reason}; see whether it reaches its repository, then start again"
        raise BrokerError(message)
