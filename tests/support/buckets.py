"""A local object store that can stop and restart with its content."""

import urllib.request
from uuid import uuid4

import pytest
from moto.server import ThreadedMotoServer


class ObjectStore:
    """Moto's S3. Its buckets stay in this process while the server is stopped."""

    def __init__(self) -> None:
        self._port = 0
        self.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        self._server = ThreadedMotoServer("127.0.0.1", self._port, verbose=False)
        self._server.start()
        self._port = self._server.get_host_and_port()[1]

    def stop(self) -> None:
        self._server.stop()
        if self._server._server:
            self._server._server.server_close()  # otherwise, connections would be accepted and not answered

    def login(self, environment: pytest.MonkeyPatch) -> None:
        environment.setenv("AWS_ENDPOINT_URL", self.endpoint)
        environment.setenv("AWS_REGION", "us-east-1")
        for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            environment.setenv(variable, "testing")

    def make(self) -> str:
        """Create a bucket; return the address of a data folder in it."""
        name = f"lake-{uuid4().hex[:8]}"
        with urllib.request.urlopen(urllib.request.Request(f"{self.endpoint}/{name}", method="PUT")):  # noqa: S310 - ours
            return f"s3://{name}/sms/here"
