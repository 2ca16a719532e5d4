"""A real Prometheus scrapes the metrics of stream and lander, and evaluates the rules."""

import json
import subprocess
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from running import program

from smspulse.processes.children import find_free_port
from smspulse.processes.metrics_endpoint import list_endpoints, serve_metrics
from streams import metrics as stream
from streams.processor import ProcessorOutput
from warehouse import metrics as lander

RULES = Path(__file__).parents[2] / "monitoring" / "smspulse.rules.yml"
WITHIN_S = 120


def test_prometheus_reads_the_metrics_and_evaluates_the_rules(tmp_path: Path) -> None:
    serve_metrics(tmp_path, "stream-0", stream.REGISTRY)
    serve_metrics(tmp_path, "lander", lander.REGISTRY)
    stream.count_commit("sms.raw", 3, ProcessorOutput())
    lander.count_landed_file("sms.raw", 7, 5000)
    targets = {
        f"smspulse-{each.name.partition('-')[0]}": f"{each.host}:{each.port}" for each in list_endpoints(tmp_path)
    }
    targets["smspulse-ingest"] = f"127.0.0.1:{find_free_port()}"  # no process listens there
    jobs = [{"job_name": name, "static_configs": [{"targets": [target]}]} for name, target in targets.items()]
    intervals = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config = {"global": intervals, "rule_files": [str(RULES)], "scrape_configs": jobs}
    (tmp_path / "prometheus.yml").write_text(json.dumps(config))
    port = find_free_port()
    arguments = [f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/tsdb"]
    process = subprocess.Popen(
        [program("prometheus"), *arguments, f"--web.listen-address=127.0.0.1:{port}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert wait_for(port, 'smspulse_stream_records_total{topic="sms.raw"}')["job"] == "smspulse-stream"
        assert wait_for(port, 'smspulse_lander_rows_total{topic="sms.raw"} >= 7')["job"] == "smspulse-lander"
        pending = wait_for(port, 'ALERTS{alertname="SmspulseProcessDown", alertstate="pending"}')
        assert pending["job"] == "smspulse-ingest"
    finally:
        process.terminate()
        process.wait(60)


def wait_for(port: int, query: str) -> dict[str, Any]:
    """Wait until a query has a result, and return its labels."""
    address = f"http://127.0.0.1:{port}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    deadline = time.monotonic() + WITHIN_S
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(address, timeout=5) as answer:
                if result := json.load(answer)["data"]["result"]:
                    return dict(result[0]["metric"])
        except OSError:
            pass
        time.sleep(0.1)  # no event is available across processes
    raise AssertionError(query)
