"""The commands of the pipeline and its processes: up, broker, ingest, stream, land."""

import asyncio
import logging
import sys
from functools import partial
from pathlib import Path
from typing import Any, Final

import click

from core.background_tasks import end_process_if_a_thread_fails
from core.buckets import is_bucket_address
from smspulse.cli import options
from smspulse.processes import log_setup
from smspulse.processes.children import raise_file_limit, report_readiness
from smspulse.processes.output import make_tolerant
from smspulse.processes.terminal import echo, make_console

# Maximum of processes of a kind. Kafka gives work to at most one for each partition.
_MAX_PROCESSES: Final = 64

_port_option: Final = partial(click.option, "--port", envvar="SMSPULSE_INGEST_PORT", type=options.PORT, default=8080)


@click.command()
@options.data_option
@click.option(
    "--broker",
    envvar="SMSPULSE_BROKER",
    default="auto",
    help="auto: a real Kafka where Java and Maven are, else, on a folder without a Kafka store, one in memory; "
    "kafka; memory; or HOST:PORT.",
)
@_port_option(help="Port for webhooks; 0 is any free one.")
@click.option("--workers", type=click.IntRange(1, _MAX_PROCESSES), default=1, help="Stream workers, a process each.")
@click.option(
    "--without",
    multiple=True,
    type=click.Choice(["page", "alerts"]),
    help="Do not run the page, or the alert process, of which all machines need one. Twice for both.",
)
@click.option("--demo", is_flag=True, help="Simulate traffic and show its delivery rates.")
@click.option("--for", "seconds", type=options.FiniteFloat(min=30), help="Seconds until the end.")
def up_command(data: Path, **given: Any) -> None:
    """Run the whole pipeline: broker, ingest, stream, lander.

    \b
    smspulse up --demo                     watch it work
    smspulse up --demo --for 60            the same, ended and reconciled
    smspulse up --broker kafka1:9092       on your own cluster
    """
    from smspulse.alerting.settings import read_alert_settings
    from smspulse.dashboard.settings import PageSettings
    from smspulse.runtime.pipeline import PipelineOptions, run_pipeline

    # A wrong setting ends the command here, before any process starts.
    read_alert_settings()
    console = make_console(file=make_tolerant(sys.stdout), soft_wrap=True)
    logging.getLogger().handlers[:] = [log_setup.PrefixHandler(console)]
    options.prepare_process(data)
    pipeline = PipelineOptions(data=data.resolve(), page=PageSettings(), **given)
    raise SystemExit(asyncio.run(run_pipeline(pipeline, console)))


@click.command()
@options.data_option
@click.option("--mode", default="auto", type=click.Choice(["auto", "kafka", "memory"]))
@click.option("--fetch", is_flag=True, help="Fetch Kafka's jars into the cache, and start nothing.")
def broker_command(data: Path, mode: Any, *, fetch: bool) -> None:
    """Run a one-node Kafka under the data folder.

    \b
    smspulse broker                        until Ctrl-C
    smspulse broker --fetch                only get Kafka
    """
    from smspulse.broker.download import fetch_kafka, list_missing_programs
    from smspulse.broker.foreground import run_broker
    from smspulse.broker.locate import find_kafka_settings
    from smspulse.broker.topic_admin import ensure_topics

    if fetch:
        if missing := list_missing_programs():
            echo(f"no real Kafka here, the in-memory broker will serve: {'; '.join(missing)}")
        else:
            echo(f"Kafka is in {fetch_kafka()}")
        return

    def on_ready() -> None:
        ensure_topics(find_kafka_settings(data, "auto"))
        report_readiness()

    options.prepare_process(data)
    run_broker(data, mode, on_ready=on_ready)


@click.command()
@options.data_option
@options.broker_option
@_port_option()
@click.option("--host", envvar="SMSPULSE_INGEST_HOST", default="127.0.0.1")
@click.option(
    "--processes",
    envvar="SMSPULSE_INGEST_PROCESSES",
    type=click.IntRange(1, _MAX_PROCESSES),
    default=1,
    help="Receivers on this one port.",
)
def ingest_command(data: Path, broker: str, host: str, port: int, processes: int) -> None:
    """Receive webhooks and write each to Kafka, or to the spool while Kafka is away.

    \b
    smspulse ingest                                       with the broker of this data folder
    smspulse ingest --host 0.0.0.0 --broker kafka1:9092   for the gateway, on your own cluster
    """
    from urllib.parse import urlsplit

    from ingest.server import run_ingest
    from ingest.settings import IngestSettings
    from smspulse.broker.locate import find_kafka_settings
    from smspulse.processes.metrics_endpoint import INGEST, announce_endpoint

    settings = IngestSettings(host=host, port=port)

    def on_ready(url: str) -> None:
        logging.getLogger(__name__).info("receiving webhooks at %s", url)
        # With a shared port, the parent process announces all receivers.
        if not settings.share_port:
            announce_endpoint(data, INGEST, urlsplit(url).port or port, host, tls=settings.tls_cert is not None)
        report_readiness()

    options.prepare_process(data)
    raise_file_limit()
    if processes > 1:
        from smspulse.processes.ingest_group import run_ingest_processes

        asyncio.run(run_ingest_processes(data.resolve(), broker, host, port, processes, on_ready=on_ready))
        return
    run_ingest(settings, find_kafka_settings(data, broker), data, on_ready)


@click.command()
@options.data_option
@options.broker_option
@click.option("--worker", default="0", help="Name of this worker. Each has its own state.")
@click.option("--instance", help="Static name in the group.")
def stream_command(data: Path, broker: str, worker: str, instance: str | None) -> None:
    """Build the lifecycle of every message (a Faust worker).

    \b
    smspulse stream --worker 1 --broker kafka1:9092
    """
    from smspulse.broker.topic_admin import connect_with_topics
    from smspulse.processes.metrics_endpoint import serve_metrics
    from streams.app import run_worker
    from streams.metrics import REGISTRY
    from streams.settings import StreamSettings

    options.prepare_process(data)
    kafka = connect_with_topics(data, broker)
    serve_metrics(data, f"stream-{worker}", REGISTRY)
    given: dict[str, Any] = {} if instance is None else {"instance": instance}
    run_worker(StreamSettings(state=data / "state" / worker, **given), kafka, report_readiness)


@click.command()
@options.data_option
@options.broker_option
@click.option("--flush-interval", type=options.POSITIVE, help="Seconds between landings.  [default: 5]")
@click.option("--instance", help="Static name in the group.")
def land_command(data: Path, broker: str, flush_interval: float | None, instance: str | None) -> None:
    """Write topics to Parquet files, in the data folder or in a bucket (the Parquet sink).

    \b
    smspulse land --flush-interval 30      fewer and larger files
    smspulse land --data s3://bucket/sms --broker kafka1:9092 --flush-interval 60
    """
    from smspulse.broker.topic_admin import connect_with_topics
    from smspulse.processes.metrics_endpoint import serve_metrics
    from warehouse.lander import run_lander
    from warehouse.metrics import REGISTRY
    from warehouse.settings import LanderSettings

    is_bucket = is_bucket_address(data)
    if not is_bucket:
        options.ensure_data_folder(data)
    end_process_if_a_thread_fails()
    kafka = connect_with_topics(data, broker)
    given: dict[str, Any] = {"flush_interval_s": flush_interval, "instance": instance}
    settings = LanderSettings(data=data, **{name: value for name, value in given.items() if value is not None})
    name = f"lander-{settings.instance}" if settings.instance else "lander"
    serve_metrics(None if is_bucket else data, name, REGISTRY)
    run_lander(settings, kafka, ready=report_readiness)
