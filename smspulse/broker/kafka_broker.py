"""The embedded Kafka: a real Apache Kafka of one node under the data folder.

Guarantees (`docs/decisions/broker.md` says at what cost): a record that it has acknowledged survives the death of every
process. With the default of `flush_messages` it survives a power loss too, because each batch is fsynced before it is
acknowledged; with a larger value a power loss can cost what the kernel had not written yet, some 30 s, and each
partition loses a different piece, so that what belongs to one transaction may survive in part.
"""

import base64
import logging
import secrets
import shutil
import signal
import socket
import subprocess
import time
import uuid
from functools import partial
from pathlib import Path
from typing import Any, Final

from core.stop_request import StopRequest, run_until_stopped
from smspulse.broker.config import (
    NODE_USER,
    BrokerSettings,
    build_server_properties,
    count_needed_files,
    find_last_error_line,
)
from smspulse.broker.download import RESOURCES, BrokerError, fetch_kafka
from smspulse.broker.embedded import EmbeddedBroker
from smspulse.broker.lockfile import write_file_atomically
from smspulse.broker.login import MECHANISM, PROTOCOL, BrokerLogin, write_login
from smspulse.processes.children import LOOPBACK, die_with_parent, find_free_port, raise_file_limit

log = logging.getLogger(__name__)

START_TIMEOUT_S: Final = 300  # after a crash Kafka reads its newest segments again, up to 1 GiB a partition
STOP_TIMEOUT_S: Final = 7  # the supervisor promises 10 s for everything
_LOGIN_TIMEOUT_S: Final = 60  # a record in Kafka's log of metadata; a busy machine takes its time
_SCRAM_ITERATIONS: Final = 4096  # Kafka's least: they slow down guessing, and nobody guesses 256 random bits


class FileLimitError(BrokerError):
    """The system allows this process too few open files."""

    is_permanent = True


class KafkaBroker(EmbeddedBroker):
    """A real Apache Kafka (KRaft, one node) on loopback, with its data under `{data}/kafka/`, kept across restarts.

    Clients log in (`smspulse.broker.login`), unless the settings say otherwise.
    Its log is `{data}/logs/kafka.log`. The JVM is a child of ours that the kernel kills with us, and it holds the data
    folder's lock too, so a folder is never opened twice, whichever of the two dies first.
    """

    kind = "kafka"

    def __init__(self, data: Path, settings: BrokerSettings | None = None, stop: StopRequest | None = None) -> None:
        super().__init__(data, settings, stop)
        self._kafka_folder = self.data / "kafka"
        self._log = self.data / "logs" / "kafka.log"
        self._output = self.data / "logs" / "kafka.out"  # what the JVM says before logging works, or instead of it
        self._log_start = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._node_password = ""

    @property
    def has_login(self) -> bool:
        """Whether clients must log in."""
        return self.settings.login

    @property
    def jvm_pid(self) -> int | None:
        """The process number of Kafka itself, if it was started."""
        return self._process.pid if self._process else None

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
            # Another for each try: of two that want one port, the other may have been shown this one's.
            self._node_password = secrets.token_urlsafe(32)
            properties = build_server_properties(port, controller, settings, self._node_password)
            write_file_atomically(self._kafka_folder / "server.properties", properties, mode=0o600)
            if not (self._kafka_folder / "store" / "meta.properties").exists():
                self._format_store(jars)
            with self._output.open("wb") as output:
                self._process = self._start_java(jars, output, "kafka.Kafka", "server.properties")
            if run_until_stopped(partial(self._wait_until_ready, port), self.stop_request):
                if self.has_login:
                    login = write_login(self.data, self.address)
                    run_until_stopped(partial(self._create_login, login), self.stop_request)
                return
            why = self.poll() or ""
            if "Address already in use" not in why:
                raise BrokerError(why)
            port, controller = 0, 0  # taken between our look and Kafka's: any others will do

    def _require_open_files(self) -> None:
        """Raise the limit of open files as far as the system lets us, and end if that is too low for Kafka."""
        limit, needed = raise_file_limit(), count_needed_files(self._kafka_folder / "store")
        if limit < needed:
            message = (
                f"Kafka needs {needed:,} open files, and this process may have {limit:,}; with fewer it deletes data "
                f"that it cannot open. Raise the limit, as with `ulimit -n {needed}` or systemd's LimitNOFILE="
            )
            raise FileLimitError(message)

    def _format_store(self, jars: Path) -> None:
        """Give the empty store its identity. `meta.properties` is written last, so a format cut short is done again."""
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        arguments = ("format", f"--cluster-id={cluster}", "--ignore-formatted", "--config", "server.properties")
        with self._output.open("wb") as output:
            self._process = self._start_java(jars, output, "kafka.tools.StorageTool", *arguments)
        try:
            code = run_until_stopped(partial(self._process.wait, START_TIMEOUT_S), self.stop_request)
        except subprocess.TimeoutExpired as error:
            message = (
                f"Kafka's store {self._kafka_folder / 'store'} was not made within {START_TIMEOUT_S} s; see the disk"
            )
            raise BrokerError(message) from error
        if code != 0:
            raise BrokerError(self.poll())

    def _start_java(self, jars: Path, output: Any, main: str, *arguments: str) -> subprocess.Popen[bytes]:
        java = shutil.which("java")
        if java is None:
            message = "There is no `java` on PATH; install Java 17 or newer, or use `--broker memory`"
            raise BrokerError(message)
        # Paths are relative to the working directory: `log.dirs` and log4j split theirs at commas.
        options = (f"-Xmx{self.settings.heap_mb}m", "-XX:+ExitOnOutOfMemoryError", "-Djava.awt.headless=true")
        logging_options = ("-Dlog4j2.configurationFile=log4j2.properties", "-XX:ErrorFile=../logs/java-crash-%p.log")
        return subprocess.Popen(  # noqa: S603 - found on PATH
            [java, *options, *logging_options, "-cp", f"{jars}/*", main, *arguments],
            cwd=self._kafka_folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # Ctrl-C in a terminal reaches the whole group; Kafka must end after those that write to it.
            start_new_session=True,
            pass_fds=() if self._lock_descriptor is None else (self._lock_descriptor,),
            preexec_fn=die_with_parent(),  # noqa: PLW1509 - made to be safe there
        )

    def _wait_until_ready(self, port: int) -> bool:
        """Wait until Kafka answers a client; return False once it has ended instead."""
        from confluent_kafka import KafkaException  # noqa: PLC0415 - heavy
        from confluent_kafka.admin import AdminClient  # noqa: PLC0415 - heavy

        client = None
        begun = time.monotonic()
        said = False
        while self.poll() is None and not self.stop_request.is_set():
            waited = time.monotonic() - begun
            if waited > START_TIMEOUT_S:
                message = f"Kafka did not become ready within {START_TIMEOUT_S} s; its log: {self._log}"
                raise BrokerError(message)
            if waited > 20 and not said:  # noqa: PLR2004 - ten times what it takes when all is well
                log.info("Kafka is still starting; after a crash it reads its newest segments first")
                said = True
            with socket.socket() as probe:
                listening = probe.connect_ex((LOOPBACK, port)) == 0
            if listening:
                client = client or AdminClient(self._node_client_options())
                try:
                    if client.list_topics(timeout=1).brokers:
                        return True
                except KafkaException:
                    continue  # it listens before it answers
            time.sleep(0.1)
        return False

    def _node_client_options(self) -> dict[str, Any]:
        """Return the configuration of a confluent-kafka client that is let in as the node itself."""
        options: dict[str, Any] = {"bootstrap.servers": self.address, "log_level": 0}
        if self.has_login:
            options |= {
                "security.protocol": PROTOCOL,
                "sasl.mechanism": "PLAIN",
                "sasl.username": NODE_USER,
                "sasl.password": self._node_password,
            }
        return options

    def _create_login(self, login: BrokerLogin) -> None:
        """Have Kafka know the login: a store that is new, or of a version without logins, does not.

        Raises:
            BrokerError: It refuses.
        """
        from confluent_kafka import KafkaException  # noqa: PLC0415 - heavy
        from confluent_kafka.admin import (  # noqa: PLC0415 - heavy
            AdminClient,
            ScramCredentialInfo,
            ScramMechanism,
            UserScramCredentialUpsertion,
        )

        scram = ScramCredentialInfo(getattr(ScramMechanism, MECHANISM.replace("-", "_")), _SCRAM_ITERATIONS)
        change = UserScramCredentialUpsertion(login.username, scram, login.password.encode())
        admin = AdminClient(self._node_client_options())
        try:
            (done,) = admin.alter_user_scram_credentials([change], request_timeout=_LOGIN_TIMEOUT_S).values()
            done.result(_LOGIN_TIMEOUT_S)
        except KafkaException as error:
            message = f"Kafka does not take the login of {login.username}: {error.args[0].str()}; its log: {self._log}"
            raise BrokerError(message) from error

    def poll(self) -> str | None:
        """Return None while it runs, else one line on why it ended."""
        if self._process is None or self._process.poll() is None:
            return None
        code = self._process.returncode
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        return f"Kafka {how}: {find_last_error_line(self._output, self._log, self._log_start)}; its log: {self._log}"

    def _stop_server(self) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            log.warning("Kafka did not stop within %d s and is killed; its next start takes longer", STOP_TIMEOUT_S)
            self._process.kill()
            self._process.wait()
        self._process = None
