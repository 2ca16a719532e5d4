"""A formatted Kafka store that is copied, so that each Kafka of the tests need not format its own.

Kafka's tool needs 1.4 s of processor time to format a store. Copies have the same cluster id, but the ids of their
topics are random, and smspulse distinguishes topics by these. `make test` writes the store (`class_archive.py`);
without it each Kafka formats its own.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from smspulse.broker.kafka_broker import KafkaBroker

FORMATTED_STORE = Path(__file__).parents[2] / ".venv" / "kafka-store"

_format_store = KafkaBroker._format_store


def copy_formatted_store(data: Path) -> bool:
    """Copy the formatted store into a data folder without one; return whether the folder has a store now."""
    store = data / "kafka" / "store"
    if store.exists() or not FORMATTED_STORE.exists():
        return store.exists()
    before = os.umask(0o077)  # as the broker makes it
    try:
        store.mkdir(parents=True)
        for file in FORMATTED_STORE.iterdir():
            shutil.copyfile(file, store / file.name)
    finally:
        os.umask(before)
    return True


def copy_or_format_store(broker: KafkaBroker, jars: Path) -> None:
    """Format the store of a broker of this process. Replaces `KafkaBroker._format_store`."""
    if not copy_formatted_store(broker.data):
        _format_store(broker, jars)


def format_and_keep_store(path: Path) -> Callable[[KafkaBroker, Path], None]:
    """Return a replacement of `KafkaBroker._format_store` that also leaves a copy of the formatted store at a path."""

    def format_store(broker: KafkaBroker, jars: Path) -> None:
        _format_store(broker, jars)
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(broker.data / "kafka" / "store", path)

    return format_store
