"""The lock and the file `broker.json` of a running broker in its data folder."""

import fcntl
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import msgspec

from smspulse.broker.errors import BrokerError
from smspulse.processes.children import LOOPBACK, is_process_alive

Kind = Literal["kafka", "memory"]

# Minus the umask. A group that reads the folder can see by the lock whether a broker runs.
_LOCK_MODE: Final = 0o644
# A reader of broker.json holds the lock for an instant, and on a busy machine for longer.
_READER_PATIENCE_S: Final = 2.0
# The JVM of a killed broker may take so long to release the lock.
_DYING_PATIENCE_S: Final = 10


@dataclass(frozen=True, slots=True)
class BrokerFile:
    """The running broker: the content of `{data}/broker.json`.

    Args:
        bootstrap: Address of the broker.
        kind: A real Kafka, or the in-memory broker.
        pid: Id of the process that runs it.
        run_id: Id of this run of the broker, a UUID. Offsets of the in-memory broker are valid only within one run.
        has_login: Whether clients need the login of the data folder.
    """

    bootstrap: str
    kind: Kind
    pid: int
    run_id: str = ""
    has_login: bool = False

    @property
    def memory_run(self) -> str:
        """The id of the run of an in-memory broker, else empty: the topics of a real Kafka have ids of their own."""
        return self.run_id if self.kind == "memory" else ""


def read_broker_file(data: Path) -> BrokerFile | None:
    """Return the running broker of the data folder; None without one. A stale file counts as none.

    The embedded broker listens on loopback only. So a file that names another address is not valid.
    """
    try:
        found = msgspec.json.decode((data / "broker.json").read_bytes(), type=BrokerFile)
        held = not _is_lock_free(data)
    except (OSError, msgspec.DecodeError):
        return None
    is_ours = found.bootstrap.startswith(f"{LOOPBACK}:")
    return found if is_ours and held and is_process_alive(found.pid) else None


def has_kafka_store(data: Path) -> bool:
    """Return whether the folder has the store of a real Kafka."""
    return os.path.lexists(data / "kafka" / "store")


def _is_lock_free(data: Path) -> bool:
    """Return whether no broker runs on the data folder. Raises OSError without a lock file."""
    try:
        with (data / "kafka" / "lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    # It is held; or it is another user's, by a version whose locks only their owner could read.
    except (BlockingIOError, PermissionError):
        return False
    return True


def acquire_broker_lock(data: Path) -> int:
    """Return the descriptor that holds the data folder's lock until every copy of it is closed.

    Raises:
        BrokerError: Another broker holds the lock.
    """
    folder = data / "kafka"
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _LOCK_MODE)
    try:
        _wait_for_lock(descriptor, data)
        # For messages about a second broker.
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _wait_for_lock(descriptor: int, data: Path) -> None:
    begun = time.monotonic()
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
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
