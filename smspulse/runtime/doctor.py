"""Look for what would keep smspulse from running, and say how to mend it."""

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

from core.group_lag import BROKER_PATIENCE_S, is_reachable, log_if_slow
from core.kafka_settings import KafkaSettings
from core.topics import TOPICS, misfit
from smspulse.broker.config import open_files_needed
from smspulse.broker.download import JAVA_NEEDED, BrokerError, cached_kafka, is_cached, java_version, kafka_version
from smspulse.broker.lockfile import has_store, read_broker_file
from smspulse.processes.children import LOOPBACK, why_not_listen
from smspulse.processes.metrics_endpoint import Endpoint, get, ingest_endpoint
from smspulse.runtime.data_folder import describe_readers
from smspulse.runtime.pipeline import LoginUnreadableError, embedded_settings
from warehouse.catalog import FILE

Level = Literal["ok", "warn", "fail"]

_PYTHON_NEEDED: Final = (3, 11)
_DISK_WARN_GIB: Final = 5  # a week of a busy gateway in Kafka and Parquet
_DISK_FAIL_GIB: Final = 1  # less than one Kafka segment
_FIRST_FREE_PORT: Final = 1024


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found of one thing.

    Args:
        name: The thing.
        level: `ok`; `warn`: works, with less; `fail`: does not work.
        what: What was found, in words.
        mend: What to do; empty when all is well.
    """

    name: str
    level: Level
    what: str
    mend: str = ""


def diagnose(data: Path, kafka: KafkaSettings | None, port: int | None, host: str | None = None) -> list[Finding]:
    """Return a finding for each thing that smspulse needs. Changes nothing, and takes some seconds at most.

    Args:
        data: The data folder; it need not exist.
        kafka: The cluster that is configured; None for the data folder's own broker.
        port: Where ingest listens, or is to; None for where it wrote down that it does.
        host: Likewise.
    """
    return [
        _python(),
        _java(data),
        _kafka(data),
        _open_files(data),
        _port(ingest_endpoint(data, host, port), host),
        *_folder(data),
        _broker(data, kafka),
        *_extras(),
    ]


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] >= _PYTHON_NEEDED:
        return Finding("python", "ok", version)
    return Finding("python", "fail", version, "Install Python {}.{} or newer".format(*_PYTHON_NEEDED))


def _java(data: Path) -> Finding:
    level, effect = _without_kafka(data)
    version = java_version()
    mend = f"Install a JRE of Java {JAVA_NEEDED} or newer and put `java` on PATH"
    if version is None:
        return Finding("java", level, f"no working `java` on PATH; {effect}", mend)
    if version < JAVA_NEEDED:
        return Finding("java", level, f"version {version}; {effect}", mend)
    return Finding("java", "ok", f"version {version}")


def _without_kafka(data: Path) -> tuple[Level, str]:
    """Return how bad it is that no Kafka can be started, and what `smspulse up` does then."""
    if has_store(data):
        return "fail", f"without it `smspulse up` does not start on {data}, which holds a Kafka store"
    return "warn", "without it the in-memory broker is used, which forgets everything at its end"


def _kafka(data: Path) -> Finding:
    level, effect = _without_kafka(data)
    try:
        if is_cached():
            return Finding("kafka", "ok", f"{kafka_version()} in {cached_kafka()}")
    except BrokerError as error:
        what, _, fix = str(error).partition("; ")
        return Finding("kafka", level, f"{what}; {effect}", fix[:1].upper() + fix[1:])
    if shutil.which("mvn"):
        return Finding("kafka", "ok", f"not fetched yet; Maven fetches {kafka_version()} at the first start")
    return Finding("kafka", level, f"not fetched, and no `mvn` on PATH; {effect}", "Install Maven")


def _port(ingest: Endpoint, host: str | None) -> Finding:
    """Say whether ingest answers, or could listen.

    Args:
        ingest: Where this machine reaches it.
        host: Where it is to listen, if that is named.
    """
    name = f"port {ingest.port}" if ingest.host == LOOPBACK else f"{ingest.host}, port {ingest.port}"
    answer = get(ingest.host, ingest.port, "/healthz", tls=ingest.tls)
    if answer is not None and answer[0] == http.HTTPStatus.OK:
        return Finding(name, "ok", "an ingest answers there")
    error = why_not_listen(ingest.port, host or ingest.host)
    if error is None:
        return Finding(name, "ok", "free")
    if error.errno == errno.EACCES:
        return Finding(name, "fail", "kept for the system", f"Choose one from {_FIRST_FREE_PORT} on")
    if error.errno != errno.EADDRINUSE:
        fix = "Choose another address with SMSPULSE_INGEST_HOST"
        return Finding(name, "fail", f"cannot be listened on: {error.strerror}", fix)
    return Finding(name, "fail", "in use by another program", "Stop that program or choose another port")


def _folder(data: Path) -> Iterator[Finding]:
    folder = next(parent for parent in (data.absolute(), *data.absolute().parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            yield Finding("data folder", "ok", f"{data} can be written")
    except OSError as error:
        what = f"{folder} cannot be written: {error.strerror}"
        if os.access(data / FILE, os.R_OK):
            fix = "Nothing, for sql, status, check and the like; to run smspulse there, the right to write"
            yield Finding("data folder", "warn", f"{what}; it can be read", fix)
        else:
            fix = "Give yourself the right to write there, or choose another with --data"
            yield Finding("data folder", "fail", what, fix)
    if data.is_dir():
        is_private, readers = describe_readers(data)
        mend = "" if is_private else "Nothing: `smspulse up` takes that right from them. Or chmod 700 on it now"
        yield Finding("who reads it", "ok" if is_private else "warn", readers, mend)
    free = shutil.disk_usage(folder).free / (1 << 30)
    level: Level = "fail" if free < _DISK_FAIL_GIB else "warn" if free < _DISK_WARN_GIB else "ok"
    mend = "" if level == "ok" else "Free some, or shorten what is kept with `smspulse retain`"
    yield Finding("disk", level, f"{free:.1f} GiB free", mend)


def _open_files(data: Path) -> Finding:
    """Say whether Kafka may open as many files as it needs. Its start raises the limit to what is counted here."""
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = open_files_needed(data / "kafka" / "store")
    if limit == resource.RLIM_INFINITY or limit >= needed:
        return Finding("open files", "ok", f"{needed:,} are needed for Kafka")
    what = f"{limit:,} are allowed, and Kafka needs {needed:,}: it does not start"
    return Finding("open files", "fail", what, f"Raise the limit, as with `ulimit -n {needed}` or LimitNOFILE=")


def _read_metadata(kafka: KafkaSettings) -> tuple[Any, str]:
    """Return what Kafka knows of its brokers and topics; or None, and why not."""
    if not is_reachable(kafka):
        return None, "nobody listens there"
    from confluent_kafka import KafkaException  # noqa: PLC0415 - heavy
    from confluent_kafka.admin import AdminClient  # noqa: PLC0415 - heavy

    try:
        with log_if_slow(f"waiting for Kafka at {kafka.bootstrap}, up to {BROKER_PATIENCE_S:g} s"):
            return AdminClient(kafka.confluent() | {"log_level": 0}).list_topics(timeout=BROKER_PATIENCE_S), ""
    except KafkaException as error:
        return None, error.args[0].str()


def _broker(data: Path, kafka: KafkaSettings | None) -> Finding:
    if kafka is not None:
        return _cluster(kafka, is_embedded=False)
    running = read_broker_file(data)
    if running is None:
        return Finding("broker", "ok", "none is running here; `smspulse up` starts one")
    try:
        return _cluster(embedded_settings(data, running), is_embedded=True)
    except LoginUnreadableError as error:
        what, _, mend = str(error).partition(": ")
        return Finding("broker", "warn", what, mend[:1].upper() + mend[1:])


def _cluster(kafka: KafkaSettings, *, is_embedded: bool) -> Finding:
    found, why = _read_metadata(kafka)
    if found is None:
        mend = "Start it, or set SMSPULSE_KAFKA_BOOTSTRAP and the login for the one that you mean"
        return Finding("broker", "fail", f"none answers at {kafka.bootstrap}: {why}", mend)
    what = f"{len(found.brokers)} at {kafka.bootstrap}"
    for topic in TOPICS:
        if topic.name not in found.topics:
            return Finding("broker", "warn", f"{what}; no topic {topic.name}", "`smspulse up` creates it")
    wrong = misfit({topic.name: len(found.topics[topic.name].partitions) for topic in TOPICS}, kafka.partitions)
    if wrong:
        return Finding("broker", "fail", f"{what}; {wrong[0]}", wrong[1].capitalize())
    alone = [
        topic.name
        for topic in TOPICS
        if any(len(each.replicas) == 1 for each in found.topics[topic.name].partitions.values())
    ]
    if alone and not is_embedded:
        mend = (
            "Give each three, with kafka-reassign-partitions, and set SMSPULSE_KAFKA_REPLICATION=3 for those to come: "
            "the crash of a broker halts what has one, and Kafka 4.3 and 4.4 can then hide committed records"
        )
        return Finding("broker", "warn", f"{what}; one replica: {', '.join(alone)}", mend)
    return Finding("broker", "ok", what)


def _extras() -> Iterator[Finding]:
    for extra, module, purpose in (
        ("expectations", "great_expectations", "`smspulse check`"),
        ("notebooks", "marimo", "the notebooks"),
    ):
        if importlib.util.find_spec(module):
            yield Finding(extra, "ok", "installed")
        else:
            mend = f"pip install 'smspulse[{extra}]'"
            yield Finding(extra, "warn", f"{module} is not installed; {purpose} will not run", mend)
