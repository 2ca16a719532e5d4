"""Measures the lander: its rate relative to a pyarrow write of the same rows, and the delay until a webhook is in SQL.

python bench/lander.py [--quick]
"""

import argparse
import asyncio
import gc
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from confluent_kafka import Consumer, KafkaException, TopicPartition
from latency import SOURCE, WARM_UP_S, Times, behind, due, ingest, percentile, send
from measure import OUR_KAFKA, Contestant, figure, kafka_node, measure, our, running
from records import PARTITIONS, STEPS, fill, interleaved

from core.kafka_settings import KafkaSettings
from core.topics import RAW
from warehouse import catalog
from warehouse.reader import open_warehouse
from warehouse.schemas import SCHEMAS

RATE = 1_000  # webhooks a second
FURTHER = (("ingest_id", b"0199c1f2-5c2e-7d3a-9a51-6f5d3f0a7b11"), ("content_type", b"application/json"))
"""Headers that ingest writes in addition to source and time."""
SAMPLE = 8
SKIP = 0.1
"""Share of rows at the beginning that is not measured, until all landers have their partitions."""


def pace(reports: int) -> None:
    """Print rows a second, from Kafka to durable files, over those of pyarrow with the rows in Python's lists.

    Of one lander, and of two that share the partitions: Python keeps one process to one core. And of the client alone.
    """
    with kafka_node(OUR_KAFKA) as (kafka, folder):
        messages = reports // len(STEPS)
        filled = fill(kafka, messages, interleaved(messages), FURTHER)
        runs = {}
        for landers in (1, 2):
            group, data = f"landers-{landers}", folder / f"landed-{landers}"
            command = our("land", "--data", str(data), "--broker", kafka.bootstrap, "--flush-interval", "1")
            each = Contestant(group, [command] * landers, group, RAW, {"SMSPULSE_LANDER_GROUP": group})
            runs[landers] = measure(kafka, each, folder, filled.events, SKIP)
        client = statistics.median(taken(kafka, filled.events) for _ in range(3))
        files = sorted(data.glob("raw/date=*/sms.raw*"), key=lambda path: path.stat().st_size)[-SAMPLE:]
        lists, arrow = zip(
            *(written(pq.read_table(path, schema=SCHEMAS["raw"]), folder) for path in files), strict=True
        )
    from_lists, from_arrow = statistics.median(lists), statistics.median(arrow)
    for landers, run in runs.items():
        print(
            f"{landers} landed {filled.events:,} rows at {run.rate:,.0f} a second, {run.cpu_us:.1f} µs of CPU each, "
            f"peak memory {run.rss_mb:,.0f} MB; pyarrow writes {from_lists:,.0f} a second from lists, "
            f"{from_arrow:,.0f} from Arrow",
            flush=True,
        )
    both = 1 / (1 / client + 1 / from_lists)
    print(f"the client alone gives {client:,.0f} a second; it and pyarrow, one after the other, {both:,.0f}")
    figure("landed_rows_vs_pyarrow", runs[1].rate / from_lists, ">= 0.5")
    figure("landed_rows_vs_client_and_pyarrow", runs[1].rate / both)
    figure("client_and_pyarrow_vs_pyarrow", both / from_lists)
    figure("landed_rows_vs_pyarrow_by_two", runs[2].rate / from_lists)
    figure("landed_rows_vs_pyarrow_from_arrow", runs[1].rate / from_arrow)


def taken(kafka: KafkaSettings, records: int) -> float:
    """Return the rows a second of a bare loop: the lander's client, which only reads all fields of each record."""
    options = {"group.id": "bare", "auto.offset.reset": "error", "enable.auto.commit": False}
    ahead = {"queued.max.messages.kbytes": 16_384, "fetch.queue.backoff.ms": 5}
    consumer = Consumer(kafka.confluent_options() | options | ahead)
    consumer.assign([TopicPartition(RAW, partition, 0) for partition in range(PARTITIONS)])
    gc.set_threshold(100_000)  # as the lander does
    count, skipped, start = 0, 0, 0.0
    while count < (1 - SKIP) * records:  # it would wait for the last ones
        messages = consumer.consume(10_000, 1)
        for m in messages:
            if m.error() is not None:
                raise KafkaException(m.error())
            m.topic(), m.partition(), m.offset(), m.timestamp(), m.key(), m.value(), m.headers()
        count += len(messages)
        if not start and count > SKIP * records:
            skipped, start = count, time.perf_counter()
    took = time.perf_counter() - start
    consumer.close()
    return (count - skipped) / took


def written(table: pa.Table, folder: Path) -> tuple[float, float]:
    """Return the rows a second of a write with its columns in lists of Python's values, and in Arrow."""
    plain = {
        f.name: (column.cast(pa.int64()) if pa.types.is_timestamp(f.type) else column).to_pylist()
        for f, column in zip(table.schema, table.columns, strict=True)
    }
    start = time.perf_counter()
    made = pa.table(plain, schema=table.schema)
    between = time.perf_counter()
    pq.write_table(made, folder / "peer.parquet", compression="zstd")
    end = time.perf_counter()
    return len(table) / (end - start), len(table) / (end - between)


def readable(flush_s: int, seconds: float) -> None:
    """Print the delay from the answer to a webhook until its row, and until its message's row includes it."""
    reports = due(RATE, seconds)
    answered: Times = {}
    with ExitStack() as stack:
        kafka, folder = stack.enter_context(kafka_node(OUR_KAFKA))
        common = ("--data", str(folder), "--broker", kafka.bootstrap)
        catalog.publish_views(folder)
        stack.enter_context(running(our("stream", *common), {}, folder / "stream.log"))
        lander = our("land", *common, "--flush-interval", str(flush_s))
        stack.enter_context(running(lander, {}, folder / "lander.log"))
        url = stack.enter_context(ingest(kafka, folder))
        with watching(folder, len(reports)) as (rows, messages, done):
            asyncio.run(send(url, reports, answered))
            if not done.wait(10 + 2 * flush_s):
                msg = f"{len(reports) - len(rows)} rows and {len(reports) - len(messages)} steps came too late"
                raise RuntimeError(msg)
    for name, seen in (("row", rows), ("message", messages)):
        took = behind(reports, answered, seen)
        goals = {5: ("<= 3.5", "<= 7"), 1: ("<= 1.5", "")}[flush_s]
        for share, goal in zip((50, 99), goals, strict=True):
            figure(f"answered_to_{name}_flush_{flush_s}_p{share}_s", percentile(took, share / 100), goal)


@contextmanager
def watching(data: Path, reports: int) -> Iterator[tuple[Times, Times, Event]]:
    """Query after each new file; return the time at which each report was first readable, and that of all."""
    rows: Times = {}
    messages: Times = {}
    done, stop = Event(), Event()
    order = [status_id for status_id, _ in STEPS]

    def ask(connection: Any) -> None:
        found = connection.execute("SELECT sms_id, status_id FROM status_events WHERE source = ?", [SOURCE]).fetchall()
        now = time.perf_counter()
        for key in found:
            rows.setdefault(key, now)
        found = connection.execute("SELECT sms_id, last_status_id FROM messages WHERE source = ?", [SOURCE]).fetchall()
        now = time.perf_counter()
        for sms_id, last in found:
            for status_id in order[: order.index(last) + 1]:
                messages.setdefault((sms_id, status_id), now)

    def watch() -> None:
        files = 0
        with open_warehouse(data) as connection:
            while not stop.wait(0.01):
                count = sum(1 for _ in data.glob("[rm]*/date=*/sms*"))
                if count != files:
                    files = count
                    ask(connection)
                    if len(rows) == len(messages) == reports:
                        done.set()

    watcher = Thread(target=watch)
    watcher.start()
    try:
        yield rows, messages, done
    finally:
        stop.set()
        watcher.join()


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer records, some two minutes")
    quick = parser.parse_args().quick
    pace(1_000_000 if quick else 2_000_000)
    for flush_s in (5, 1):
        readable(flush_s, WARM_UP_S + (5 if quick else 40))


if __name__ == "__main__":
    main()
