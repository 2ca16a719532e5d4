"""From the answer to a webhook until its version can be read, through ingest, Kafka and stream, at a steady rate."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import orjson
from aiokafka import AIOKafkaConsumer
from measure import check, our, running
from records import STEPS, webhook

from core.kafka_settings import KafkaSettings
from core.topics import MESSAGES
from ingest.sources import add_source, webhook_url
from smspulse.processes.children import find_free_port

SOURCE = "latency"
RATE = 500  # webhooks a second
CONNECTIONS = 200  # ingest closes more than 256 of one address
WARM_UP_S = 5.0  # until each message has a second report in flight and all caches are warm

Times = dict[tuple[int, int], float]
"""By sms_id and status_id: seconds on one clock."""

Due = list[tuple[float, int, int]]
"""Time of each report in seconds after the first, with its sms_id and status_id."""


def due(rate: int, seconds: float) -> Due:
    """Return reports at a rate. Each message has one report per second."""
    per_second = rate // len(STEPS)
    return sorted(
        (message / per_second + step, message, status_id)
        for message in range(int(seconds * per_second))
        for step, (status_id, _) in enumerate(STEPS)
    )


@contextmanager
def ingest(kafka: KafkaSettings, data: Path) -> Iterator[str]:
    """Run `smspulse ingest`; yield the URL of a webhook."""
    base = f"http://127.0.0.1:{find_free_port()}"
    url = webhook_url(base, SOURCE, add_source(data, SOURCE))
    command = our("ingest", "--data", str(data), "--broker", kafka.bootstrap, "--port", base.rpartition(":")[2])
    log = data / "ingest.log"
    with running(command, {}, log) as process:
        while "receiving webhooks" not in log.read_text():
            check(process, log)
            time.sleep(0.05)
        yield url


async def answered_to_version(kafka: KafkaSettings, url: str, seconds: float) -> list[float]:
    """Send webhooks at `RATE`; return the sorted delays from each answer to its version.

    Raises:
        RuntimeError: A webhook was not accepted, or its version did not come within ten seconds.
    """
    reports = due(RATE, seconds)
    answered: Times = {}
    seen: Times = {}
    consumer = AIOKafkaConsumer(
        MESSAGES,
        **kafka.aiokafka_options(),
        isolation_level="read_committed",
        auto_offset_reset="latest",
        fetch_max_wait_ms=10,
    )
    await consumer.start()
    await consumer.seek_to_end()
    reading = asyncio.create_task(_read(consumer, seen, len(reports)))
    await send(url, reports, answered)
    try:
        await asyncio.wait_for(reading, 10)
    except TimeoutError as error:
        msg = (
            f"{len(reports) - len(seen)} of {len(reports)} reports are in no version ten seconds after the last answer"
        )
        raise RuntimeError(msg) from error
    finally:
        await consumer.stop()
    return behind(reports, answered, seen)


def behind(reports: Due, answered: Times, seen: Times) -> list[float]:
    """Return the sorted delays from each answer to its version, after the warm-up."""
    return sorted(
        seen[message, status_id] - answered[message, status_id] for at, message, status_id in reports if at >= WARM_UP_S
    )


async def send(url: str, reports: Due, answered: Times) -> None:
    """Send each report at its time, and record the time of its answer.

    Raises:
        RuntimeError: A webhook was not accepted.
    """
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CONNECTIONS)) as session:
        await _send(session, url, reports, answered)


async def _send(session: aiohttp.ClientSession, url: str, reports: Due, answered: Times) -> None:
    async def post(message: int, status_id: int) -> None:
        headers = {"Content-Type": "application/json"}
        async with session.post(url, data=webhook(message, status_id), headers=headers) as response:
            if response.status // 100 != 2:
                msg = f"a webhook was answered {response.status}"
                raise RuntimeError(msg)
        answered[message, status_id] = time.perf_counter()

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for at, message, status_id in reports:
            wait = started + at - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            group.create_task(post(message, status_id))


async def _read(consumer: AIOKafkaConsumer, seen: Times, reports: int) -> None:
    prefix = f"{SOURCE}:".encode()
    async for record in consumer:
        if not record.key.startswith(prefix):
            continue
        now = time.perf_counter()
        version = orjson.loads(record.value)
        for observation in version["observations"]:
            seen.setdefault((version["sms_id"], observation[0]), now)
        if len(seen) == reports:
            return


def percentile(values: list[float], share: float) -> float:
    """Return the value that `share` of sorted values do not exceed."""
    return values[min(len(values) - 1, int(share * len(values)))]
