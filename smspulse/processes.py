"""Child processes that do not outlive us, and ports to give them."""

import ctypes
import os
import secrets
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

LOOPBACK = "127.0.0.1"
_LOWEST_PORT = 10_000
_LINUX_CLIENTS = 32_768  # Linux's own default
_TRIES = 100
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def die_with_parent(number: signal.Signals = signal.SIGKILL) -> Callable[[], None]:
    """Return a `preexec_fn` that ties the child's life to ours: it gets a signal when we end, however we end.

    The kernel watches the *thread* that forks, so start the child from one that lives as long as the process. The tie
    survives `exec` but not `fork`: it holds for the child, not for the child's children. Off Linux it does nothing.

    Args:
        number: What the child gets. The default leaves it no time, and so no way to linger.
    """
    parent = os.getpid()

    def tie() -> None:
        # Runs between fork and exec: nothing here may allocate much, import or take a lock.
        if _libc is not None:
            _libc.prctl(_PR_SET_PDEATHSIG, int(number))
            if os.getppid() != parent:  # we died before the tie was made
                os._exit(1)

    return tie


def is_alive(pid: int) -> bool:
    """Say whether a process of this number exists (a zombie, not yet waited for, counts)."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def port_is_free(port: int, host: str = LOOPBACK) -> bool:
    """Say whether a server could listen on the port now."""
    with socket.socket() as probe:
        # As servers do: a port whose last connections are in TIME_WAIT can be taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def free_port(preferred: int = 0, host: str = LOOPBACK) -> int:
    """Return the preferred port if it is free, else any free one.

    It is below those that the system gives to clients, so that no connection takes it before you listen on it. Another
    server still can.
    """
    if preferred and port_is_free(preferred, host):
        return preferred
    for _ in range(_TRIES):
        number = _LOWEST_PORT + secrets.randbelow(_lowest_of_clients() - _LOWEST_PORT)
        if port_is_free(number, host):
            return number
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
    return port


def _lowest_of_clients() -> int:
    """Return the first of the ports from which the system chooses one for a client."""
    try:
        first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text("ascii").split()[0])
    except (OSError, ValueError):
        return _LINUX_CLIENTS
    # A system may give clients nearly all ports; then there are none below that are worth choosing from.
    return first if first > 2 * _LOWEST_PORT else _LINUX_CLIENTS
