"""The stream as a quixstreams program: state in RocksDB with a changelog, an output topic.

    python with_quixstreams.py BROKER GROUP INPUT OUTPUT FOLDER GUARANTEE COMMIT_INTERVAL

Its defaults, but for the compression that all contestants have and room in the producer's queue for a whole interval.
"""

import sys
from typing import Any

from fold import fold
from quixstreams import Application


def main() -> None:
    """Run until a signal."""
    broker, group, source, target, folder, guarantee, interval = sys.argv[1:]
    app = Application(
        broker_address=broker,
        consumer_group=group,
        auto_offset_reset="earliest",
        processing_guarantee=guarantee,
        commit_interval=float(interval),
        state_dir=folder,
        producer_extra_config={"compression.type": "lz4", "queue.buffering.max.messages": 1_000_000},
        loglevel="WARNING",
    )
    raw = app.topic(source, key_deserializer="bytes", value_deserializer="bytes")
    messages = app.topic(target, key_serializer="bytes", value_serializer="bytes")

    def version(value: bytes, key: bytes, _: int, headers: Any, state: Any) -> bytes:
        new = fold(state.get_bytes("version"), key, value, int(dict(headers)["received_at"]))
        state.set_bytes("version", new)
        return new

    app.dataframe(raw).apply(version, stateful=True, metadata=True).to_topic(messages)
    app.run()


if __name__ == "__main__":
    main()
