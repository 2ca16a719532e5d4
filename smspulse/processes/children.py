"""Child processes that end with this one and report their readiness; limit of open files; addresses to listen on."""

import asyncio
import ctypes
import errno
import logging
import os
import resource
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

_log = logging.getLogger(__name__)

# Descriptor of the pipe on which a command reports to its supervisor; not a setting.
READY_FD_VARIABLE: Final = "SMSPULSE_READY_FD"
READY: Final = b"1"
NEVER_READY: Final = b"0"
LOOPBACK: Final = "127.0.0.1"
# Addresses that stand for all of a machine, with the one to connect to.
_EVERY_ADDRESS: Final = {"": LOOPBACK, "0.0.0.0": LOOPBACK, "::": "::1"}  # noqa: S104 - compared, not listened on
# Well-known servers have lower ports.
_LOWEST_PORT: Final = 10_000
# First port that Linux gives to clients by default.
_LINUX_CLIENTS: Final = 32_768
# All tries fail only on a machine with hardly a free port.
_MAX_PORT_TRIES: Final = 100
_POLL_INTERVAL_S: Final = 0.1
# From linux/prctl.h.
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def die_with_parent(number: signal.Signals = signal.SIGKILL) -> Callable[[], None]:
    """Return a `preexec_fn` with which the child gets a signal when this process ends, however it ends.

    The kernel watches the *thread* that forks, so start the child from one that lives as long as the process. The
    setting survives `exec` but not `fork`: it holds for the child, not for its children. It works on Linux only.

    Args:
        number: The signal. The default ends the child at once.
    """
    parent = os.getpid()

    def set_death_signal() -> None:
        # Runs between fork and exec: nothing here may allocate much, import or take a lock.
        if _libc is not None:
            _libc.prctl(_PR_SET_PDEATHSIG, int(number))
            # The parent died before the setting took effect.
            if os.getppid() != parent:
                os._exit(1)

    return set_death_signal


def make_stop_event() -> asyncio.Event:
    """Return an event that SIGTERM and SIGINT set."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


def is_process_alive(pid: int) -> bool:
    """Return whether a process of this id exists. A zombie counts."""
    try:
        # The process can be another user's.
        with suppress(PermissionError):
            os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    return True


def describe_exit(code: int) -> str:
    """Return how a process ended, by its exit code."""
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


def raise_file_limit() -> int:
    """Raise the limit of open files of this process and its children to the maximum; return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    # macOS has a lower maximum than it reports.
    except (OSError, ValueError) as error:
        _log.debug("the limit of open files stays at %d: %s", soft, error)
    # RLIM_INFINITY is -1, which would compare as the lowest limit.
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def ensure_home() -> None:
    """Set HOME to `/dev/null` for a user without a home folder: libraries fail without one, and store nothing there."""
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = os.devnull


def find_reachable_host(host: str) -> str:
    """Return the host with which this machine reaches a server that listens on a host."""
    return _EVERY_ADDRESS.get(host, host)


def build_server_url(host: str, port: int, *, tls: bool = False) -> str:
    """Return the URL with which this machine reaches a server that listens on a host."""
    host = find_reachable_host(host)
    return f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


def find_listen_error(port: int, host: str = LOOPBACK) -> OSError | None:
    """Return the error of a server that would listen there now, or None."""
    try:
        addresses = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        return OSError(errno.EADDRNOTAVAIL, f"{host} is not a known address or name ({error.strerror})")
    absent = []
    for family, kind, protocol, _, address in addresses:
        try:
            with socket.socket(family, kind, protocol) as probe:
                # As servers do: a port whose last connections are in TIME_WAIT can be used.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    # `::` also accepts IPv4. Every other IPv6 address is for IPv6 only.
                    is_ipv6_alone = host != "::" or not socket.has_dualstack_ipv6()
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, is_ipv6_alone)
                probe.bind(address)
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:
                return error
            # A name can have an address of a family that this machine does not use.
            absent.append(error)
    return absent[-1] if len(absent) == len(addresses) else None


async def wait_while(find_problem: Callable[[], object], patience_s: float) -> object:
    """Wait until a function finds no problem; return the problem that is left after so many seconds, or None."""
    deadline = time.monotonic() + patience_s
    while problem := find_problem():
        if time.monotonic() >= deadline:
            return problem
        await asyncio.sleep(_POLL_INTERVAL_S)
    return None


def find_free_port(preferred: int = 0, host: str = LOOPBACK) -> int:
    """Return the preferred port if it is free, else any free one.

    It is below the ports that the system gives to clients, so that no connection takes it before the server listens.
    Another server still can.

    Raises:
        OSError: This machine has no such address, or hardly a free port.
    """
    # The preferred port first, so that clients need not change after a restart.
    if preferred and find_listen_error(preferred, host) is None:
        return preferred
    for _ in range(_MAX_PORT_TRIES):
        port = _LOWEST_PORT + secrets.randbelow(_find_first_client_port() - _LOWEST_PORT)
        if find_listen_error(port, host) is None:
            return port
    raise find_listen_error(0, host) or OSError(errno.EADDRINUSE, f"hardly a port of {host} is free")


def _find_first_client_port() -> int:
    """Return the first port that the system gives to clients."""
    try:
        first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text("ascii").split()[0])
    except (OSError, ValueError):
        return _LINUX_CLIENTS
    # A system may give clients nearly all ports. Then too few are left below them to choose from.
    return first if first > 2 * _LOWEST_PORT else _LINUX_CLIENTS


def report_readiness(readiness: bytes = READY) -> None:
    """Report to the supervisor that the process is ready. Without a supervisor, and on later calls, it does nothing.

    Args:
        readiness: `NEVER_READY` if a restart would fail too, as with a wrong setting.
    """
    # Removed, so that children do not report for this process.
    descriptor = os.environ.pop(READY_FD_VARIABLE, "")
    if not descriptor.isdecimal():
        return
    # If the supervisor has ended, this process is about to.
    with suppress(BrokenPipeError), open(int(descriptor), "wb", buffering=0) as pipe:
        pipe.write(readiness)
