"""`smspulse doctor`: checks of the machine, each with a fix for its problem."""

import errno
import http
import importlib.util
import os
import resource
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from core.consumer_lag import BROKER_PATIENCE_S, is_reachable, log_if_slow
from core.kafka_settings import KafkaSettings
from core.topics import TOPICS, find_partition_mismatch
from smspulse.broker import download
from smspulse.broker.errors import BrokerError, LoginUnreadableError
from smspulse.broker.kafka_broker import count_needed_files
from smspulse.broker.locate import read_embedded_settings
from smspulse.broker.lockfile import has_kafka_store, read_broker_file
from smspulse.processes.children import LOOPBACK, find_listen_error
from smspulse.processes.data_folder import describe_readers
from smspulse.processes.metrics_endpoint import ProcessEndpoint, fetch_response, find_ingest_endpoint
from warehouse.catalog import CATALOG_FILE

Level = Literal["ok", "warn", "fail"]

# A week of a busy gateway in Kafka and Parquet.
_DISK_WARN_GIB: Final = 5
# The size of one Kafka segment.
_DISK_FAIL_GIB: Final = 1
# Linux keeps lower ports for root.
_FIRST_FREE_PORT: Final = 1024


@dataclass(frozen=True, slots=True)
class DoctorFinding:
    """The result of one check.

    Args:
        name: The checked thing.
        level: `ok`; `warn`: works with limits; `fail`: does not work.
        detail: The finding, for people.
        fix: What to do; empty without a problem.
    """

    name: str
    level: Level
    detail: str
    fix: str = ""


def diagnose_machine(
    data: Path, kafka: KafkaSettings | None, port: int | None, host: str | None = None
) -> list[DoctorFinding]:
    """Return a finding for each requirement of smspulse. Changes nothing, and takes some seconds at most.

    Args:
        data: The data folder; it need not exist.
        kafka: The configured cluster; None for the data folder's own broker.
        port: Port of ingest; None for the port that ingest announced.
        host: Likewise.
    """
    return [
        # pip installs smspulse only for a Python that it supports.
        DoctorFinding("python", "ok", ".".join(map(str, sys.version_info[:3]))),
        *_check_kafka(data),
        _check_open_files(data),
        _check_ingest_port(find_ingest_endpoint(data, host, port), host),
        *_check_data_folder(data),
        _check_broker(data, kafka),
        *_check_extras(),
    ]


def _check_kafka(data: Path) -> Iterator[DoctorFinding]:
    """Check what a real Kafka needs. Whether it is needed depends on the data folder."""
    level: Level = "warn"
    effect = "without it the in-memory broker is used, which forgets everything at its end"
    if has_kafka_store(data):
        level, effect = "fail", f"without it `smspulse up` does not start on {data}, which holds a Kafka store"
    version = download.read_java_version()
    if version is not None and version >= download.JAVA_NEEDED:
        yield DoctorFinding("java", "ok", f"version {version}")
    else:
        what = f"version {version}" if version else "no working `java` on PATH"
        fix = f"Install a JRE of Java {download.JAVA_NEEDED} or newer and put `java` on PATH"
        yield DoctorFinding("java", level, f"{what}; {effect}", fix)
    try:
        if download.is_kafka_cached():
            yield DoctorFinding("kafka", "ok", f"{download.read_kafka_version()} in {download.find_kafka_cache()}")
        elif shutil.which("mvn"):
            what = f"not fetched yet; Maven fetches {download.read_kafka_version()} at the first start"
            yield DoctorFinding("kafka", "ok", what)
        else:
            yield DoctorFinding("kafka", level, f"not fetched, and no `mvn` on PATH; {effect}", "Install Maven")
    except BrokerError as error:
        what, _, fix = str(error).partition("; ")
        yield DoctorFinding("kafka", level, f"{what}; {effect}", fix[:1].upper() + fix[1:])


def _check_ingest_port(ingest: ProcessEndpoint, host: str | None) -> DoctorFinding:
    """Check whether ingest answers, or could listen.

    Args:
        ingest: Endpoint of ingest for this machine.
        host: Configured address to listen on, if any.
    """
    name = f"port {ingest.port}" if ingest.host == LOOPBACK else f"{ingest.host}, port {ingest.port}"
    # Ingest may run already, which is fine.
    answer = fetch_response(ingest.host, ingest.port, "/healthz", tls=ingest.tls)
    if answer is not None and answer[0] == http.HTTPStatus.OK:
        return DoctorFinding(name, "ok", "an ingest answers there")
    error = find_listen_error(ingest.port, host or ingest.host)
    if error is None:
        return DoctorFinding(name, "ok", "free")
    if error.errno == errno.EACCES:
        return DoctorFinding(name, "fail", "kept for the system", f"Choose one from {_FIRST_FREE_PORT} on")
    if error.errno != errno.EADDRINUSE:
        fix = "Choose another address with SMSPULSE_INGEST_HOST"
        return DoctorFinding(name, "fail", f"cannot be listened on: {error.strerror}", fix)
    return DoctorFinding(name, "fail", "in use by another program", "Stop that program or choose another port")


def _check_data_folder(data: Path) -> Iterator[DoctorFinding]:
    # The data folder need not exist: its nearest existing parent decides.
    folder = next(parent for parent in (data.absolute(), *data.absolute().parents) if parent.exists())
    try:
        # A trial: permissions alone do not show a read-only file system.
        with tempfile.TemporaryFile(dir=folder):
            yield DoctorFinding("data folder", "ok", f"{data} can be written")
    except OSError as error:
        what = f"{folder} cannot be written: {error.strerror}"
        if os.access(data / CATALOG_FILE, os.R_OK):
            fix = "Nothing, for sql, status, check and the like; to run smspulse there, the right to write"
            yield DoctorFinding("data folder", "warn", f"{what}; it can be read", fix)
        else:
            fix = "Give yourself the right to write there, or choose another with --data"
            yield DoctorFinding("data folder", "fail", what, fix)
    if data.is_dir():
        is_private, readers = describe_readers(data)
        fix = "" if is_private else "Nothing: `smspulse up` takes that right from them. Or chmod 700 on it now"
        yield DoctorFinding("who reads it", "ok" if is_private else "warn", readers, fix)
    free = shutil.disk_usage(folder).free / (1 << 30)
    level: Level = "fail" if free < _DISK_FAIL_GIB else "warn" if free < _DISK_WARN_GIB else "ok"
    fix = "" if level == "ok" else "Free some, or shorten what is kept with `smspulse retain`"
    yield DoctorFinding("disk", level, f"{free:.1f} GiB free", fix)


def _check_open_files(data: Path) -> DoctorFinding:
    """Check whether Kafka may open enough files. Its start raises the soft limit to the hard one, which counts here."""
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = count_needed_files(data / "kafka" / "store")
    if limit == resource.RLIM_INFINITY or limit >= needed:
        return DoctorFinding("open files", "ok", f"{needed:,} are needed for Kafka")
    what = f"{limit:,} are allowed, and Kafka needs {needed:,}: it does not start"
    return DoctorFinding("open files", "fail", what, f"Raise the limit, as with `ulimit -n {needed}` or LimitNOFILE=")


def _read_cluster_metadata(kafka: KafkaSettings) -> tuple[Any, str]:
    """Return the metadata of Kafka's brokers and topics; or None, and the reason."""
    if not is_reachable(kafka):
        return None, "no server listens there"
    from confluent_kafka import KafkaException  # noqa: PLC0415 - heavy
    from confluent_kafka.admin import AdminClient  # noqa: PLC0415 - heavy

    try:
        with log_if_slow(f"waiting for Kafka at {kafka.bootstrap}, up to {BROKER_PATIENCE_S:g} s"):
            return AdminClient(kafka.confluent_options() | {"log_level": 0}).list_topics(timeout=BROKER_PATIENCE_S), ""
    except KafkaException as error:
        return None, error.args[0].str()


def _check_broker(data: Path, kafka: KafkaSettings | None) -> DoctorFinding:
    if kafka is not None:
        return _check_cluster(kafka, is_embedded=False)
    running = read_broker_file(data)
    if running is None:
        return DoctorFinding("broker", "ok", "none is running here; `smspulse up` starts one")
    try:
        return _check_cluster(read_embedded_settings(data, running), is_embedded=True)
    except LoginUnreadableError as error:
        what, _, fix = str(error).partition(": ")
        return DoctorFinding("broker", "warn", what, fix[:1].upper() + fix[1:])


def _check_cluster(kafka: KafkaSettings, *, is_embedded: bool) -> DoctorFinding:
    found, why = _read_cluster_metadata(kafka)
    if found is None:
        fix = "Start it, or set SMSPULSE_KAFKA_BOOTSTRAP and the login for the one that you mean"
        return DoctorFinding("broker", "fail", f"none answers at {kafka.bootstrap}: {why}", fix)
    what = f"{len(found.brokers)} at {kafka.bootstrap}"
    partitions = {name: list(topic.partitions.values()) for name, topic in found.topics.items()}
    names = [topic.name for topic in TOPICS]
    if missing := [name for name in names if name not in partitions]:
        return DoctorFinding("broker", "warn", f"{what}; no topic {missing[0]}", "`smspulse up` creates it")
    counts = {name: len(each) for name, each in partitions.items()}
    if wrong := find_partition_mismatch(counts, kafka.partitions):
        return DoctorFinding("broker", "fail", f"{what}; {wrong[0]}", wrong[1].capitalize())
    # A partition on one broker alone.
    alone = [name for name in names if any(len(each.replicas) == 1 for each in partitions[name])]
    if alone and not is_embedded:
        fix = (
            "Give each three, with kafka-reassign-partitions, and set SMSPULSE_KAFKA_REPLICATION=3 for those to come: "
            "the crash of a broker halts what has one, and Kafka 4.3 and 4.4 can then hide committed records"
        )
        return DoctorFinding("broker", "warn", f"{what}; one replica: {', '.join(alone)}", fix)
    return DoctorFinding("broker", "ok", what)


def _check_extras() -> Iterator[DoctorFinding]:
    for extra, module, purpose in (
        ("expectations", "great_expectations", "`smspulse check`"),
        ("notebooks", "marimo", "the notebooks"),
    ):
        if importlib.util.find_spec(module):
            yield DoctorFinding(extra, "ok", "installed")
        else:
            fix = f"pip install 'smspulse[{extra}]'"
            yield DoctorFinding(extra, "warn", f"{module} is not installed; {purpose} will not run", fix)
