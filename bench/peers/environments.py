"""Environments of the peers, created once in the user's cache: virtual environments, and classes of a Java program."""

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from smspulse.broker.download import find_kafka_cache

HERE = Path(__file__).parent
JAVA = HERE / "kafka-streams"


class PeerMissingError(Exception):
    """A peer cannot be set up on this machine. The text is the reason, in one line."""


def python_peer(name: str) -> str:
    """Return the Python of an environment with the packages of `{name}.txt`.

    Raises:
        PeerMissingError: It cannot be made.
    """
    pins = HERE / f"{name}.txt"
    target = _folder(name, [pins])
    python = target / "bin" / "python"
    if not target.is_dir():
        scratch = _scratch(target)
        _run(name, [sys.executable, "-m", "venv", str(scratch)])
        pip = [str(scratch / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _run(name, [*pip, "--no-deps", "--require-hashes", "-r", str(pins)])
        scratch.rename(target)
    return str(python)


def kafka_streams_peer() -> str:
    """Return the Java class path of the Kafka Streams program.

    Raises:
        PeerMissingError: It cannot be compiled.
    """
    sources = [JAVA / "pom.xml", *sorted(JAVA.glob("src/**/*.java"))]
    target = _folder("kafka-streams", sources)
    if not target.is_dir():
        missing = [program for program in ("java", "mvn") if shutil.which(program) is None]
        if missing:
            msg = f"Kafka Streams needs {' and '.join(missing)} on PATH"
            raise PeerMissingError(msg)
        scratch = _scratch(target)
        _run("Kafka Streams", ["mvn", "-B", "-q", "-ntp", "-f", str(JAVA), "package", f"-Dout={scratch}"])
        scratch.rename(target)
    return f"{target / 'classes'}:{target / 'lib'}/*"


def benthos_peer() -> str:
    """Return the program of the Benthos peer.

    Raises:
        PeerMissingError: It cannot be built.
    """
    sources = sorted((HERE / "benthos").iterdir())
    target = _folder("benthos", sources)
    if not target.is_dir():
        if shutil.which("go") is None:
            msg = "Benthos needs go on PATH"
            raise PeerMissingError(msg)
        scratch = _scratch(target)
        _run("Benthos", ["go", "build", "-C", str(HERE / "benthos"), "-o", str(scratch / "benthos"), "."])
        scratch.rename(target)
    return str(target / "benthos")


def _folder(name: str, sources: Sequence[Path]) -> Path:
    """Return the folder of a peer, which exists only if it is complete. Its name changes with the sources."""
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:8]
    return find_kafka_cache().with_name(f"peer-{name}-{digest}")


def _scratch(target: Path) -> Path:
    scratch = target.with_name(f".{target.name}")
    shutil.rmtree(scratch, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    print(f"setting up {target.name} ...", file=sys.stderr)
    return scratch


def _run(name: str, command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        msg = f"{name}: {error}"
        raise PeerMissingError(msg) from error
    if done.returncode:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if "error" in line.lower()]
        msg = f"{name}: {Path(command[0]).name} ended with {done.returncode}: {' '.join(lines[:1])[:300]}"
        raise PeerMissingError(msg)
