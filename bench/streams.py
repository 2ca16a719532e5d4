"""Compares the stream worker with its peers, on a real Kafka; measures latency, recovery and memory.

Every contestant reads the same status reports, keeps the same state and writes the same versions. The versions are
compared at the end. Peers need Python, Java and Maven. Their other dependencies are downloaded once, into the cache of
the user.

    python bench/streams.py [--quick]

Exits with 1 if the results of a contestant differ, with 2 if one could not be set up or run.
"""

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import orjson
from agreement import differences, last_versions
from aiokafka import AIOKafkaConsumer
from confluent_kafka.admin import AdminClient, NewTopic
from latency import WARM_UP_S, answered_to_version, ingest, percentile
from measure import OUR_KAFKA, PLAIN_KAFKA, Contestant, Died, Run, figure, kafka_node, measure, our
from peers.environments import HERE, PeerMissingError, kafka_streams_peer, python_peer
from records import PARTITIONS, STEPS, Filled, TooFewError, fill, interleaved, opened
from state import memory_when_all_are_open, recovered

from core.kafka_settings import KafkaSettings
from core.topics import MESSAGES, RAW, TOPICS
from smspulse.broker.settings import BrokerSettings
from smspulse.broker.topic_admin import ensure_topics

ROOT = HERE.parents[1]


async def bare_loop(kafka: KafkaSettings, events: int) -> float:
    """Return the events a second of an aiokafka consumer that decodes the JSON and does nothing with it."""
    consumer = AIOKafkaConsumer(RAW, **kafka.aiokafka_options(), auto_offset_reset="earliest", max_poll_records=4000)
    await consumer.start()
    started, seen = time.perf_counter(), 0
    while seen < events:
        for records in (await consumer.getmany(timeout_ms=1000)).values():
            for record in records:
                orjson.loads(record.value)
            seen += len(records)
    took = time.perf_counter() - started
    await consumer.stop()
    return events / took


class Contest:
    """Runs contestants one after the other over the same records, and compares their output with that of smspulse."""

    def __init__(self, kafka: KafkaSettings, folder: Path, filled: Filled, sample: int) -> None:
        self._kafka, self._folder, self._filled, self._sample = kafka, folder, filled, sample
        self.problems = 0
        self.differing = 0
        print(f"{'':32}{'events/s':>10}{'CPU µs/event':>14}{'peak RSS MB':>13}{'versions written':>18}")

    def row(self, name: str, run: Run, versions: int) -> None:
        """Print the measurements."""
        print(f"{name:32}{run.rate:>10,.0f}{run.cpu_us:>14.1f}{run.rss_mb:>13,.0f}{versions:>18,}", flush=True)

    def ours(self, workers: int, group: str, skip: float = 0) -> Run:
        """Run the workers of smspulse."""
        data = self._folder / group
        commands = [
            our("stream", "--data", str(data), "--broker", self._kafka.bootstrap, "--worker", str(number))
            for number in range(workers)
        ]
        name = f"smspulse, {workers} worker{'s' * (workers > 1)}, exactly once"
        who = Contestant(name, commands, group, MESSAGES, {"SMSPULSE_STREAM_GROUP": group})
        run = measure(self._kafka, who, self._folder, self._filled.events, skip)
        self.row(name, run, last_versions(self._kafka, MESSAGES, ())[1])
        return run

    def two_workers(self) -> float | None:
        """Run two workers of smspulse; return their events per second, or print the problem and return None."""
        try:
            # The second worker joins while the first one works. That time does not count.
            return self.ours(2, "bench-two-workers", skip=0.3).rate
        except Died as error:
            self._not_measured("smspulse, 2 workers", error)
            return None

    def _not_measured(self, name: str, error: Exception) -> None:
        print(f"NOT MEASURED: {name}: {error}", flush=True)
        self.problems += 1

    def peer(
        self, name: str, group: str, make: Callable[[], list[str]], further: list[str], events: int | None = None
    ) -> float | None:
        """Run a peer; return its events per second, or print the problem and return None.

        Args:
            name: For the table.
            group: Of its consumers; names its output topic and its folder too.
            make: Sets it up and returns its program.
            further: Arguments behind broker, group, input, output and folder.
            events: How many to measure it over; all by default.
        """
        try:
            program = make()
            admin = AdminClient(self._kafka.confluent_options())  # its futures end with it
            admin.create_topics([NewTopic(group, PARTITIONS, 1)])[group].result(30)
            arguments = [self._kafka.bootstrap, group, RAW, group, str(self._folder / group), *further]
            who = Contestant(name, [[*program, *arguments]], group, group, {"PYTHONPATH": str(ROOT)})
            run = measure(self._kafka, who, self._folder, events or self._filled.events)
            keys = self._filled.sample(run.positions, self._sample)
        except (PeerMissingError, Died, TooFewError) as error:
            self._not_measured(name, error)
            return None
        theirs, versions = last_versions(self._kafka, group, keys)
        self.row(name, run, versions)
        if found := differences(last_versions(self._kafka, MESSAGES, keys)[0], theirs, keys):
            print(f"DIFFERENT: {len(found)} of {len(keys)} messages of {name}, such as {found[0]}", flush=True)
            self.differing += 1
        return run.rate


def throughput(*, quick: bool) -> int:
    """Run every contestant and print the figures; return the exit code."""
    messages = (100_000 if quick else 1_000_000) // len(STEPS)
    with kafka_node(PLAIN_KAFKA) as (kafka, folder):
        filled = fill(kafka, messages, interleaved(messages))
        bare = statistics.median(asyncio.run(bare_loop(kafka, filled.events)) for _ in range(3))
        contest = Contest(kafka, folder, filled, 500 if quick else 1000)
        print(f"{'aiokafka and JSON, nothing else':32}{bare:>10,.0f}")
        ours = contest.ours(1, "smspulse-stream")

        def quixstreams() -> list[str]:
            return [python_peer("quixstreams"), str(HERE / "with_quixstreams.py")]

        interval = "1" if quick else "5"  # 5 is its default, and longer than the short run
        rates = {
            "quixstreams_exactly_once": contest.peer(
                "quixstreams, exactly once", "quix-exactly-once", quixstreams, ["exactly-once", interval]
            ),
            "kafka_streams": contest.peer(
                "Kafka Streams, exactly once v2",
                "kafka-streams",
                lambda: ["java", "-Xmx1g", "-cp", kafka_streams_peer(), "smspulse.Peer"],
                [],
            ),
            "faust": contest.peer(
                "Faust, at least once",
                "faust-peer",
                lambda: [python_peer("faust"), str(HERE / "with_faust.py")],
                [],
                events=24_000 if quick else 60_000,
            ),
        }
        if not quick:
            rates["quixstreams_at_least_once"] = contest.peer(
                "quixstreams, at least once", "quix-at-least-once", quixstreams, ["at-least-once", interval]
            )
            _forget_all_but_raw(kafka)
            two = contest.two_workers()
    goals = {
        "quixstreams_exactly_once": ">= 1.5",
        "quixstreams_at_least_once": ">= 1.2",
        "kafka_streams": ">= 1.0",
        "faust": ">= 12",
    }
    for name, rate in rates.items():
        if rate is not None:
            figure(f"stream_vs_{name}", ours.rate / rate, goals[name])
    figure("stream_vs_bare_loop", ours.rate / bare, ">= 0.2")
    if not quick and two is not None:
        figure("two_workers_vs_one", two / ours.rate)
    return 1 if contest.differing else 2 if contest.problems else 0


def _forget_all_but_raw(kafka: KafkaSettings) -> None:
    """Recreate the output topics, so that another group of workers begins without state."""
    outputs = {topic.name for topic in TOPICS} - {RAW}
    admin = AdminClient(kafka.confluent_options())
    for deleted in admin.delete_topics(list(outputs)).values():
        deleted.result(30)
    while outputs & admin.list_topics(timeout=10).topics.keys():
        time.sleep(0.1)
    ensure_topics(kafka)


def open_messages(settings: BrokerSettings, messages: int, seconds: float) -> None:
    """Print memory, recovery and latency of a worker with many open messages."""
    with kafka_node(settings) as (kafka, data):
        fill(kafka, messages, opened(messages))
        resting, peak = memory_when_all_are_open(kafka, data, messages)
        with recovered(kafka, data) as (versions, took), ingest(kafka, data) as url:
            latencies = asyncio.run(answered_to_version(kafka, url, seconds))
    half, most, worst = percentile(latencies, 0.5), percentile(latencies, 0.99), latencies[-1]
    print(
        f"{messages:,} open messages: {resting:,.0f} MB of memory, {peak:,.0f} at the peak; {versions:,} versions "
        f"recovered in {took:.2f} s"
    )
    print(
        f"{len(latencies):,} webhooks, from the answer to the version: median {half:.3f} s, 99 % {most:.3f} s, "
        f"worst {worst:.3f} s",
        flush=True,
    )
    if settings is OUR_KAFKA:
        figure("answered_to_version_fsynced_p50_s", half)
        figure("answered_to_version_fsynced_p99_s", most)
        return
    figure("answered_to_version_p50_s", half, "<= 0.060")
    figure("answered_to_version_p99_s", most, "<= 0.250")
    figure("recovered_versions_per_s", versions / took, ">= 100000")
    figure("memory_1m_open_messages_mb", resting, "<= 600")


def main() -> None:
    """Run all benchmarks, or with `--quick` those that fit into a minute."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="100,000 events, and throughput alone")
    quick: bool = parser.parse_args().quick
    code = throughput(quick=quick)
    if not quick:
        open_messages(PLAIN_KAFKA, 1_000_000, 20 + WARM_UP_S)
        open_messages(OUR_KAFKA, 100_000, 20 + WARM_UP_S)
    sys.exit(code)


if __name__ == "__main__":
    main()
