import os
import select
import socket
import subprocess
import sys
from pathlib import Path

from smspulse.processes.children import find_free_port, find_listen_error, is_process_alive

PARENT = """
import subprocess, sys
from smspulse.processes.children import die_with_parent
child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, preexec_fn=die_with_parent())
print(child.pid, flush=True)
input()
"""


def test_a_child_dies_with_a_parent_that_is_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = os.pidfd_open(int(parent.stdout.readline()))
    parent.kill()
    parent.communicate()
    assert select.select([child], [], [], 10)[0]
    os.close(child)


def test_a_preferred_port_is_given_when_free_and_another_when_taken() -> None:
    port = find_free_port()
    assert find_listen_error(port) is None
    assert find_free_port(port) == port
    with socket.create_server(("127.0.0.1", port)):
        assert find_listen_error(port) is not None
        other = find_free_port(port)
        assert other != port
        assert find_listen_error(other) is None


def test_no_connection_takes_a_port_that_was_chosen() -> None:
    first_of_clients = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert all(find_free_port() < first_of_clients for _ in range(50))


def test_a_process_is_alive_until_it_has_been_waited_for() -> None:
    assert is_process_alive(os.getpid())
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert not is_process_alive(child.pid)
