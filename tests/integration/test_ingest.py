"""Ingest as a process of its own, over HTTP, into a real Kafka."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from aiokafka.partitioner import murmur2
from kafka import KafkaConsumer

from core.kafka_settings import KafkaSettings
from core.topics import RAW
from ingest.sources import add_source, webhook_url
from smspulse.broker.kafka_broker import KafkaBroker
from smspulse.broker.settings import BrokerSettings
from smspulse.broker.topic_admin import ensure_topics
from smspulse.processes.children import find_free_port

RUN = """
import logging, sys
from pathlib import Path
from core.kafka_settings import KafkaSettings
from ingest.server import run_ingest
from ingest.settings import IngestSettings
logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
kafka = KafkaSettings(bootstrap=sys.argv[1])
run_ingest(IngestSettings(port=0), kafka, Path(sys.argv[2]), lambda url: print(url, flush=True))
"""


class Ingest:
    """A running ingest with one source of a unique name."""

    def __init__(self, process: "subprocess.Popen[str]", log: Path, data: Path) -> None:
        assert process.stdout is not None
        self.process, self._log, self._data = process, log, data
        self.url = process.stdout.readline().strip()
        assert self.url.startswith("http://127.0.0.1:"), log.read_text()
        self.port = int(self.url.rpartition(":")[2])
        self.source = f"s{uuid.uuid4().hex}"
        self.token = add_source(data, self.source)
        self.retry_after: str | None = None

    @property
    def log(self) -> list[str]:
        return self._log.read_text().splitlines()

    def post(self, body: bytes, content_type: str = "application/json") -> tuple[int, Any]:
        request = urllib.request.Request(  # noqa: S310 - http
            webhook_url(self.url, self.source, self.token), body, {"Content-Type": content_type}
        )
        return self._open(request)

    def ready(self) -> tuple[int, Any]:
        return self._open(urllib.request.Request(f"{self.url}/readyz"))  # noqa: S310 - http

    def _open(self, request: urllib.request.Request) -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310 - http
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 503 and request.data is not None:
                    self.retry_after = error.headers["Retry-After"]
                return error.code, json.load(error)

    @property
    def in_flight(self) -> bool:
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=60) as response:  # noqa: S310 - http
            return b"smspulse_ingest_webhooks_in_flight 1.0" in response.read()

    def wait_kafka(self) -> None:
        until(self.ready, lambda answer: answer[1]["kafka"] == "ok" and not answer[1]["spool"]["webhooks"])

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(60)


def until(look: Callable[[], Any], enough: Callable[[Any], bool], within_s: float = 240) -> Any:
    """Look at another process until it shows what is expected."""
    deadline = time.monotonic() + within_s
    while not enough(seen := look()):
        assert time.monotonic() < deadline, f"still {seen}"
        time.sleep(0.05)
    return seen


@contextlib.contextmanager
def ingest(
    data: Path, bootstrap: str, log: Path | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[Ingest]:
    log = log or data / "ingest.log"
    with (
        log.open("w") as errors,
        subprocess.Popen(
            [sys.executable, "-c", RUN, bootstrap, str(data)],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=os.environ | (environment or {}),
        ) as process,
    ):
        try:
            yield Ingest(process, log, data)
        finally:
            process.kill()


@pytest.fixture
def receiver(tmp_path: Path, kafka: KafkaSettings) -> Iterator[Ingest]:
    with ingest(tmp_path, kafka.bootstrap) as running:
        running.wait_kafka()
        yield running


def stored(kafka: KafkaSettings, source: str) -> list[Any]:
    """Return all records of a source, up to the ends of the partitions as they are now."""
    consumer = KafkaConsumer(
        RAW, auto_offset_reset="earliest", enable_auto_commit=False, **kafka.kafka_python_options()
    )
    found = []
    until(lambda: (consumer.poll(0), consumer.assignment())[1], bool)
    ends = consumer.end_offsets(consumer.assignment())
    consumer.seek_to_beginning()
    while any(consumer.position(partition) < end for partition, end in ends.items()):
        for records in consumer.poll(500).values():
            found += [record for record in records if dict(record.headers).get("source") == source.encode()]
    consumer.close()
    return found


def status(sms_id: int) -> bytes:
    return b'{"sms_id": %d, "status_id": 7}' % sms_id


def test_what_is_sent_is_what_kafka_holds(receiver: Ingest, kafka: KafkaSettings) -> None:
    before = time.time_ns() // 1_000_000
    bodies = [
        status(17),
        b' {"status_id":"7","sms_id":"18"}\n',
        b'{"sms_id": 19',
        b"\xff\x00caf\xe9",
        b"",
        bytes(262_144),
    ]
    ids = []
    for body in bodies:
        code, answer = receiver.post(body, "text/plain; charset=latin-1")
        assert code == 202
        ids.append(answer["ingest_id"])
    records = {dict(record.headers)["ingest_id"].decode(): record for record in stored(kafka, receiver.source)}
    assert sorted(records) == sorted(ids)
    keys = [f"{receiver.source}:17".encode(), f"{receiver.source}:18".encode(), None, None, None, None]
    for ingest_id, body, key in zip(ids, bodies, keys, strict=True):
        record = records[ingest_id]
        headers = dict(record.headers)
        assert (record.key, record.value) == (key, body)
        assert headers["content_type"] == b"text/plain; charset=latin-1"
        assert int(headers["received_at"]) == record.timestamp
        assert before <= record.timestamp <= time.time_ns() // 1_000_000
        assert list(headers) == ["source", "received_at", "ingest_id", "content_type"]
        assert uuid.UUID(ingest_id).version == 7


def test_a_key_is_in_the_partition_that_java_would_choose(receiver: Ingest, kafka: KafkaSettings) -> None:
    # Known values of org.apache.kafka.common.utils.Utils.murmur2, so that both of us being wrong shows.
    assert [murmur2(text) - (murmur2(text) >> 31 << 32) for text in (b"21", b"foobar")] == [-973932308, -790332482]
    for sms_id in range(1, 41):
        assert receiver.post(status(sms_id))[0] == 202
    records = stored(kafka, receiver.source)
    assert len(records) == 40
    assert {record.partition for record in records} == {0, 1, 2, 3}
    for record in records:
        assert record.partition == (murmur2(record.key) & 0x7FFFFFFF) % 4


def test_a_webhook_delivered_twice_is_stored_twice_and_in_order(receiver: Ingest, kafka: KafkaSettings) -> None:
    ids = [receiver.post(status(17))[1]["ingest_id"] for _ in range(2)]
    records = stored(kafka, receiver.source)
    assert [dict(record.headers)["ingest_id"].decode() for record in records] == ids
    assert len({*ids, *(record.offset for record in records)}) == 4
    assert {record.value for record in records} == {status(17)}


def test_refused_webhooks_leave_nothing_in_kafka(receiver: Ingest, kafka: KafkaSettings) -> None:
    wrong = receiver.token[:-1]
    for path, headers, body, code in (
        (f"/webhooks/{receiver.source}/{wrong}", {}, status(1), 401),
        (f"/webhooks/x{receiver.source}/{receiver.token}", {}, status(1), 401),
        (f"/hooks/{receiver.source}/{receiver.token}", {}, status(1), 404),
        (f"/webhooks/{receiver.source}/{receiver.token}", {}, bytes(262_145), 413),
        (f"/webhooks/{receiver.source}/{receiver.token}", {"Transfer-Encoding": "chunked"}, [bytes(262_145)], 413),
    ):
        connection = http.client.HTTPConnection("127.0.0.1", receiver.port, timeout=60)
        connection.request("POST", path, body, headers, encode_chunked=isinstance(body, list))
        assert connection.getresponse().status == code
        connection.close()
    assert stored(kafka, receiver.source) == []


def test_a_source_added_while_running_serves_and_no_token_is_in_the_log(receiver: Ingest, tmp_path: Path) -> None:
    receiver.token = add_source(tmp_path, name := f"{receiver.source}-2")
    receiver.source = name
    assert receiver.post(status(1))[0] == 202
    assert receiver.token not in "\n".join(receiver.log)


def test_sigterm_lets_requests_in_flight_arrive_whole(receiver: Ingest, kafka: KafkaSettings) -> None:
    path = webhook_url("", receiver.source, receiver.token).encode()
    connections = []
    for _ in range(20):
        connection = socket.create_connection(("127.0.0.1", receiver.port), timeout=60)
        body = status(1)
        head = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n" % (path, len(body))
        connection.sendall(head)
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"  # so it is in flight
        connection.sendall(body[:10])
        connections.append(connection)
    receiver.process.terminate()
    until(lambda: socket.socket().connect_ex(("127.0.0.1", receiver.port)), bool)  # it accepts no more
    answers = []
    for connection in connections:
        connection.sendall(body[10:])
    for connection in connections:
        with connection, connection.makefile("rb") as answer:
            head, _, text = answer.read().partition(b"\r\n\r\n")  # up to the end, for it closes them
            assert head.startswith(b"HTTP/1.1 202 ")
            answers.append(json.loads(text)["ingest_id"])
    assert receiver.process.wait(60) == 0
    assert sorted(answers) == sorted(
        dict(record.headers)["ingest_id"].decode() for record in stored(kafka, receiver.source)
    )


def test_without_a_broker_it_takes_webhooks_at_once_and_forwards_them_by_itself(
    tmp_path: Path, real_kafka: None
) -> None:
    settings = BrokerSettings(port=find_free_port(0), controller_port=0, login=False)
    kafka = KafkaSettings(bootstrap=f"127.0.0.1:{settings.port}", partitions=4, replication=1, min_insync=1)
    broker = KafkaBroker(tmp_path / "broker", settings)
    with ingest(tmp_path, kafka.bootstrap) as running:
        code, answer = running.post(status(1))
        assert code == 202
        until(lambda: running.log, lambda log: any("not reachable" in line for line in log))
        code, ready = running.ready()
        assert (code, ready["ready"], ready["kafka"]) == (200, True, "Kafka is not reachable")
        assert ready["spool"]["webhooks"] == 1
        broker.start()
        try:
            assert broker.address == kafka.bootstrap
            until(running.ready, lambda answer: "no topic" in answer[1]["kafka"])
            assert running.post(b"unreadable")[0] == 202
            ensure_topics(kafka)
            running.wait_kafka()
            until(running.ready, lambda answer: answer[1]["spool"]["webhooks"] == 0)
            direct = running.post(status(2))[1]["ingest_id"]
            first, second, third = sorted(stored(kafka, running.source), key=lambda record: record.timestamp)
            assert dict(first.headers)["ingest_id"].decode() == answer["ingest_id"]
            assert (first.value, first.key) == (status(1), f"{running.source}:1".encode())
            assert dict(first.headers)["received_at"].decode() == str(first.timestamp)
            assert (second.value, second.key) == (b"unreadable", None)
            assert dict(third.headers)["ingest_id"].decode() == direct
            assert ["spooled" in dict(record.headers) for record in (first, second, third)] == [True, True, False]

            # Stopped while Kafka answers nothing, it answers what is in flight from the spool.
            assert broker.jvm is not None
            os.kill(broker.jvm.pid, signal.SIGSTOP)
            with ThreadPoolExecutor() as pool:
                posted = pool.submit(running.post, status(3))
                until(lambda: running.in_flight, bool)
                assert running.stop() == 0
                assert posted.result()[0] == 202
            os.kill(broker.jvm.pid, signal.SIGCONT)
        finally:
            broker.stop()
    # One line on each loss and one on each recovery, and nothing else; the first two come as they may.
    lines = [line.partition(",")[0].partition(" after")[0] for line in running.log]
    assert [*sorted(lines[:3]), *lines[3:]] == [
        "INFO sources loaded again: 1",
        "WARNING Kafka is not reachable",
        "WARNING no source may send yet: add one with `smspulse source add NAME`",
        "INFO Kafka is back",
        "INFO 2 webhooks of the spool were forwarded",
        "INFO 1 webhooks stay in the spool and are forwarded when ingest runs again",
    ]


def test_it_stops_while_kafka_is_away_and_keeps_what_it_answered(tmp_path: Path) -> None:
    with ingest(tmp_path, f"127.0.0.1:{find_free_port(0)}") as running:
        assert running.post(status(1))[0] == 202
        assert running.stop() == 0
    assert running.log[-1] == "INFO 1 webhooks stay in the spool and are forwarded when ingest runs again"


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """Mount an empty file system of its own, or skip where that may not be done."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a small disk needs the right to mount one: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("reserve", [0, 6_000_000])
def test_a_full_disk_is_answered_503_and_nothing_is_lost(tmp_path: Path, kafka: KafkaSettings, reserve: int) -> None:
    def body(sms_id: int) -> bytes:
        return b'{"sms_id": %d, "status_id": 7, "status_message": "%s"}' % (sms_id, b"x" * 100_000)

    answered: dict[str, int] = {}
    limits = {"SMSPULSE_INGEST_SPOOL_RESERVE_BYTES": str(reserve)}
    with small_disk(tmp_path / "disk", 24) as data:
        (data / "filler").write_bytes(bytes(6_000_000))
        (data / "another").write_bytes(bytes(1_000_000))
        with ingest(data, f"127.0.0.1:{find_free_port(0)}", tmp_path / "before.log", limits) as running:
            for room in (False, True):
                if room:
                    (data / "filler").unlink()
                refused = 0
                while refused < 20:
                    code, answer = running.post(body(sms_id := len(answered)))
                    if code == 202:
                        answered[answer["ingest_id"]] = sms_id
                    else:
                        assert code == 503
                        assert "spool" in answer["error"], answer
                        assert str(data) not in answer["error"]
                        assert running.retry_after == "5"
                        refused += 1
                assert len(answered) > (60 if room else 10)
            source = running.source
            if reserve:
                assert running.ready()[0] == 503
            assert running.stop() == 0
            assert sum("answered 503" in line for line in running.log) == 2
        if not reserve:
            (data / "another").unlink()  # with a reserve, nothing has to be freed for it to go on
        with ingest(data, kafka.bootstrap, tmp_path / "after.log", limits) as running:
            running.wait_kafka()
            until(running.ready, lambda answer: answer[0] == 200)
            assert running.post(body(1))[0] == 202
            assert running.stop() == 0
    records = stored(kafka, source)
    assert {dict(record.headers)["ingest_id"].decode(): record.value for record in records} == {
        ingest_id: body(sms_id) for ingest_id, sms_id in answered.items()
    }


def test_what_privacy_hides_never_reaches_kafka(
    tmp_path: Path, kafka: KafkaSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMSPULSE_INGEST_PRIVACY", "mask")
    monkeypatch.setenv("SMSPULSE_INGEST_BODIES", "drop")
    bodies = [
        b'{"sms_id": 17, "status_id": 7, "sendto": "+4917612345678"}',
        b'{"sms_id": 18, "type": "text", "address": "+4917612345678", "body": "call +4917612345678"}',
        b'{"sms_id": 19, "sendto": "+4917612345678"',
    ]
    with ingest(tmp_path, kafka.bootstrap) as running:
        running.wait_kafka()
        for body in bodies:
            assert running.post(body)[0] == 202
        records = stored(kafka, running.source)
        assert "1234567" not in "\n".join(running.log)
    assert {(record.key or b"").rpartition(b":")[2]: json.loads(record.value) for record in records} == {
        b"17": {"sms_id": 17, "status_id": 7, "sendto": "****5678"},
        b"18": {"sms_id": 18, "type": "text", "address": "****5678"},
        b"": {"withheld": "not_json", "field": None, "bytes": 41},
    }
