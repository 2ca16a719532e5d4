"""`smspulse ingest --processes N`: several receivers on one port. The kernel distributes the connections."""

import logging
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ingest.errors import PORT_TAKEN, CannotListenError
from ingest.settings import METRICS_FOLDER_VARIABLE, IngestSettings
from smspulse.processes.children import build_server_url, find_free_port, find_listen_error, make_stop_event, wait_while
from smspulse.processes.supervisor import ChildProcess, ProcessSupervisor

_log = logging.getLogger(__name__)
# A receiver gets so long to finish its open requests.
_STOP_S = 6.0


async def run_ingest_processes(
    data: Path, broker: str, host: str, port: int, count: int, *, on_ready: Callable[[str], None]
) -> None:
    """Run receivers until SIGTERM or SIGINT. One that ends is restarted. `data` is an absolute path.

    Raises:
        CannotListenError: Another server listens there.
        SupervisorError: A receiver did not become ready.
    """
    port = port or find_free_port(0, host)
    # Earlier receivers whose parent was killed finish what they have in flight.
    if await wait_while(partial(find_listen_error, port, host), _STOP_S):
        raise CannotListenError(host, port, PORT_TAKEN)
    # A folder by port: other receivers may run on the same data folder. It is emptied, because counters begin at 0.
    metrics = data / "metrics" / str(port)
    shutil.rmtree(metrics, ignore_errors=True)
    metrics.mkdir(parents=True)
    address = ("--data", str(data), "--broker", broker, "--host", host, "--port", str(port))
    command = ("ingest", *address, "--processes", "1")
    environment = {"SMSPULSE_INGEST_SHARE_PORT": "1", METRICS_FOLDER_VARIABLE: str(metrics)}
    children = [ChildProcess(f"ingest-{n}", command, _STOP_S, environment=environment) for n in range(count)]
    stop = make_stop_event()
    supervisor = ProcessSupervisor(lambda name, level, text: _log.log(level, "%s: %s", name, text))
    try:
        await supervisor.start(*children)
        for child in children:
            await supervisor.wait_until_ready(child)
        on_ready(build_server_url(host, port, tls=IngestSettings().tls_cert is not None))
        await stop.wait()
    finally:
        await supervisor.stop()
