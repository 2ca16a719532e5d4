"""The Faust worker: consumer group, assignment, agents and shutdown are Faust's; what a run means is `Partition`'s."""

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
from streams.partition_manager import PartitionManager
from streams.settings import StreamSettings
from streams.topology import STAGES

_MAX_TRANSACTIONS = 128
"""Transactions that can be under way at once, each in a thread that waits for Kafka."""
_METADATA_MAX_AGE_MS = 5_000
"""Whoever leads the group may assign before it knows the topics, as when Kafka is coming back: none of them, that is.
It assigns anew once it does. When asking failed, aiokafka does not ask again until what it knows is this old."""
_VERIFY_TOPICS_S = 5.0
"""Seconds between two looks at the ids of topics. Until then, what is read of a new topic is read again later."""


def _build_credentials(kafka: KafkaSettings) -> faust.SASLCredentials | faust.SSLCredentials | None:
    """Spell the login as Faust wants it; all other clients take `KafkaSettings`' own spellings."""
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
    """Return a path for Faust, which fills in what stands in braces."""
    return Path(str(path).replace("{", "{{").replace("}", "}}"))


def build_app(settings: StreamSettings, kafka: KafkaSettings, ready: Callable[[], None]) -> faust.App:
    """Return the Faust app with its agent; see `run_worker`."""
    app = faust.App(
        settings.group,
        broker="kafka://" + ";".join(kafka.bootstrap_servers),
        broker_credentials=_build_credentials(kafka),
        datadir=_literal_path(settings.state),
        web_enabled=False,
        topic_allow_declare=False,
        topic_disable_leader=True,
        topic_partitions=kafka.partitions,
        table_standby_replicas=0,
        consumer_auto_offset_reset="earliest",
        consumer_group_instance_id=(settings.instance or None) if not kafka.in_memory else None,
        broker_check_crcs=not kafka.in_memory,  # it changes transactional batches and keeps their checksum
        broker_max_poll_records=settings.max_batch,
        broker_session_timeout=settings.session_timeout_s,
        broker_heartbeat_interval=settings.session_timeout_s / 5,
        consumer_metadata_max_age_ms=_METADATA_MAX_AGE_MS,
        stream_wait_empty=False,
        stream_buffer_maxsize=16,
    )
    app.transport = BatchTransport(app.conf.broker_consumer, app, loop=app.loop)
    partitions = PartitionManager(app, settings, kafka)

    @app.agent(app.topic(*STAGES, schema=RunSchema()))
    async def runs(stream: faust.Stream[Any]) -> None:
        async for event in stream.events():
            await partitions.enqueue_records(event.message)

    @app.timer(settings.clock_interval_s)
    async def on_timer() -> None:
        await partitions.on_timer()

    @app.timer(_VERIFY_TOPICS_S)
    async def verify_topics() -> None:
        await partitions.verify_topics()

    @app.on_partitions_assigned.connect
    async def claim_assigned(_: faust.App, assigned: set[TP], **__: Any) -> None:
        async def take_over() -> None:
            await partitions.claim_partitions(tp for tp in assigned if tp.topic in STAGES)
            ready()

        partitions.resume()
        # Not awaited: Faust goes on with the rebalance, and runs wait for their partition anyway.
        app.add_future(take_over())

    @app.on_partitions_revoked.connect
    async def on_partitions_revoked(*_: Any, **__: Any) -> None:
        # Faust stops the flow of whoever has partitions. One that had none would hand out records of its first ones
        # while their offsets are being read, and drop what waits for the agent when it resumes the flow.
        app.consumer.stop_flow()
        app.flow_control.suspend()
        # Awaited before this worker joins the group again, and before anybody is assigned what was ours.
        await partitions.on_partitions_revoked()

    @app.on_before_shutdown.connect
    async def close_partitions(*_: Any, **__: Any) -> None:
        await partitions.close()

    return app


def run_worker(settings: StreamSettings, kafka: KafkaSettings, ready: Callable[[], None]) -> None:
    """Run a worker until SIGTERM or SIGINT; ends the process with 0, or with 2 when it cannot go on.

    Args:
        settings: The worker's.
        kafka: How to reach Kafka; its topics must exist.
        ready: Called each time that the worker owns the partitions assigned to it.

    Raises:
        StateError: The state's folder cannot be made.
    """
    try:
        settings.state.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        msg = f"cannot make the folder {settings.state}: {error.strerror}. Name one that is writable"
        raise StateError(msg) from error
    with suppress(ImportError):
        use_loop("uvloop")
    # Messages and runs make no cycles, and to walk over them again and again takes a tenth of the time.
    gc.set_threshold(1_000_000, 50, 100)
    worker = faust.Worker(build_app(settings, kafka, ready), quiet=True, redirect_stdouts=False, override_logging=False)
    worker.spinner = None
    worker.loop.set_default_executor(ThreadPoolExecutor(_MAX_TRANSACTIONS))
    worker.execute_from_commandline()
