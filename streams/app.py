"""The Faust worker: consumer group, assignment, agent, timers and shutdown. `PartitionManager` processes the runs."""

import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import faust
from faust.types import TP
from mode.loop import use as use_loop

from core.kafka_settings import KafkaSettings
from streams.batch_consumer import BatchTransport, RunSchema
from streams.errors import StateError
from streams.partition_queue import PartitionManager
from streams.settings import StreamSettings
from streams.topology import STAGES

# Most concurrent transactions. Each has a thread that waits for Kafka.
_MAX_TRANSACTIONS = 128
# Before the leader of the group has the topics' metadata, as after a restart of Kafka, it can assign no partition at
# all. It assigns again once it has them. After a failed request, aiokafka waits until its metadata are this old.
_METADATA_MAX_AGE_MS = 5_000
# Seconds between two checks of the ids of topics. Records of a new topic that are read before it are read again.
_VERIFY_TOPICS_S = 5.0


def _build_credentials(kafka: KafkaSettings) -> faust.SASLCredentials | faust.SSLCredentials | None:
    """Return the login in Faust's form. `KafkaSettings` has the forms of all other clients."""
    context = kafka.ssl_context()
    if kafka.security_protocol.startswith("SASL"):
        return faust.SASLCredentials(
            username=kafka.sasl_username,
            password=kafka.sasl_password.get_secret_value(),
            ssl_context=context,
            mechanism=kafka.sasl_mechanism,
        )
    return faust.SSLCredentials(context) if context else None


def _literal_path(path: Path) -> Path:
    """Return a path for Faust, which would replace names in braces."""
    return Path(str(path).replace("{", "{{").replace("}", "}}"))


def _create_app(settings: StreamSettings, kafka: KafkaSettings) -> faust.App:
    app = faust.App(
        settings.group,
        broker="kafka://" + ";".join(kafka.bootstrap_servers),
        broker_credentials=_build_credentials(kafka),
        datadir=_literal_path(settings.state),
        # Not used of Faust: its web server, topics, leader election and tables.
        web_enabled=False,
        topic_allow_declare=False,
        topic_disable_leader=True,
        topic_partitions=kafka.partitions,
        table_standby_replicas=0,
        consumer_auto_offset_reset="earliest",
        consumer_group_instance_id=(settings.instance or None) if not kafka.in_memory else None,
        # The in-memory broker changes transactional batches and keeps their checksum.
        broker_check_crcs=not kafka.in_memory,
        broker_max_poll_records=settings.max_batch,
        broker_session_timeout=settings.session_timeout_s,
        broker_heartbeat_interval=settings.session_timeout_s / 5,
        consumer_metadata_max_age_ms=_METADATA_MAX_AGE_MS,
        stream_wait_empty=False,
        stream_buffer_maxsize=16,
    )
    app.transport = BatchTransport(app.conf.broker_consumer, app, loop=app.loop)
    return app


def build_app(settings: StreamSettings, kafka: KafkaSettings, ready: Callable[[], None]) -> faust.App:
    """Return the Faust app with its agent; see `run_worker`."""
    app = _create_app(settings, kafka)
    partitions = PartitionManager(app, settings, kafka)

    app.agent(app.topic(*STAGES, schema=RunSchema()))(partitions.enqueue_runs)
    app.timer(settings.clock_interval_s)(partitions.on_timer)
    app.timer(_VERIFY_TOPICS_S)(partitions.verify_topics)

    @app.on_partitions_assigned.connect
    async def claim_assigned(_: faust.App, assigned: set[TP], **__: Any) -> None:
        async def take_over() -> None:
            await partitions.claim_partitions(tp for tp in assigned if tp.topic in STAGES)
            ready()

        # The present assignment can be the former one, in the same generation.
        partitions.assignment.rebalance_done.set()
        # Not awaited, so that Faust continues with the rebalance. Runs wait for their partition anyway.
        app.add_future(take_over())

    @app.on_partitions_revoked.connect
    async def on_partitions_revoked(*_: Any, **__: Any) -> None:
        # Faust stops the flow only of a worker that has partitions. A worker without any would hand out records of its
        # first ones while their offsets are read, and drop waiting records when it resumes the flow.
        app.consumer.stop_flow()
        app.flow_control.suspend()
        # Awaited before this worker joins the group again, and before another worker gets its partitions.
        await partitions.on_partitions_revoked()

    @app.on_before_shutdown.connect
    async def close_partitions(*_: Any, **__: Any) -> None:
        await partitions.close()

    return app


def run_worker(settings: StreamSettings, kafka: KafkaSettings, ready: Callable[[], None]) -> None:
    """Run a worker until SIGTERM or SIGINT. Ends the process with 0, or with 2 after an error.

    Args:
        settings: Settings of the worker.
        kafka: Settings of the Kafka clients. The topics must exist.
        ready: Called each time that the worker owns all partitions assigned to it.

    Raises:
        StateError: The folder of the state cannot be created.
    """
    try:
        settings.state.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        msg = f"cannot create the folder {settings.state}: {error.strerror}. Choose one that is writable"
        raise StateError(msg) from error
    with suppress(ImportError):
        use_loop("uvloop")
    # Messages and runs form no reference cycles, and frequent collections take a tenth of the time.
    gc.set_threshold(1_000_000, 50, 100)
    worker = faust.Worker(build_app(settings, kafka, ready), quiet=True, redirect_stdouts=False, override_logging=False)
    worker.spinner = None
    worker.loop.set_default_executor(ThreadPoolExecutor(_MAX_TRANSACTIONS))
    worker.execute_from_commandline()
