"""Kafka connection settings, and their form for each of the three client libraries."""

import ssl
from typing import Any, Literal

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from core.settings import EnvironmentSettings


class KafkaSettings(EnvironmentSettings):
    """Address and login of Kafka. Environment: `SMSPULSE_KAFKA_` and the field's name in capitals."""

    model_config = SettingsConfigDict(env_prefix="SMSPULSE_KAFKA_")

    bootstrap: str = "127.0.0.1:19092"
    """`host:port`, several separated by commas."""
    in_memory: bool = False
    """The broker is the in-memory one: nothing it holds outlives it. Set by `smspulse up`."""
    memory_run: str = ""
    """Id of the in-memory broker's run: its offsets mean something only within it. Set by `smspulse up`, and read from
    the data folder."""
    partitions: int = Field(4, ge=1)
    """Partitions of topics by message; those by device get a quarter."""
    replication: int = Field(1, ge=1)
    """Replicas of each topic that is created; 3 on a cluster."""
    min_insync: int = Field(1, ge=1)
    """Replicas that must have a record before it counts as written."""
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    """As Kafka names it."""
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    """Used with the two SASL protocols."""
    sasl_username: str = ""
    """Used with the two SASL protocols."""
    sasl_password: SecretStr = SecretStr("")
    """Used with the two SASL protocols."""
    ssl_cafile: str | None = None
    """PEM file of the authority; the system's own if unset."""
    ssl_certfile: str | None = None
    """PEM file of the client's certificate."""
    ssl_keyfile: str | None = None
    """PEM file of the client's key."""

    @property
    def bootstrap_servers(self) -> list[str]:
        """The bootstrap servers one by one."""
        return [server.strip() for server in self.bootstrap.split(",") if server.strip()]

    def ssl_context(self) -> ssl.SSLContext | None:
        """Return the TLS context, or None without TLS.

        Raises:
            OSError: A PEM file cannot be read.
        """
        if not self.security_protocol.endswith("SSL"):
            return None
        context = ssl.create_default_context(cafile=self.ssl_cafile)
        if self.ssl_certfile:
            context.load_cert_chain(self.ssl_certfile, self.ssl_keyfile)
        return context

    def aiokafka_options(self) -> dict[str, Any]:
        """Return keyword arguments for any aiokafka client.

        Raises:
            OSError: A PEM file cannot be read.
        """
        return {
            "bootstrap_servers": self.bootstrap_servers,
            "security_protocol": self.security_protocol,
            "ssl_context": self.ssl_context(),
            # Used with the two SASL protocols alone.
            "sasl_mechanism": self.sasl_mechanism,
            "sasl_plain_username": self.sasl_username,
            "sasl_plain_password": self.sasl_password.get_secret_value(),
        }

    def kafka_python_options(self) -> dict[str, Any]:
        """Return keyword arguments for any kafka-python client."""
        # The in-memory broker supports no later versions of requests.
        return self.aiokafka_options() | ({"api_version": (2, 3)} if self.in_memory else {})

    def confluent_options(self) -> dict[str, Any]:
        """Return configuration for any confluent-kafka client."""
        options: dict[str, Any] = {
            "bootstrap.servers": ",".join(self.bootstrap_servers),
            "security.protocol": self.security_protocol.lower(),
        }
        if self.security_protocol.startswith("SASL"):
            options |= {
                "sasl.mechanism": self.sasl_mechanism,
                "sasl.username": self.sasl_username,
                "sasl.password": self.sasl_password.get_secret_value(),
            }
        if self.security_protocol.endswith("SSL"):
            files = {"ca": self.ssl_cafile, "certificate": self.ssl_certfile, "key": self.ssl_keyfile}
            options |= {f"ssl.{name}.location": path for name, path in files.items() if path}
        return options
