"""The whole pipeline: real HTTP, Kafka, Faust, Parquet and DuckDB, run by `smspulse up`."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import Result
from commands import invoke
from kafka_segments import segment_records
from prometheus_client.parser import text_string_to_metric_families
from running import LAND_OFTEN, SETTLE_S, Pipeline, post, start

from gateway.number_search import NumberSearch
from smspulse.processes.children import find_free_port
from smspulse.processes.metrics_endpoint import fetch_response, list_endpoints
from smspulse.simulator.client import Simulation
from smspulse.simulator.ground_truth import compare_with_truth
from smspulse.simulator.options import GatewayBehaviour
from smspulse.simulator.scenarios import generate_scenarios

EXAMPLES = Path(__file__).parents[2] / "examples" / "webhooks"
ON_ITS_WAY_S = 5
"""Age from which the checks judge records here. Each test waits until its traffic has landed."""


def status(sms_id: int, status_id: int, **fields: Any) -> bytes:
    return json.dumps(
        {
            "sms_id": sms_id,
            "status_id": status_id,
            "status_message": "",
            "sendto": "+491575298221",
            "senttime": "2026-11-20 10:00:00",
            "channel_id": 1,
            "device_id": 8001,
            **fields,
        }
    ).encode()


@pytest.fixture(scope="module")
def pipeline(real_kafka: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    arguments = ("--broker", "kafka", "--workers", "2")
    running = start(tmp_path_factory.mktemp("pipeline") / "data", *arguments, environment=LAND_OFTEN)
    try:
        yield running
    finally:
        code = running.stop()
    assert code == 0


def processes_of(pipeline: Pipeline) -> list[str]:
    """Return the ids of all processes whose command line has its folder, including its own."""
    listed = subprocess.run(["pgrep", "-f", str(pipeline.data)], check=False, capture_output=True, text=True)
    return listed.stdout.split()


def test_a_webhook_is_readable_in_sql(pipeline: Pipeline) -> None:
    url = pipeline.source("curl")
    code, answer = post(url, (EXAMPLES / "status.json").read_bytes())
    assert code == 202
    (row,) = pipeline.wait_for(
        "SELECT r.ingest_id, r.body, m.outcome FROM raw_webhooks r JOIN messages m USING (source, sms_id) "
        "WHERE r.source = ?",
        "curl",
    )
    assert (row.ingest_id, bytes(row.body)) == (answer["ingest_id"], (EXAMPLES / "status.json").read_bytes())


def test_no_other_user_may_read_files_of_the_pipeline(pipeline: Pipeline) -> None:
    assert post(pipeline.source("private"), (EXAMPLES / "status.json").read_bytes())[0] == 202
    pipeline.wait_for("SELECT 1 FROM messages WHERE source = 'private'")
    readable, made = [], set()
    for path in (pipeline.data, *pipeline.data.rglob("*")):
        with suppress(FileNotFoundError):  # a file that has been renamed since
            mode = path.stat().st_mode
            made.add(path.relative_to(pipeline.data).parts[:1])
            readable += [f"{path} {mode:04o}"] if mode & 0o077 else []
    assert {("kafka",), ("logs",), ("raw",), ("messages",), ("run",), ("spool",), ("state",), ("up.lock",)} <= made
    assert readable == []


def test_every_documented_payload_lands_as_its_kind(pipeline: Pipeline) -> None:
    url = pipeline.source("examples")
    paths = sorted(EXAMPLES.glob("*.json"))
    for path in paths:
        assert post(url, path.read_bytes())[0] == 202
    pipeline.wait_for("SELECT 1 FROM raw_webhooks WHERE source = 'examples' HAVING count(*) = ?", len(paths))
    kinds = pipeline.rows(
        "SELECT kind, count(*) AS n FROM raw_webhooks WHERE source = 'examples' GROUP BY ALL ORDER BY 1"
    )
    assert [(row.kind, row.n) for row in kinds] == [("incoming", 4), ("status", 2), ("unreadable", 1)]
    (row,) = pipeline.rows("SELECT count(*) AS n FROM incoming_messages WHERE source = 'examples'")
    assert row.n == 4
    (letter,) = pipeline.wait_for("SELECT reason, origin_topic FROM deadletters WHERE source = 'examples'")
    assert (letter.reason, letter.origin_topic) == ("unverified_shape", "sms.raw")


def test_an_unreadable_webhook_is_a_dead_letter_and_the_stream_continues(pipeline: Pipeline) -> None:
    url = pipeline.source("broken")
    bodies = [b"", b"not json", b"\xff\xfe\x00", b"[]", b'{"sms_id": "x", "status_id": 7}', b'{"status_id": 7}']
    for body in bodies:
        assert post(url, body)[0] == 202
    assert post(url, status(1, 7))[0] == 202
    (row,) = pipeline.wait_for("SELECT outcome FROM messages WHERE source = 'broken'")
    assert row.outcome == "delivered"
    pipeline.wait_for("SELECT 1 FROM deadletters WHERE source = 'broken' HAVING count(*) = ?", len(bodies))
    letters = pipeline.rows("SELECT reason, body FROM deadletters WHERE source = 'broken'")
    assert sorted((letter.reason, bytes(letter.body)) for letter in letters) == sorted(
        [
            ("not_json", bodies[0]),
            ("not_json", bodies[1]),
            ("not_json", bodies[2]),
            ("not_an_object", bodies[3]),
            ("wrong_type", bodies[4]),
            ("missing_field", bodies[5]),
        ]
    )


def test_reordered_and_repeated_reports_become_one_message(pipeline: Pipeline) -> None:
    url = pipeline.source("shuffled")
    for status_id in (7, 6, 2, 7, 1, 3, 6):
        post(url, status(5, status_id))
    (row,) = pipeline.wait_for("SELECT * FROM messages WHERE source = 'shuffled' AND version >= 8")
    assert (row.outcome, row.attempts, row.contradicted, row.device_id) == ("delivered", 1, False, 8001)
    assert set(row.flags) == {"duplicated", "reordered", "queue_backwards", "device_backwards", "network_backwards"}
    assert row.total_s >= 0


def test_contradicting_outcomes_are_marked_and_the_later_one_decides(pipeline: Pipeline) -> None:
    url = pipeline.source("contradicted")
    for status_id in (1, 2, 6, 7, 8):
        post(url, status(5, status_id))
        time.sleep(0.003)  # reports of the same millisecond have no order
    (row,) = pipeline.wait_for("SELECT * FROM messages WHERE source = 'contradicted' AND last_status_id = 8")
    assert (row.outcome, row.failure_class, row.contradicted) == ("undelivered", "undelivered", True)


def test_an_unknown_status_is_stored_and_changes_no_outcome(pipeline: Pipeline) -> None:
    url = pipeline.source("unknown")
    for status_id in (1, 77):
        post(url, status(5, status_id))
    (row,) = pipeline.wait_for("SELECT * FROM messages WHERE source = 'unknown' AND len(flags) = 1")
    assert (row.outcome, list(row.flags), row.is_ended) == ("pending", ["unknown_status"], False)


def test_the_rates_are_those_of_the_messages_sent(pipeline: Pipeline) -> None:
    url = pipeline.source("rates")
    for sms_id, status_id in enumerate([7, 7, 7, 8, 9, 100, 6, 1]):
        post(url, status(sms_id, status_id))
    sql = "SELECT sum(attempted) AS a, sum(ended) AS e, sum(delivered) AS d FROM delivery_hourly WHERE source = 'rates'"
    (row,) = pipeline.wait_for(f"{sql} HAVING sum(attempted) = 8")
    assert (row.e, row.d) == (6, 3)
    (device,) = pipeline.rows("SELECT * FROM delivery_by_device WHERE source = 'rates'")
    assert (device.delivered_per_attempted, device.delivered_per_ended) == (3 / 8, 3 / 6)
    assert device.open_share == 2 / 8


def compare_simulation(
    pipeline: Pipeline,
    name: str,
    seed: int,
    messages: int,
    *faults: Callable[[], None],
    max_delay_s: float = 2,
    **behaviour: Any,
) -> None:
    """Simulate traffic, inject faults during it, and compare the landed messages with the ground truth."""
    truth = pipeline.data / f"{name}.jsonl"
    url = pipeline.source(name)

    async def traffic() -> None:
        sending = asyncio.create_task(
            Simulation(
                url,
                generate_scenarios(seed, messages, GatewayBehaviour(**behaviour)),
                rate=60,
                truth=truth,
                time_scale=0.1,
                max_delay_s=max_delay_s,
                timeout_s=20,
            ).run()
        )
        for fault in faults:
            await asyncio.sleep(messages / 60 / (len(faults) + 1))
            fault()
        await sending

    asyncio.run(traffic())
    deadline = time.monotonic() + SETTLE_S
    began = time.monotonic()
    while not (comparison := compare_with_truth(pipeline.data, truth)).is_reconciled and time.monotonic() < deadline:
        time.sleep(max(0.5, 4 * (time.monotonic() - began)))  # the pipeline needs the processor more
        began = time.monotonic()
    assert comparison.is_reconciled, comparison.list_problems()
    assert comparison.messages >= messages


def run(pipeline: Pipeline, *arguments: str, **environment: str) -> Result:
    """Run a command on the data folder."""
    return invoke(*arguments, "--data", str(pipeline.data), environment=environment)


def checked(pipeline: Pipeline) -> dict[str, dict[str, Any]]:
    """Run the checks; return their results, of which only warnings about unusual traffic may fail."""
    done = run(pipeline, "check", "--format", "json", SMSPULSE_CHECK_MAX_WAITING_S=str(ON_ITS_WAY_S))
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert "Kafka was not read" not in found["note"]
    rows = {row["expectation"]: row for row in found["expectations"]}
    failed = {name for name, row in rows.items() if not row["success"]}
    # Other tests of this module send malformed, unknown, reordered and contradictory webhooks.
    wild = {"raw_readable", "raw_codes_known", "raw_reports_new", "messages_contradiction_share", "deadletters_few"}
    unanswered = rows["reconciliation_landed_accepted"]
    if not unanswered["success"]:
        # The purpose of the check: ingest was killed with webhooks of this source in flight, and of no other one.
        assert all(scope.startswith("killed ") for scope in unanswered["observed"].split("; ")), unanswered
        failed.remove("reconciliation_landed_accepted")
    assert failed <= wild, failed
    return rows


def test_messages_of_a_misbehaving_gateway_equal_the_ground_truth(pipeline: Pipeline) -> None:
    rates = dict.fromkeys(
        ("duplicates", "reordering", "skipped_stages", "contradictions", "failing", "old_payloads"), 0.4
    )
    rates |= {"malformed": 0.2, "unknown_codes": 0.1, "resends": 0.5, "multipart": 0.1}
    compare_simulation(pipeline, "rough", 12, 300, max_delay_s=1, **rates)


def children(pipeline: Pipeline) -> dict[str, list[int]]:
    """Return the running processes that handle webhooks, by kind."""
    alone = {command: [pipeline.pid(command)] for command in ("land", "ingest", "broker")}
    return {"stream": [pipeline.pid("stream", worker) for worker in (0, 1)], **alone}


def kill(pids: list[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def killed(pipeline: Pipeline) -> dict[str, list[int]]:
    """Kill the processes of each kind once under traffic, without loss; return the previous processes."""
    before = children(pipeline)
    compare_simulation(pipeline, "killed", 11, 480, *(partial(kill, pids) for pids in before.values()))
    return before


@pytest.fixture(scope="module")
def erased(pipeline: Pipeline) -> str:
    """Erase a number with the command; return it."""
    url, number = pipeline.source("erased"), "+4915752982298"
    for status_id in (1, 6, 7):
        assert post(url, status(5, status_id, sendto=number))[0] == 202
    pipeline.wait_for("SELECT 1 FROM messages WHERE source = 'erased' AND recipient = ? AND is_ended", number)
    # The same number in another field, escaped, and in its national form, in a message to another person.
    escaped = "".join(f"\\u{ord(char):04x}" for char in number)
    fields = {"status_message": "@", "sendto": "+4915700000009", "note": "0157 529 82298"}
    mentioned = status(6, 7, **fields).replace(b"@", escaped.encode())
    assert post(pipeline.source("mentioned"), mentioned)[0] == 202
    pipeline.wait_for("SELECT 1 FROM status_events WHERE source = 'mentioned' AND status_message = ?", number)
    pipeline.wait_for("SELECT 1 FROM messages WHERE source = 'mentioned'")
    before = pipeline.rows("SELECT * FROM delivery_hourly WHERE source = 'erased'")
    done = run(pipeline, "erase", "--number", number)
    assert "sms.messages: 2 messages deleted by key" in done.stdout, done.output
    assert "left: sms.raw: Kafka keeps the records for 7 days by default" in done.stdout
    assert f"kafka-delete-records.sh --command-config {pipeline.data}/kafka/client.properties" in done.stdout
    assert (done.exit_code, "a stream worker uses it" in done.stdout) == (1, True)
    assert pipeline.rows("SELECT * FROM delivery_hourly WHERE source = 'erased'") == before
    return number


def test_processes_killed_under_traffic_lose_nothing(pipeline: Pipeline, killed: dict[str, list[int]]) -> None:
    now = children(pipeline)
    assert [kind for kind, pids in killed.items() if set(pids) & set(now[kind])] == []


def test_an_erased_number_is_removed_from_the_files_and_deleted_by_key_in_kafka(
    pipeline: Pipeline, erased: str
) -> None:
    (row,) = pipeline.rows("SELECT recipient FROM messages WHERE source = 'erased'")
    assert row.recipient == "erased"
    assert pipeline.rows("SELECT 1 FROM messages WHERE recipient = ?", erased) == []
    deleted = f"SELECT 1 FROM read_parquet('{pipeline.data}/messages/*/*') WHERE is_forgotten AND message_key = ?"  # noqa: S608
    pipeline.wait_for(deleted, "erased:5")


def test_no_file_has_an_erased_number_except_those_of_kafka_that_the_command_names(
    pipeline: Pipeline, erased: str
) -> None:
    """Reads every file of the data folder, and decompresses Parquet and Kafka's batches."""
    search = NumberSearch((erased, "015752982298"))
    plain = re.compile(search.expression.encode())
    holding, read = set(), set()
    # The running lander replaces files while they are read. The next round reads those that it has written.
    while unread := [path for path in pipeline.data.rglob("*") if path.is_file() and path not in read]:
        for path in sorted(unread):
            read.add(path)
            unpacked: list[bytes] = []
            try:
                content = path.read_bytes()
                if path.suffix == ".parquet":
                    unpacked = [repr(row).encode() for row in pq.read_table(BytesIO(content)).to_pylist()]
                elif path.suffix == ".log" and path.is_relative_to(pipeline.data / "kafka" / "store"):
                    unpacked = list(segment_records(path))
            except FileNotFoundError:
                continue
            # Kafka preallocates indices of 10 MB each.
            if plain.search(content.rstrip(b"\0")) or any(map(search.is_in_body, unpacked)):
                holding.add(path.relative_to(pipeline.data).parts)
    assert {parts[-2].rpartition("-")[0] for parts in holding if parts[0] == "kafka"} == {"sms.raw", "sms.messages"}
    # The command also names the state of a running worker.
    assert {parts[0] for parts in holding} <= {"kafka", "state"}, holding


def test_the_checks_find_nothing_critical_after_kills_and_an_erasure(
    pipeline: Pipeline, killed: dict[str, list[int]], erased: str
) -> None:
    hurt = "SELECT 1 FROM messages WHERE source = 'killed' OR (source = 'erased' AND recipient = 'erased')"
    assert pipeline.rows(f"{hurt} HAVING count(DISTINCT source) = 2")
    # The checks ignore records that may be in flight.
    judged = "SELECT 1 FROM messages WHERE source = 'killed' HAVING max(recorded_at) < now() - to_seconds(?)"
    pipeline.wait_for(judged, ON_ITS_WAY_S)
    rows = checked(pipeline)
    assert rows["outcomes_match_messages"]["observed"] == "0"
    assert rows["delivery_from_raw"]["observed"] == "0"


def test_maintenance_runs_meanwhile_and_the_checks_find_nothing_critical_afterwards(pipeline: Pipeline) -> None:
    before = pipeline.rows("SELECT count(*) AS n, count(DISTINCT message_key) AS keys FROM messages")
    for name in ("rebuild", "compact", "retain"):
        done = run(pipeline, name)
        assert done.exit_code == 0, (name, done.output)
    assert pipeline.rows("SELECT count(*) AS n, count(DISTINCT message_key) AS keys FROM messages") == before
    checked(pipeline)


def metrics_of(data: Path) -> dict[str, float]:
    """Return the sum of each metric of the running processes, and request the page as well."""
    counted: dict[str, float] = {}
    for endpoint in list_endpoints(data):
        if endpoint.name == "page":
            shown = fetch_response(endpoint.host, endpoint.port, "/")
            counted["page"] = float(shown is not None and b"messages that ended" in shown[1])
        answer = fetch_response(endpoint.host, endpoint.port, "/metrics")
        for family in text_string_to_metric_families(answer[1].decode() if answer else ""):
            if family.samples:
                counted[family.name] = sum(sample.value for sample in family.samples)
    return counted


def test_status_page_and_metrics_show_the_running_processes(pipeline: Pipeline) -> None:
    assert post(pipeline.source("measured"), status(1, 7))[0] == 202
    pipeline.wait_for("SELECT 1 FROM messages WHERE source = 'measured'")
    port = pipeline.url.rpartition(":")[2]
    names = {"broker", "ingest", "stream-0", "stream-1", "lander-up", "page", "alerts"}
    # A process that answers slowly counts as one that does not. The page and the alert process publish their addresses
    # after `up` is ready, so on a busy machine the test repeats its query.
    deadline = time.monotonic() + SETTLE_S
    while True:
        done = run(pipeline, "status", "--port", port, "--format", "json")
        found = json.loads(done.stdout)
        shown = {each["name"] for each in found["processes"]}
        if (not found["trouble"] and shown == names) or time.monotonic() > deadline:
            break
    assert found["trouble"] == []
    assert done.exit_code == (1 if found["alerts"] else 0)  # the traffic of other tests may have caused alerts
    assert shown == names
    assert set(found["lag"]) == {"smspulse-stream", "smspulse-lander"}
    further = ("stream_records", "stream_messages_ended", "stream_lag_records", "lander_rows", "lander_lag_records")
    wanted = {"page", *(f"smspulse_{name}" for name in ("page_read_seconds", "alerts_firing", *further))}
    counted = metrics_of(pipeline.data)
    while not wanted <= counted.keys() or not counted["page"]:
        assert time.monotonic() < deadline, wanted - counted.keys()
        counted = metrics_of(pipeline.data)
    assert counted["smspulse_stream_records"] > 0
    assert counted["smspulse_lander_rows"] > 0


def test_workers_share_the_partitions_and_are_restarted_individually(pipeline: Pipeline) -> None:
    before = [pipeline.pid("stream", worker) for worker in (0, 1)]
    os.kill(before[1], signal.SIGKILL)
    url = pipeline.source("shared")
    for sms_id in range(20):
        assert post(url, status(sms_id, 7))[0] == 202
    pipeline.wait_for("SELECT 1 FROM messages WHERE source = 'shared' HAVING count(*) = 20")
    after = [pipeline.pid("stream", worker) for worker in (0, 1)]
    assert (after[0] == before[0], after[1] == before[1]) == (True, False)
    log = pipeline.log.read_text()
    for worker in (0, 1):
        assert list((pipeline.data / "state" / str(worker)).rglob("CURRENT")), worker  # each has its own RocksDB
        assert f"stream-{worker} │ owns partition" in log


def test_everything_stops_and_leaves_no_process(pipeline: Pipeline) -> None:
    """The last test that uses the pipeline."""
    assert len(processes_of(pipeline)) >= 8
    pipeline.process.send_signal(signal.SIGINT)
    assert pipeline.process.wait(120) == 0
    assert processes_of(pipeline) == []
    assert not (pipeline.data / "broker.json").exists()


def test_an_occupied_port_is_reported_in_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "smspulse", "up", "--data", str(tmp_path / "data"), "--port", str(port)],
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr == f"smspulse: port {port} is taken: stop what listens there, or choose another with --port\n"


def test_several_workers_on_the_in_memory_broker_are_refused_in_one_line(tmp_path: Path) -> None:
    arguments = ("up", "--broker", "memory", "--workers", "2", "--data", str(tmp_path), "--port", str(find_free_port()))
    done = subprocess.run([sys.executable, "-m", "smspulse", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    line = "the in-memory broker serves one stream worker: leave out --workers, or use a real Kafka"
    assert done.stderr == f"smspulse: {line}\n"
