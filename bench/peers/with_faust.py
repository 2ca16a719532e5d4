"""The stream as an idiomatic Faust program: an agent, a table in RocksDB, an output topic.

    python with_faust.py BROKER GROUP INPUT OUTPUT FOLDER

At least once, with uvloop, raw codecs, and a producer that waits for a batch; the rest is as it comes.
"""

import sys

import faust
from fold import fold
from mode.loop import use as use_loop


def main() -> None:
    """Run until a signal."""
    broker, group, source, target, folder = sys.argv[1:]
    use_loop("uvloop")
    app = faust.App(
        group,
        broker=f"kafka://{broker}",
        store="rocksdb://",
        datadir=folder,
        web_enabled=False,
        topic_partitions=4,
        topic_disable_leader=True,
        table_standby_replicas=0,
        consumer_auto_offset_reset="earliest",
        key_serializer="raw",
        value_serializer="raw",
        producer_linger=0.02,
        producer_max_batch_size=200_000,
        producer_compression_type="lz4",
    )
    messages = app.topic(target, key_type=bytes, value_type=bytes)
    versions = app.Table("versions", key_type=bytes, value_type=bytes, options={"driver": "rocksdict"})

    @app.agent(app.topic(source, key_type=bytes, value_type=bytes))
    async def fold_reports(stream: faust.Stream) -> None:
        async for event in stream.events():
            received_at = int(dict(event.headers)["received_at"])
            new = fold(versions.get(event.key), event.key, event.value, received_at)
            versions[event.key] = new
            await messages.send(key=event.key, value=new)

    worker = faust.Worker(app, loglevel="WARN", redirect_stdouts=False)
    worker.spinner = None
    worker.execute_from_commandline()


if __name__ == "__main__":
    main()
