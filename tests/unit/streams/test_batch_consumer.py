"""What of Faust's internals the batch transport relies on, and what it keeps Faust from doing."""

import hashlib
import inspect
from collections import defaultdict
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock, Mock

import faust
import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.errors import IllegalStateError
from faust._cython.streams import StreamIterator
from faust.tables.recovery import Recovery
from faust.transport import conductor, consumer
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from streams.batch_consumer import BatchConsumer

# Each was read and found to go with `BatchConsumer`: what it calls, what calls it, and what it replaces.
RELIED_ON: dict[str, tuple[Any, str]] = {
    "calls getmany and on_message": (consumer.Consumer._drain_messages, "44a2500309e83c63"),
    "is replaced by getmany": (consumer.Consumer.getmany, "4b168d84882a70d6"),
    "waits for records": (consumer.Consumer._wait_next_records, "6218e1969a636b3f"),
    "waits for an acknowledgement": (consumer.Consumer._wait_for_ack, "d9c9337d4af88e54"),
    "is replaced by ack": (consumer.Consumer.ack, "5fcf41cf45153475"),
    "waits for what is unacknowledged": (consumer.Consumer.wait_empty, "e4662fe24f094819"),
    "is replaced by commit": (consumer.Consumer.commit, "a354437baaa08bf8"),
    "sets in_transaction": (consumer.Consumer.__init__, "302410d59e6972d1"),
    "is replaced by on_init_dependencies": (consumer.Consumer.on_init_dependencies, "8629b24c670b5a43"),
    "reads committed records when in_transaction": (
        driver.AIOKafkaConsumerThread._create_worker_consumer,
        "c2701bfc3e6f6cad",
    ),
    "knows the last stable offset when in_transaction": (driver.AIOKafkaConsumerThread.highwater, "6f7dbe109ae6807f"),
    "is replaced by _new_consumer_thread": (driver.Consumer._new_consumer_thread, "0870ec53dea75083"),
    "is replaced by seek_to_committed": (driver.AIOKafkaConsumerThread.seek_to_committed, "775ab0adc4b052ab"),
    "seeks": (consumer.Consumer.perform_seek, "0e8c130ff4b0afd8"),
    "seeks and resumes the flow": (Recovery._resume_streams, "d986a6710c1aca98"),
    "leaves partitions where nothing is committed": (AIOKafkaConsumer.seek_to_committed, "f6cd85c8b70a4ccf"),
    "starts the client": (driver.AIOKafkaConsumerThread.on_start, "38b4e8bd1e10723a"),
    "waits for an error to be asked for": (GroupCoordinator._push_error_to_user, "743ff515bd7e2e38"),
    "is replaced by verify_event_path": (driver.Consumer.verify_event_path, "a17e8f0610e1abcb"),
    "looks for stuck partitions": (driver.AIOKafkaConsumerThread.verify_event_path, "b983e7735f647cb3"),
    "looks for missing fetches": (driver.AIOKafkaConsumerThread._verify_aiokafka_event_path, "c7c75a7c73289962"),
    "calls verify_event_path": (consumer.Consumer.verify_all_partitions_active, "4e0e46f5c297305d"),
    "hands messages to streams": (conductor.ConductorCompiler.build, "837cf521368c1ee4"),
}


def digest(function: Any) -> str:
    return hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:16]


@pytest.mark.parametrize("why", RELIED_ON)
def test_what_is_relied_on_is_as_it_was_read(why: str) -> None:
    function, known = RELIED_ON[why]
    assert digest(function) == known, (
        f"{function.__qualname__} of faust-streaming {version('faust-streaming')} is not what "
        f"streams/batch_consumer.py was written for ({why}). Read both, fix the consumer, and write the new digest here"
    )


def records(number: int, *offsets: int) -> list[Any]:
    return [
        SimpleNamespace(topic="sms.raw", partition=number, offset=offset, timestamp=1_000 * offset, timestamp_type=0)
        for offset in offsets
    ]


class FakeConsumer(BatchConsumer):
    """Without Faust's set-up: what is fetched is given, and nothing else is there."""

    def __init__(self, fetched: dict[TP, list[Any]]) -> None:
        self.app = SimpleNamespace(consumer_generation_id=7)
        self.flow_active = True
        self._fetched = fetched
        self._handed_out = {}
        self._thread = SimpleNamespace(fetch_position=lambda _: self.position)
        self.position: int | None = None
        self._unacked_messages: set[Any] = set()  # type: ignore[assignment]
        self._acked, self._acked_index = defaultdict(list), defaultdict(set)
        self._committed_offset = defaultdict(lambda: None)
        self._waiting_for_ack = None
        self.seeks = 0
        self.seek_fails: Exception | None = None

    async def perform_seek(self) -> None:
        self.seeks += 1
        if self.seek_fails:
            raise self.seek_fails

    @property
    def should_stop(self) -> bool:
        return False

    async def _wait_next_records(self, timeout: float) -> Any:  # noqa: ASYNC109
        return self._fetched, set()


async def test_a_position_is_behind_transaction_markers_once_all_that_was_handed_out_is_processed() -> None:
    tp = TP("sms.outcomes", 0)
    consumer = FakeConsumer({tp: records(0, 4, 5, 9)})
    assert consumer.position_behind_markers(tp, 4) == 4
    assert [message.offset async for _, message in consumer.getmany(1)] == [9]
    consumer.position = 12  # two markers follow the last record
    assert consumer.position_behind_markers(tp, 4) == 4
    assert consumer.position_behind_markers(tp, 6) == 6
    assert consumer.position_behind_markers(tp, 10) == 12
    consumer.position = None  # as in a rebalance
    assert consumer.position_behind_markers(tp, 10) == 10


async def test_a_fetch_is_one_message_a_partition() -> None:
    first, second = TP("sms.raw", 0), TP("sms.raw", 1)
    fetched = {first: records(0, 4, 5, 9), second: records(1, 2), TP("sms.raw", 2): []}
    found = [(tp, message) async for tp, message in FakeConsumer(fetched).getmany(1)]
    assert [(tp, message.offset, message.generation_id) for tp, message in found] == [(first, 9, 7), (second, 2, 7)]
    assert found[0][1].value == fetched[first]


async def test_runs_of_an_assignment_that_is_gone_are_not_handed_out() -> None:
    one = FakeConsumer({TP("sms.raw", number): records(number, 1) for number in range(3)})
    found = []
    async for tp, _ in one.getmany(1):
        found.append(tp.partition)
        one.app.consumer_generation_id = 8
    assert found == [0]


async def test_a_run_that_is_fetched_again_is_acknowledged_again_and_no_offset_is_kept() -> None:
    tp = TP("sms.raw", 0)
    consumer = FakeConsumer({tp: records(0, 4, 5)})
    # It acknowledges messages by itself, as it does in a worker.
    conf = faust.App("test").conf
    iterator = StreamIterator(MagicMock(**{"app.consumer": consumer, "app.conf": conf}))
    for _ in range(2):
        ((_, message),) = [each async for each in consumer.getmany(1)]
        assert not consumer._acked
        assert not consumer._acked_index
        consumer._unacked_messages.add(message)
        message.refcount = 1
        iterator.after(SimpleNamespace(message=message), True, None)
        assert not consumer._unacked_messages
        assert consumer._acked_index == {tp: {5}}, "Faust does not keep offsets any more"


@pytest.mark.parametrize("fails", [None, IllegalStateError("another rebalance")], ids=["sought", "taken away"])
@pytest.mark.parametrize(("fetched", "seeks"), [({}, 0), ({TP("sms.raw", 0): records(0, 1)}, 1)], ids=["none", "one"])
async def test_what_comes_while_the_flow_is_stopped_is_let_go_and_sought_again(
    fetched: dict[TP, list[Any]], seeks: int, fails: Exception | None
) -> None:
    one = FakeConsumer(fetched)
    one.flow_active, one.seek_fails = False, fails
    assert [each async for each in one.getmany(1)] == []
    assert one.seeks == seeks


async def test_faust_commits_nothing_whatever_it_acknowledges() -> None:
    one = FakeConsumer({})
    message: Any = Mock(acked=False)
    one._unacked_messages.add(message)
    assert one.ack(message)
    assert one._unacked_messages == set()
    # Faust's issue 606 commits past a message that is not acknowledged, and its commits never prove an output.
    assert not await one.commit()
    assert not await one.force_commit()


_NOW = 10_000.0
_TP = TP("sms.raw", 0)


class _WatchedThread(driver.AIOKafkaConsumerThread):
    """The thread whose checks of stuck partitions Faust runs, without a client."""

    def __init__(self, *, highwater: int | None, fetched_at: float | None, last_event_at: float | None) -> None:
        self.time_started = _NOW - 3600
        self.tp_last_committed_at = {}
        self.tp_fetch_request_timeout_secs = self.tp_stream_timeout_secs = self.tp_commit_timeout_secs = 300.0
        self.log = Mock()
        inbound = {} if last_event_at is None else {_TP: last_event_at}
        self.consumer = Mock()
        self.consumer.app.monitor.stream_inbound_time = inbound
        self.consumer.app.topics.acks_enabled_for.return_value = True
        # The client has fetched up to 50, and the topic ends at `highwater`, as under load.
        timestamp = None if fetched_at is None else fetched_at * 1000
        self._state = SimpleNamespace(highwater=highwater, position=50, timestamp=timestamp)

    def _ensure_consumer(self) -> Any:
        client = Mock()
        client._fetcher._subscriptions.subscription.assignment.state_value.return_value = self._state
        return client


class _WatchedConsumer(FakeConsumer):
    def __init__(self, thread: _WatchedThread) -> None:
        super().__init__({})
        self._thread = thread

    def assignment(self) -> set[TP]:
        return {_TP}

    async def sleep(self, n: Any, *, loop: Any = None) -> None:
        """Return at once."""


@pytest.mark.parametrize(
    ("highwater", "fetched_at", "last_event_at", "line"),
    [
        (100, _NOW, _NOW, "Has not committed"),
        (100, _NOW, _NOW - 600, "Stream"),
        (100, _NOW, None, "Stream"),
        (None, _NOW, None, "Highwater"),
        (None, None, None, "request"),
    ],
    ids=["no commit of Faust", "a quiet partition", "no event yet", "assigned just now", "not fetched yet"],
)
async def test_faust_does_not_report_a_healthy_partition_as_stuck(
    monkeypatch: pytest.MonkeyPatch,
    highwater: int | None,
    fetched_at: float | None,
    last_event_at: float | None,
    line: str,
) -> None:
    monkeypatch.setattr(consumer, "monotonic", lambda: _NOW)
    thread = _WatchedThread(highwater=highwater, fetched_at=fetched_at, last_event_at=last_event_at)
    watched = _WatchedConsumer(thread)
    # Faust's own consumer would log it.
    driver.Consumer.verify_event_path(watched, _NOW, _TP)
    assert line.lower() in thread.log.error.call_args.args[0].lower()
    thread.log.reset_mock()
    await watched.verify_all_partitions_active()
    assert thread.log.error.call_args_list == []
