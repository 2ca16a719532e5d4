"""Topics and stores of Kafka are lost and replaced: each webhook answered 202 is in SQL once."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from confluent_kafka.admin import AdminClient
from running import LAND_OFTEN, SETTLE_S, Pipeline, post, start
from running_landers import until

from core.topic_ids import TopicIds
from core.topics import MESSAGES, RAW
from smspulse.broker.locate import find_kafka_settings
from smspulse.broker.topic_admin import ensure_topics

SOURCE = "phones"


class Sender:
    """Sends each message as two reports, sent and delivered, and records the webhooks answered 202."""

    def __init__(self) -> None:
        self.messages = 0
        self.answered: set[str] = set()
        self._path = ""

    def send(self, pipeline: Pipeline, count: int) -> None:
        self._path = self._path or pipeline.source(SOURCE).removeprefix(pipeline.url)
        url = pipeline.url + self._path
        ids = range(self.messages, self.messages + count)
        self.messages += count
        with ThreadPoolExecutor(8) as pool:
            for status_id in (6, 7):
                for code, answer in pool.map(lambda sms_id: post(url, _report(sms_id, status_id)), ids):  # noqa: B023
                    assert code == 202
                    self.answered.add(answer["ingest_id"])

    def wait_until_in_sql(self, pipeline: Pipeline) -> None:
        sql = "SELECT 1 FROM raw_webhooks HAVING count(*) >= ?"
        pipeline.wait_for(sql, len(self.answered), within=3 * SETTLE_S)
        sql = "SELECT 1 FROM messages WHERE outcome = 'delivered' HAVING count(*) >= ?"
        pipeline.wait_for(sql, self.messages, within=3 * SETTLE_S)

    def assert_all_is_in_sql_once(self, pipeline: Pipeline) -> None:
        found = [row.ingest_id for row in pipeline.rows("SELECT ingest_id FROM raw_webhooks")]
        assert len(found) == len(self.answered)
        assert set(found) == self.answered
        (row,) = pipeline.rows("SELECT count(*) AS n, count(DISTINCT sms_id) AS d FROM messages")
        assert (row.n, row.d) == (self.messages, self.messages)
        (row,) = pipeline.rows("SELECT count(*) AS n FROM messages WHERE outcome = 'delivered'")
        assert row.n == self.messages

    def assert_all_is_right(self, pipeline: Pipeline, *suites: str) -> None:
        """Compare the answered webhooks with SQL, rebuild all messages from the webhooks, and run the checks."""
        self.assert_all_is_in_sql_once(pipeline)
        assert "0 differ" in smspulse(pipeline, "rebuild", "--all").stdout
        self.assert_all_is_in_sql_once(pipeline)
        checked = smspulse(pipeline, "check", *(f"--suite={name}" for name in suites))
        assert checked.returncode == 0, checked.stdout


def _report(sms_id: int, status_id: int) -> bytes:
    return json.dumps({"sms_id": sms_id, "status_id": status_id, "device_id": 7, "channel_id": 1}).encode()


def smspulse(pipeline: Pipeline, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "smspulse", *arguments, "--data", str(pipeline.data)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@contextmanager
def running(data: Path, broker: str) -> Iterator[Pipeline]:
    """Run a pipeline, and assert that it ends without an error."""
    pipeline = start(data, "--broker", broker, "--without", "page", "--without", "alerts", environment=LAND_OFTEN)
    try:
        assert (pipeline.find("page"), pipeline.find("alerts")) == (None, None)
        yield pipeline
    finally:
        assert pipeline.stop() == 0


def test_brokers_topics_and_stores_are_replaced_and_lost_one_after_the_other_on_one_folder(
    real_kafka: None, tmp_path: Path
) -> None:
    data, copy, sender = tmp_path / "data", tmp_path / "copy", Sender()

    def send_and_compare(pipeline: Pipeline, count: int) -> None:
        sender.send(pipeline, count)
        sender.wait_until_in_sql(pipeline)
        sender.assert_all_is_in_sql_once(pipeline)

    with running(data, "memory") as pipeline:
        send_and_compare(pipeline, 20)
    with running(data, "kafka") as pipeline:
        send_and_compare(pipeline, 60)
        for topics in ([RAW], [RAW, MESSAGES]):
            recreate_topics(pipeline, topics)
            for count in (100, 5):
                send_and_compare(pipeline, count)
    shutil.copytree(data / "kafka", copy)
    with running(data, "kafka") as pipeline:
        send_and_compare(pipeline, 30)
    # Kafka's store is replaced by an older copy.
    shutil.rmtree(data / "kafka")
    shutil.move(copy, data / "kafka")
    with running(data, "kafka") as pipeline:
        send_and_compare(pipeline, 50)
    # Both stores are lost.
    shutil.rmtree(data / "kafka")
    shutil.rmtree(data / "state")
    with running(data, "kafka") as pipeline:
        send_and_compare(pipeline, 125)
        sender.assert_all_is_right(pipeline)
    with running(data, "memory") as pipeline:
        send_and_compare(pipeline, 70)


def recreate_topics(pipeline: Pipeline, topics: list[str]) -> None:
    kafka = find_kafka_settings(pipeline.data, "auto")
    admin, ids = AdminClient(kafka.confluent_options()), TopicIds(kafka)
    for future in admin.delete_topics(topics).values():
        future.result(30)
    until(lambda: not ids.read_ids(topics))
    ensure_topics(kafka, timeout_s=60)
