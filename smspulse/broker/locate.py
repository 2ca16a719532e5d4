"""The Kafka cluster that a command means: the broker of the data folder, `HOST:PORT`, or the environment's."""

import contextlib
import re
from pathlib import Path
from typing import Any

from core.kafka_settings import KafkaSettings
from smspulse.broker.errors import BrokerError, LoginUnreadableError, NoBrokerError
from smspulse.broker.lockfile import BrokerFile, read_broker_file
from smspulse.broker.login import login_path, read_login
from smspulse.processes.children import LOOPBACK


def find_kafka_settings(data: Path, broker: str) -> KafkaSettings:
    """Return the connection settings of the broker of a command: `HOST:PORT`, or `auto`.

    `auto` is the broker that runs on the data folder, else the one of the environment. The login of the data folder's
    own Kafka is in the data folder. The login of any other Kafka is in the environment.

    Raises:
        NoBrokerError: There is neither.
        LoginUnreadableError: This user may not read the login of the data folder's own Kafka.
        BrokerError: That login is damaged.
    """
    # A running broker of the folder is the best source, also for its own address.
    found = read_broker_file(data)
    if found is not None and (":" not in broker or _is_same_address(broker, found.bootstrap)):
        return read_embedded_settings(data, found)
    settings = KafkaSettings()
    if ":" in broker:
        login = None
        if "security_protocol" not in settings.model_fields_set:
            # Without the right to read it, the broker is not this user's.
            with contextlib.suppress(PermissionError):
                login = read_login(data)
        # The folder's own broker is starting, or was stopped for a moment.
        if login is not None and _is_same_address(broker, login.bootstrap):
            return KafkaSettings(bootstrap=broker, **login.to_kafka_options())
        return KafkaSettings(bootstrap=broker)
    if "bootstrap" not in settings.model_fields_set:
        msg = (
            f"no broker runs on {data}: start `smspulse up` or `smspulse broker`, or name yours with --broker HOST:PORT"
        )
        raise NoBrokerError(msg)
    return settings


def read_embedded_settings(data: Path, running: BrokerFile) -> KafkaSettings:
    """Return the connection settings of the embedded broker that runs on the data folder.

    They do not depend on the environment, which may name another broker.

    Raises:
        LoginUnreadableError: This user may not read the login.
        BrokerError: The login is damaged, or missing.
    """
    access: dict[str, Any] = {"security_protocol": "PLAINTEXT"}
    if running.has_login:
        try:
            login = read_login(data)
        except PermissionError as error:
            raise LoginUnreadableError(running.bootstrap, login_path(data)) from error
        if login is None:
            msg = f"{login_path(data)} is missing: start the broker again, which creates another"
            raise BrokerError(msg)
        access = login.to_kafka_options()
    # The file is newer than the environment of a process that outlived a run of the in-memory broker.
    return KafkaSettings(
        bootstrap=running.bootstrap, in_memory=running.kind == "memory", memory_run=running.memory_run, **access
    )


def _is_same_address(one: str, other: str) -> bool:
    """Return whether two `HOST:PORT` name the same listener. `localhost` and 127.0.0.1 are one host."""
    one, other = (re.sub("^localhost:", f"{LOOPBACK}:", address.lower()) for address in (one, other))
    return one == other
