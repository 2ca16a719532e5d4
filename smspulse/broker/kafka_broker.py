"""The embedded Kafka: a real Apache Kafka of one node under the data folder.

Guarantees (`docs/decisions/broker.md` has their cost)
    An acknowledged record survives the death of every process.
    With the default of `flush_messages` it survives a power loss, too: each batch is fsynced before it is acknowledged.
    With a larger value, a power loss can cost the data of some 30 s, which the kernel had not written yet. Each
    partition loses a different piece, so a transaction may survive in part.
"""

import logging
import os
import re
import secrets
import shutil
import subprocess
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, ScramCredentialInfo, ScramMechanism, UserScramCredentialUpsertion

from core.atomic_file import write_file_atomically
from core.consumer_lag import is_listening, log_if_slow
from core.stop_request import StopRequest, run_until_stopped
from smspulse.broker.download import RESOURCES, fetch_kafka
from smspulse.broker.embedded import EmbeddedBroker
from smspulse.broker.errors import BrokerError, FileLimitError
from smspulse.broker.login import PROTOCOL, write_login
from smspulse.broker.settings import BrokerSettings
from smspulse.processes.children import LOOPBACK, describe_exit, die_with_parent, find_free_port, raise_file_limit

log = logging.getLogger(__name__)

# After a crash Kafka reads its newest segments again, up to 1 GiB a partition.
START_TIMEOUT_S: Final = 300
# Ten times the usual start.
_SLOW_START_S: Final = 20
# The supervisor promises 10 s for everything.
STOP_TIMEOUT_S: Final = 7
# The login is one record in Kafka's metadata log. A busy machine takes long.
_LOGIN_TIMEOUT_S: Final = 60
# Kafka's minimum. More iterations slow down guessing, but 256 random bits cannot be guessed anyway.
_SCRAM_ITERATIONS: Final = 4096
# User with which the node connects to itself. The password is new at each start.
_NODE_USER: Final = "node"
# Measured: 120 for the JVM, its jars and an idle node. The rest is for clients and new segments.
_BASE_FILES: Final = 512


class KafkaBroker(EmbeddedBroker):
    """A real Apache Kafka (KRaft, one node) on loopback. Its data under `{data}/kafka/` survives restarts.

    Clients log in (`smspulse.broker.login`), unless the settings switch that off. The log is `{data}/logs/kafka.log`.
    The JVM is a child process. The kernel kills it when this process ends. It holds the lock of the data folder, too:
    so a folder is never opened twice, whichever of the two dies first.
    """

    kind = "kafka"

    def __init__(self, data: Path, settings: BrokerSettings | None = None, stop: StopRequest | None = None) -> None:
        super().__init__(data, settings, stop)
        self.has_login = self.settings.login
        self._kafka_folder = self.data / "kafka"
        self._log = self.data / "logs" / "kafka.log"
        # Output of the JVM before its logging works, or instead of it.
        self._output = self.data / "logs" / "kafka.out"
        self._log_start = 0
        self.jvm: subprocess.Popen[bytes] | None = None
        self._node_password = ""

    def _start_server(self) -> None:
        self._require_open_files()
        jars = fetch_kafka()
        shutil.copyfile(RESOURCES / "log4j2.properties", self._kafka_folder / "log4j2.properties")
        settings = self.settings
        port, controller = settings.port, settings.controller_port
        while True:
            self._log_start = self._log.stat().st_size if self._log.exists() else 0
            port, controller = find_free_port(port), find_free_port(controller)
            self.address = f"{LOOPBACK}:{port}"
            # A new password for each try: of two nodes that want one port, the other may have received this one's.
            self._node_password = secrets.token_urlsafe(32)
            properties = build_server_properties(port, controller, settings, self._node_password)
            write_file_atomically(self._kafka_folder / "server.properties", properties, mode=0o600)
            if not (self._kafka_folder / "store" / "meta.properties").exists():
                self._format_store(jars)
            with self._output.open("wb") as output:
                self.jvm = self._start_java(jars, output, "kafka.Kafka", "server.properties")
            if run_until_stopped(self._wait_until_ready, self.stop_request):
                if self.has_login:
                    run_until_stopped(self._create_login, self.stop_request)
                return
            why = self.poll() or ""
            if "Address already in use" not in why:
                raise BrokerError(why)
            # Taken between the search for a free port and Kafka's start: any other ports will do.
            port, controller = 0, 0

    def _require_open_files(self) -> None:
        """Raise the limit of open files to the maximum, and fail if that is too low for Kafka."""
        limit, needed = raise_file_limit(), count_needed_files(self._kafka_folder / "store")
        if limit < needed:
            message = (
                f"Kafka needs {needed:,} open files, and this process may have {limit:,}; with fewer it deletes data "
                f"that it cannot open. Raise the limit, as with `ulimit -n {needed}` or systemd's LimitNOFILE="
            )
            raise FileLimitError(message)

    def _format_store(self, jars: Path) -> None:
        """Format the empty store. `meta.properties` is written last, so an interrupted format is repeated."""
        # Kafka's ids are 16 bytes in URL-safe base64.
        cluster = secrets.token_urlsafe(16)
        arguments = ("format", f"--cluster-id={cluster}", "--ignore-formatted", "--config", "server.properties")
        with self._output.open("wb") as output:
            self.jvm = self._start_java(jars, output, "kafka.tools.StorageTool", *arguments)
        try:
            code = run_until_stopped(partial(self.jvm.wait, START_TIMEOUT_S), self.stop_request)
        except subprocess.TimeoutExpired as error:
            store = self._kafka_folder / "store"
            message = f"Kafka's store {store} was not formatted within {START_TIMEOUT_S} s; see the disk"
            raise BrokerError(message) from error
        if code != 0:
            raise BrokerError(self.poll())

    def _start_java(self, jars: Path, output: Any, main: str, *arguments: str) -> subprocess.Popen[bytes]:
        # Of a fixed size and all of it at the start, so that the memory does not grow in steps for hours.
        heap = (f"-Xms{self.settings.heap_mb}m", f"-Xmx{self.settings.heap_mb}m", "-XX:+AlwaysPreTouch")
        # Paths are relative to the working directory: `log.dirs` and log4j split theirs at commas.
        options = (*heap, "-XX:+ExitOnOutOfMemoryError", "-Djava.awt.headless=true")
        logging_options = ("-Dlog4j2.configurationFile=log4j2.properties", "-XX:ErrorFile=../logs/java-crash-%p.log")
        return subprocess.Popen(  # noqa: S603
            ["java", *options, *logging_options, "-cp", f"{jars}/*", main, *arguments],  # noqa: S607 - of PATH
            cwd=self._kafka_folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # Ctrl-C in a terminal reaches the whole group; Kafka must end after those that write to it.
            start_new_session=True,
            pass_fds=() if self._lock_descriptor is None else (self._lock_descriptor,),
            preexec_fn=die_with_parent(),  # noqa: PLW1509 - safe between fork and exec
        )

    def _wait_until_ready(self) -> bool:
        """Wait until Kafka answers a client; return False if it ends instead."""
        client = None
        deadline = time.monotonic() + START_TIMEOUT_S
        with log_if_slow("Kafka is still starting; after a crash it reads its newest segments first", _SLOW_START_S):
            while self.poll() is None and not self.stop_request.is_set():
                if time.monotonic() > deadline:
                    message = f"Kafka did not become ready within {START_TIMEOUT_S} s; its log: {self._log}"
                    raise BrokerError(message)
                if is_listening(self.address):
                    client = client or self._connect_admin()
                    # It listens before it answers.
                    with suppress(KafkaException):
                        if client.list_topics(timeout=1).brokers:
                            return True
                time.sleep(0.1)
        return False

    def _connect_admin(self) -> Any:
        """Return a client that logs in as the node itself."""
        options: dict[str, Any] = {"bootstrap.servers": self.address, "log_level": 0}
        if self.has_login:
            options |= {"security.protocol": PROTOCOL, "sasl.mechanism": "PLAIN"}
            options |= {"sasl.username": _NODE_USER, "sasl.password": self._node_password}
        return AdminClient(options)

    def _create_login(self) -> None:
        """Create the login in the data folder and in Kafka.

        A store that is new, or of a version without logins, does not have it.

        Raises:
            BrokerError: Kafka refuses the login.
        """
        login = write_login(self.data, self.address)
        scram = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, _SCRAM_ITERATIONS)
        change = UserScramCredentialUpsertion(login.username, scram, login.password.encode())
        client = self._connect_admin()
        try:
            (done,) = client.alter_user_scram_credentials([change], request_timeout=_LOGIN_TIMEOUT_S).values()
            done.result(_LOGIN_TIMEOUT_S)
        except KafkaException as error:
            message = f"Kafka refuses the login of {login.username}: {error.args[0].str()}; its log: {self._log}"
            raise BrokerError(message) from error

    def poll(self) -> str | None:
        """Return None while Kafka runs, else the reason for its end in one line."""
        if self.jvm is None or self.jvm.poll() is None:
            return None
        how = describe_exit(self.jvm.returncode)
        return f"Kafka {how}: {find_last_error_line(self._output, self._log, self._log_start)}; its log: {self._log}"

    def _stop_server(self) -> None:
        if self.jvm is None:
            return
        self.jvm.terminate()
        try:
            self.jvm.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            log.warning("Kafka did not stop within %d s and is killed; its next start takes longer", STOP_TIMEOUT_S)
            self.jvm.kill()
            self.jvm.wait()
        self.jvm = None


def build_server_properties(port: int, controller: int, settings: BrokerSettings, password: str = "") -> str:
    """Return the text of `server.properties`. Its paths are relative to the broker's folder.

    Args:
        port: Port for clients.
        controller: Port of Kafka's controller.
        settings: Settings of the broker.
        password: Password of `_NODE_USER`; needed if clients must log in.
    """
    protocol = PROTOCOL if settings.login else "PLAINTEXT"
    plain = "org.apache.kafka.common.security.plain.PlainLoginModule required"
    node = f'{plain} username="{_NODE_USER}" password="{password}" user_{_NODE_USER}="{password}";'
    options = {
        # The voter's address is taken from here at each start, so it may change; `--standalone` would store it.
        "controller.quorum.voters": f"1@{LOOPBACK}:{controller}",
        "listeners": f"CLIENTS://{LOOPBACK}:{port},CONTROLLER://{LOOPBACK}:{controller}",
        "listener.security.protocol.map": f"CLIENTS:{protocol},CONTROLLER:{protocol}",
        "listener.name.clients.plain.sasl.jaas.config": node,
        "listener.name.controller.plain.sasl.jaas.config": node,
        "log.flush.interval.messages": settings.flush_messages,
    }
    fixed = (RESOURCES / "server.properties").read_text(encoding="utf-8")
    return fixed + "".join(f"{name}={value}\n" for name, value in options.items())


def count_needed_files(store: Path) -> int:
    """Return the number of files that the node must be able to open at once with its present store.

    Each segment keeps one file open, and another one while it is compacted. If Kafka cannot open a file, it takes the
    segment as damaged and deletes it.
    """
    return _BASE_FILES + 2 * sum(1 for _ in store.glob("*/*.log"))


def find_last_error_line(output: Path, logfile: Path, log_start: int = 0) -> str:
    """Return the likely reason of Kafka's end: its last exception, else its last error, else its last line."""
    text = _read_log_tail(logfile, log_start) + _read_log_tail(output, 0)
    for pattern in (
        r"^(?:Caused by: )?[\w.$]+(?:Exception|Error): (.+)$",
        r"^.*\b(?:ERROR|FATAL) +(.+)$",
        r"^(.*\S.*)$",
    ):
        if found := re.findall(pattern, text, re.MULTILINE):
            return str(found[-1]).strip()[:400]
    return "its log is empty"


def _read_log_tail(path: Path, start: int) -> str:
    """Return at most the last 64 KiB of a file, from `start` on unless the file was rotated since."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(start if start <= size else 0, size - 65536))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
