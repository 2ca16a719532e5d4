"""Configuration of the embedded Kafka node, and the error in its log when it ends."""

import os
import re
from pathlib import Path
from typing import Final

from smspulse.broker.settings import BrokerSettings
from smspulse.processes.children import LOOPBACK

# The folder with the pom, the fixed options and the log configuration of Kafka.
RESOURCES: Final = Path(__file__).with_name("kafka")
# User with which the node connects to itself. The password is new at each start.
NODE_USER: Final = "node"
# Measured: 120 for the JVM, its jars and an idle node. The rest is for clients and new segments.
_BASE_FILES: Final = 512


def build_server_properties(port: int, controller: int, settings: BrokerSettings, password: str = "") -> str:
    """Return the text of `server.properties`. Its paths are relative to the broker's folder.

    Args:
        port: Port for clients.
        controller: Port of Kafka's controller.
        settings: Settings of the broker.
        password: Password of `NODE_USER`; needed if clients must log in.
    """
    options: dict[str, object] = {
        # The voter's address is taken from here at each start, so it may change; `--standalone` would store it.
        "controller.quorum.voters": f"1@{LOOPBACK}:{controller}",
        "listeners": f"CLIENTS://{LOOPBACK}:{port},CONTROLLER://{LOOPBACK}:{controller}",
        **_build_security_options(settings, password),
        "log.flush.interval.messages": settings.flush_messages,
    }
    fixed = (RESOURCES / "server.properties").read_text(encoding="utf-8")
    return fixed + "".join(f"{name}={value}\n" for name, value in options.items())


def _build_security_options(settings: BrokerSettings, password: str) -> dict[str, object]:
    """Return the options that authenticate clients of the two listeners."""
    if not settings.login:
        return {"listener.security.protocol.map": "CLIENTS:PLAINTEXT,CONTROLLER:PLAINTEXT"}
    plain = "org.apache.kafka.common.security.plain.PlainLoginModule required"
    node = f'{plain} username="{NODE_USER}" password="{password}" user_{NODE_USER}="{password}";'
    scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
    return {
        "listener.security.protocol.map": "CLIENTS:SASL_PLAINTEXT,CONTROLLER:SASL_PLAINTEXT",
        # The node cannot authenticate itself by SCRAM: those passwords are in the log that it has yet to read.
        "listener.name.clients.sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-512",
        "listener.name.clients.plain.sasl.jaas.config": node,
        "listener.name.clients.scram-sha-512.sasl.jaas.config": scram,
        "listener.name.controller.sasl.enabled.mechanisms": "PLAIN",
        "listener.name.controller.plain.sasl.jaas.config": node,
        "sasl.mechanism.inter.broker.protocol": "PLAIN",
        "sasl.mechanism.controller.protocol": "PLAIN",
    }


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
