"""The files by which a data folder says that a broker runs on it: a lock, and `broker.json` with the address."""

import fcntl
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import msgspec

from smspulse.broker.download import BrokerError
from smspulse.processes.children import LOOPBACK, is_process_alive

Kind = Literal["kafka", "memory"]

_LOCK_MODE: Final = 0o644  # but for the umask; a group that reads the folder sees by it whether a broker runs
_READER_PATIENCE_S: Final = 2.0  # a reader of broker.json holds the lock for an instant, on a busy machine for longer
_DYING_PATIENCE_S: Final = 10  # how long the JVM of a killed broker may take to let go of it


@dataclass(frozen=True, slots=True)
class BrokerFile:
    """The running broker, as `{data}/broker.json` has it.

    Args:
        bootstrap: Its address.
        kind: A real Kafka, or the in-memory broker.
        pid: The process to stop it by.
        run_id: Id of this run of the broker, a UUID. The in-memory broker's offsets mean something only within it.
        has_login: Whether it lets in only who has the login of the data folder.
    """

    bootstrap: str
    kind: Kind
    pid: int
    run_id: str = ""
    has_login: bool = False

    @property
    def memory_run(self) -> str:
        """The run's id if the broker is the in-memory one, else empty: a real Kafka's topics have ids of their own."""
        return self.run_id if self.kind == "memory" else ""


def read_broker_file(data: Path) -> BrokerFile | None:
    """Return where the data folder's broker is, or None if none is running (a stale file counts as none).

    The embedded broker listens on loopback alone: a file that names another address is none of ours.
    """
    try:
        found = msgspec.json.decode((data / "broker.json").read_bytes(), type=BrokerFile)
        held = not _is_lock_free(data)
    except (OSError, msgspec.DecodeError):
        return None
    is_ours = found.bootstrap.startswith(f"{LOOPBACK}:")
    return found if is_ours and held and is_process_alive(found.pid) else None


def has_kafka_store(data: Path) -> bool:
    """Return whether a real Kafka has kept its data in the folder."""
    return os.path.lexists(data / "kafka" / "store")


def write_file_atomically(path: Path, text: str, mode: int = 0o666) -> None:
    """Write a file so that no reader ever sees a part of it.

    Args:
        path: Where; a file that is there is replaced.
        text: Its content.
        mode: Its rights, of which the umask takes some.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.unlink(missing_ok=True)  # a crash may have left it, with other rights
    with open(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as file:
        file.write(text)
    scratch.replace(path)


def _is_lock_free(data: Path) -> bool:
    """Say whether no broker runs on the data folder. Raises OSError where there is no lock to look at."""
    try:
        file = (data / "kafka" / "lock").open("rb")
    except PermissionError:  # of another user, from before locks could be read by others
        return False
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def acquire_broker_lock(data: Path) -> int:
    """Return the descriptor that holds the data folder's lock until every copy of it is closed."""
    folder = data / "kafka"
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _LOCK_MODE)
    try:
        begun = time.monotonic()
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                pid = os.pread(descriptor, 20, 0).decode()
                patience = _READER_PATIENCE_S if pid.isdigit() and is_process_alive(int(pid)) else _DYING_PATIENCE_S
                if time.monotonic() - begun > patience:
                    running = read_broker_file(data)
                    where = f"at {running.bootstrap}" if running else "still starting or stopping"
                    message = (
                        f"A broker already runs on {data}: process {pid}, {where}; "
                        "use it, stop it, or choose another data folder"
                    )
                    raise BrokerError(message) from None
                time.sleep(0.05)
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
