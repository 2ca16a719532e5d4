"""The present status of a pipeline: processes, delivery, lag, freshness and alerts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import orjson

from core.consumer_lag import BROKER_PATIENCE_S, is_listening, read_group_lag
from core.topics import RAW
from smspulse.broker.errors import LoginUnreadableError, NoBrokerError
from smspulse.broker.locate import find_kafka_settings
from smspulse.processes import metrics_endpoint
from smspulse.processes.children import LOOPBACK
from streams.settings import StreamSettings
from warehouse.datasets import DATASET_BY_TOPIC
from warehouse.errors import NoWarehouseError
from warehouse.metrics import BLOCKED_METRIC
from warehouse.reader import fetch_rows, open_warehouse
from warehouse.settings import LanderSettings


def collect_status(data: Path, broker: str, port: int | None = None, host: str | None = None) -> dict[str, Any]:
    """Return the status of the pipeline, ready for JSON. Changes nothing. Takes seconds, a minute on a busy machine.

    Keys: `ok`; `processes`, each with `name`, `ok` and `what`; `delivery`, rows of the view `delivery_now`; `lag`,
    records by consumer group, or null; `freshness`, rows of that view; `alerts`, those that fire; `learning`, the
    channels, devices and sources that still learn their baseline; `trouble`, the problems as text.

    Args:
        data: The data folder.
        broker: `HOST:PORT` or `auto`.
        port: Port of ingest; None for the port that ingest announced.
        host: Likewise.
    """
    found = collect_pipeline_status(data, broker, port, host) | _read_status_views(data)
    processes = found["processes"]
    trouble = [f"{each['name']}: {each['what']}" for each in processes if not each["ok"]]
    trouble += [] if found["freshness"] else ["nothing has landed"]
    return {"ok": not trouble and not found["alerts"], "trouble": trouble} | found


def collect_pipeline_status(
    data: Path, broker: str, port: int | None = None, host: str | None = None
) -> dict[str, Any]:
    """Return `processes` and `lag` as `collect_status` does, with the same arguments."""
    groups = {LanderSettings(data=data).group: list(DATASET_BY_TOPIC)}
    group_lag, is_ok = None, False
    try:
        kafka = find_kafka_settings(data, broker)
        # The in-memory broker keeps no offsets of transactions.
        if not kafka.in_memory:
            groups[StreamSettings(state=data).group] = [RAW]
        group_lag = read_group_lag(kafka, groups)
        is_ok = group_lag is not None
        what = f"at {kafka.bootstrap}{', in memory' if kafka.in_memory else ''}"
        what = what if is_ok else f"none answers {what} within {BROKER_PATIENCE_S:g} s"
    except NoBrokerError:
        what = "none runs here: start `smspulse up`"
    except LoginUnreadableError as error:
        is_ok = is_listening(error.bootstrap)
        what = f"at {error.bootstrap}; its lag is unknown: this user may not read its login"
        what = what if is_ok else f"none answers at {error.bootstrap}"
    broker_state = {"name": "broker", "ok": is_ok, "what": what}
    ingest = _describe_ingest(metrics_endpoint.find_ingest_endpoint(data, host, port))
    return {"processes": [broker_state, ingest, *_describe_endpoints(data)], "lag": group_lag}


def _describe_endpoints(data: Path) -> Iterator[dict[str, Any]]:
    for endpoint in metrics_endpoint.list_endpoints(data):
        if endpoint.name == metrics_endpoint.INGEST:
            continue
        metrics = endpoint.read_metrics()
        what = f"process {endpoint.pid}, /metrics at {endpoint.host}:{endpoint.port}"
        is_blocked = metrics is not None and f"\n{BLOCKED_METRIC} 1.0" in metrics
        if not endpoint.is_here:
            what = f"announced at {endpoint.host}, which is not this machine: not queried"
        elif metrics is None:
            what = "does not run"
        elif is_blocked:
            what += f"; cannot write to {data}, so nothing new comes into SQL. Kafka keeps it: free disk space"
        yield {"name": endpoint.name, "ok": metrics is not None and not is_blocked, "what": what}


def _describe_ingest(endpoint: metrics_endpoint.ProcessEndpoint) -> dict[str, Any]:
    host, port = endpoint.host, endpoint.port
    where = f"port {port}" if host == LOOPBACK else f"{host}, port {port}"
    # The environment may not have the certificate, so both schemes are tried.
    schemes = (endpoint.tls, not endpoint.tls)
    answers = (metrics_endpoint.fetch_response(host, port, "/readyz", tls=tls) for tls in schemes)
    answer = next(filter(None, answers), None)
    if answer is None:
        return {"name": "ingest", "ok": False, "what": f"none answers on {where}"}
    try:
        body = orjson.loads(answer[1])
    except orjson.JSONDecodeError:
        body = {}
    if not isinstance(body, dict) or "ready" not in body:
        return {"name": "ingest", "ok": False, "what": f"what answers on {where} is none"}
    rest = ", ".join(f"{name} {value}" for name, value in body.items() if name != "ready")
    return {"name": "ingest", "ok": bool(body["ready"]), "what": f"{where}; {rest}"}


def _read_status_views(data: Path) -> dict[str, Any]:
    """Return rows of views; none if nothing has landed."""
    queries = {
        "delivery": "FROM delivery_now WHERE source IS NULL ORDER BY hours",
        "freshness": "SELECT dataset, rows, seconds_since FROM freshness WHERE rows > 0 ORDER BY dataset",
        "alerts": "SELECT alert_id, kind, source, device_id, channel_id, ratio, baseline FROM alerts WHERE is_firing "
        "ORDER BY alert_id",
        "learning": "SELECT alert_id, source, device_id, channel_id, "
        "strftime(state_since, '%Y-%m-%dT%H:%M:%SZ') AS state_since FROM failure_detectors "
        "WHERE state = 'learning' ORDER BY alert_id",
    }
    found: dict[str, Any] = {name: [] for name in queries}
    try:
        with open_warehouse(data) as connection:
            for name, sql in queries.items():
                found[name] = fetch_rows(connection, sql)
    except NoWarehouseError:
        pass
    except duckdb.Error as error:
        found["unreadable"] = str(error).splitlines()[0]
    return found
