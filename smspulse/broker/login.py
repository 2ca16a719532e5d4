"""The login of the embedded Kafka, in `{data}/kafka/`: who can read it may read and write every record.

SCRAM, not PLAIN: a client never sends the password, and it notices a server that does not know it. So a local user who
listens on Kafka's port while Kafka is away gets neither the password nor a webhook.
"""

import json
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from smspulse.broker.download import BrokerError
from smspulse.broker.lockfile import write_file_atomically

PROTOCOL: Final = "SASL_PLAINTEXT"
MECHANISM: Final = "SCRAM-SHA-512"
_USERNAME: Final = "smspulse"
_PASSWORD_BYTES: Final = 32
_OWNER_ONLY_MODE: Final = 0o600


@dataclass(frozen=True, slots=True)
class BrokerLogin:
    """What clients of the embedded Kafka need.

    Args:
        bootstrap: Where it listened when it was started last.
        username: Its only user.
        password: Made once for a data folder.
    """

    bootstrap: str
    username: str
    password: str

    def to_kafka_options(self) -> dict[str, Any]:
        """Return it as fields of `KafkaSettings`."""
        return {
            "security_protocol": PROTOCOL,
            "sasl_mechanism": MECHANISM,
            "sasl_username": self.username,
            "sasl_password": self.password,
        }

    def format_client_properties(self) -> str:
        """Return it as Kafka's own tools read it."""
        module = "org.apache.kafka.common.security.scram.ScramLoginModule"
        return (
            f"bootstrap.servers={self.bootstrap}\nsecurity.protocol={PROTOCOL}\nsasl.mechanism={MECHANISM}\n"
            f'sasl.jaas.config={module} required username="{self.username}" password="{self.password}";\n'
        )


def login_path(data: Path) -> Path:
    """Return where the login of a data folder is."""
    return data / "kafka" / "login.json"


def client_properties_path(data: Path) -> Path:
    """Return where a data folder has its login for Kafka's own tools."""
    return data / "kafka" / "client.properties"


def read_login(data: Path) -> BrokerLogin | None:
    """Return the login of the data folder's Kafka; None if it has none.

    Raises:
        PermissionError: This user may not read it.
        BrokerError: The file is damaged.
    """
    path = login_path(data)
    try:
        return msgspec.json.decode(path.read_bytes(), type=BrokerLogin)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        msg = f"{path} is damaged: delete it, and start the broker again, which makes another"
        raise BrokerError(msg) from error


def write_login(data: Path, bootstrap: str) -> BrokerLogin:
    """Write the login of the data folder's Kafka, made if there is none, with where it listens; return it.

    Also writes `client.properties`, for Kafka's own tools.

    Raises:
        BrokerError: The file that is there is damaged.
        OSError: It cannot be read or written.
    """
    known = read_login(data)
    password = known.password if known else secrets.token_urlsafe(_PASSWORD_BYTES)
    login = BrokerLogin(bootstrap, _USERNAME, password)
    write_file_atomically(login_path(data), json.dumps(asdict(login)), mode=_OWNER_ONLY_MODE)
    write_file_atomically(client_properties_path(data), login.format_client_properties(), mode=_OWNER_ONLY_MODE)
    return login
