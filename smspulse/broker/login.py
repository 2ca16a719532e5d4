"""The login of the embedded Kafka, in `{data}/kafka/`. A user who can read it may read and write every record.

It uses SCRAM, not PLAIN: a client never sends the password, and it detects a server that does not have the password. So
a local user who listens on Kafka's port while Kafka is away gets neither the password nor a webhook.
"""

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from core.atomic_file import write_file_atomically
from smspulse.broker.errors import BrokerError

PROTOCOL: Final = "SASL_PLAINTEXT"
_MECHANISM: Final = "SCRAM-SHA-512"
_USERNAME: Final = "smspulse"
# 256 bits: such a password cannot be guessed.
_PASSWORD_BYTES: Final = 32
_OWNER_ONLY_MODE: Final = 0o600


@dataclass(frozen=True, slots=True)
class BrokerLogin:
    """Address and login for clients of the embedded Kafka.

    Args:
        bootstrap: Address of Kafka at its last start.
        username: The only user.
        password: Created once for a data folder.
    """

    bootstrap: str
    username: str
    password: str

    def to_kafka_options(self) -> dict[str, Any]:
        """Return the login as fields of `KafkaSettings`."""
        return {
            "security_protocol": PROTOCOL,
            "sasl_mechanism": _MECHANISM,
            "sasl_username": self.username,
            "sasl_password": self.password,
        }


def login_path(data: Path) -> Path:
    """Return the path of the login of a data folder."""
    return data / "kafka" / "login.json"


def client_properties_path(data: Path) -> Path:
    """Return the path of the login for Kafka's own tools."""
    return data / "kafka" / "client.properties"


def read_login(data: Path) -> BrokerLogin | None:
    """Return the login of the data folder's Kafka; None if it has none.

    Raises:
        PermissionError: This user may not read the login.
        BrokerError: The file is damaged.
    """
    path = login_path(data)
    try:
        return msgspec.json.decode(path.read_bytes(), type=BrokerLogin)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        msg = f"{path} is damaged: delete it, and start the broker again, which creates another"
        raise BrokerError(msg) from error


def write_login(data: Path, bootstrap: str) -> BrokerLogin:
    """Write the login of the data folder's Kafka with its address; return it. Creates the password if there is none.

    Also writes `client.properties`, for Kafka's own tools.

    Raises:
        BrokerError: The existing file is damaged.
        OSError: The file cannot be read or written.
    """
    known = read_login(data)
    password = known.password if known else secrets.token_urlsafe(_PASSWORD_BYTES)
    login = BrokerLogin(bootstrap, _USERNAME, password)
    write_file_atomically(login_path(data), msgspec.json.encode(login), mode=_OWNER_ONLY_MODE)
    properties = (
        f"bootstrap.servers={bootstrap}\nsecurity.protocol={PROTOCOL}\nsasl.mechanism={_MECHANISM}\n"
        "sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required "
        f'username="{_USERNAME}" password="{password}";\n'
    )
    write_file_atomically(client_properties_path(data), properties, mode=_OWNER_ONLY_MODE)
    return login
