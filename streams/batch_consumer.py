"""Faust consumer whose events are whole fetched runs of records, so its cost per event is paid once per run.

Faust delivers one event per record: four asyncio tasks, a lock and an acknowledgement each, about 200 µs of CPU. Here
one event is all records of one partition that a fetch returned. Its value is the list of records, and its offset that
of the last one. Faust keeps its consumer group, assignment, flow control and agents.

Offsets are committed in transactions of `streams.partition_processor`, so this consumer commits nothing and does not
track acknowledgements. That also rules out Faust's commits past an unacknowledged record (its issue 606).

Written for faust-streaming 0.15.3.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import Any, NoReturn

import faust
from aiokafka.errors import IllegalStateError
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, Message
from faust.types.tuples import ConsumerMessage
from mode.utils.futures import notify

from core.background_tasks import end_process
from streams.errors import WORKER_STOPS, StreamError

# Runs that are delivered and not processed yet. Few, so that records wait in the fetcher, where runs grow longer.
_MAX_WAITING = 4


# A partition without records waits for the end of a fetch of the others. Faust's default of 1.5 s is too long.
_FETCH_WAIT_MS = 50


class _ConsumerThread(driver.AIOKafkaConsumerThread):
    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        consumer._fetch_max_wait_ms = _FETCH_WAIT_MS
        return consumer

    async def on_start(self) -> None:
        """End the process when the group fails permanently."""
        await super().on_start()
        # The client would report the error at the next request for records, which Faust does not make without a
        # partition: a worker that the group refuses would wait for ever.
        self._consumer._coordinator._push_error_to_user = _end_refused_process

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Seek to the committed offsets, and to the beginning of partitions without one."""
        offsets: Mapping[TP, int] = await self.call_thread(self._seek_to_committed)
        return offsets

    def fetch_position(self, tp: TP) -> int | None:
        """Return the offset up to which the client has read, past transaction markers; None if it is not known."""
        subscription = self._ensure_consumer()._subscription.subscription
        assignment = subscription.assignment if subscription is not None else None
        if assignment is None or tp not in assignment.tps:
            return None
        # Read once, because the thread of the client can reset it.
        position: int | None = assignment.state_value(tp)._position
        return position

    async def _seek_to_committed(self) -> Mapping[TP, int]:
        consumer = self._ensure_consumer()
        assigned = consumer.assignment()
        # The client asserts that there are partitions.
        offsets = await consumer.seek_to_committed(*assigned) if assigned else {}
        if uncommitted := [tp for tp, offset in offsets.items() if not offset]:
            # The client does not move those: they stand behind records that were fetched and dropped.
            await consumer.seek_to_beginning(*uncommitted)
        return offsets


def _end_refused_process(error: Exception) -> NoReturn:
    end_process(WORKER_STOPS, StreamError(f"Kafka's consumer group refuses it ({error!r})"))


class BatchConsumer(driver.Consumer):
    """A Faust consumer whose every message is a run of records of one partition."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Reads committed records, and ends at the last one. Faust's own transactions are disabled below.
        self.in_transaction = True
        self._handed_out: dict[TP, int] = {}

    def _new_consumer_thread(self) -> Any:
        return _ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    def on_init_dependencies(self) -> list[Any]:
        """Return nothing instead of Faust's manager of transactions."""
        return []

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, Message]]:  # noqa: ASYNC109 - Faust's signature
        """Yield one message per partition with records, once the runs before are processed."""
        self._forget_acknowledged_offsets()
        if len(self._unacked_messages) >= _MAX_WAITING:
            await self._wait_for_ack(timeout)
            return
        runs, _ = await self._wait_next_records(timeout)
        if runs is None or self.should_stop:
            return
        # Read after the wait: a rebalance during it makes these records of the new generation.
        generation = self.app.consumer_generation_id
        self._handed_out |= {tp: records[-1].offset + 1 for tp, records in runs.items() if records}
        if not self.flow_active:
            if any(runs.values()):
                # Another rebalance revoked them. Their next owner fetches them.
                with suppress(IllegalStateError):
                    await self.perform_seek()
            return
        for tp, records in runs.items():
            if not self.flow_active or self.app.consumer_generation_id != generation:
                return
            if records:
                yield tp, self._to_run(tp, records, generation)

    def _forget_acknowledged_offsets(self) -> None:
        """Drop the offsets that Faust keeps until they are committed, which does not happen here.

        Faust's compiled iterator of streams adds them itself, without a call of `ack`. They would take 100 bytes a
        record. It also would not acknowledge a run again that has been sought and fetched again.
        """
        self._acked.clear()
        self._acked_index.clear()

    def position_behind_markers(self, tp: TP, processed: int) -> int:
        """Return the offset up to which a partition is read and processed, past the transaction markers.

        Args:
            tp: The partition.
            processed: The offset behind the last record that was processed.
        """
        if processed < self._handed_out.get(tp, 0):
            # The client has read further records, which are not processed yet.
            return processed
        return max(self._thread.fetch_position(tp) or 0, processed)

    @staticmethod
    def _to_run(tp: TP, records: list[Any], generation: int) -> ConsumerMessage:
        last = records[-1]
        place = last.topic, last.partition, last.offset, last.timestamp / 1000, last.timestamp_type
        # Without headers, key, checksum and sizes: the records have their own.
        return ConsumerMessage(*place, (), None, records, None, 0, 0, tp, generation_id=generation)

    def ack(self, message: Message) -> bool:
        """Drop the message. Nothing is committed."""
        message.acked = True
        self._unacked_messages.discard(message)
        notify(self._waiting_for_ack)
        return True

    def on_buffer_full(self, tp: TP) -> None:
        """Do nothing: Faust would pause the partition, and sleep for a second once all are paused."""

    def on_buffer_drop(self, tp: TP) -> None:
        """Do nothing: no partition was paused."""

    async def commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:
        """Do nothing."""
        return False

    force_commit = commit

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Do nothing: this check of Faust for stuck partitions cannot see transactions, and would report all of them.

        It knows only Faust's own commits, and measures the wait for a fetch from the start of the worker, so it also
        reports partitions that were assigned later. The lag of the stream shows partitions that are stuck: the metric
        `smspulse_stream_lag_records`, and for `sms.raw` the alert `pipeline` and the check `messages_up_to_date`.
        """

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        """Do nothing: the offsets between the ends of two runs are no gap."""


class BatchTransport(driver.Transport):
    """The transport to set as `app.transport`."""

    Consumer = BatchConsumer


class RunSchema(faust.Schema):
    """Passes the records of a run on unchanged."""

    def loads_key(self, app: Any, message: Message, **_: Any) -> None:
        """Return None: a run has no key."""

    def loads_value(self, app: Any, message: Message, **_: Any) -> Any:
        """Return the records."""
        return message.value
