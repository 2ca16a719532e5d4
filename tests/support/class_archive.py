"""Write Kafka's loaded classes to an archive, so that each Kafka of the tests starts faster.

Its formatted store is kept too (`formatted_store.py`).

    python tests/support/class_archive.py FILE

Java maps the archive in place of reading and checking the classes again. A start and a stop take 3.4 s of processor
time in place of 5.3 s. The archive is bound to this Java and these jars; with others Java does not use it. Without Java
there is none.
"""

import os
import sys
import tempfile
from pathlib import Path
from unittest.mock import patch

from formatted_store import FORMATTED_STORE, format_and_keep_store

from smspulse.broker import kafka_broker
from smspulse.broker.download import list_missing_programs
from smspulse.broker.settings import BrokerSettings

_STOP_S = 120
"""Kafka writes the archive while it stops."""


def write_class_archive(path: Path) -> None:
    """Start and stop a Kafka, which writes the archive. The file is created atomically."""
    scratch = path.with_suffix(".part")
    os.environ["JDK_JAVA_OPTIONS"] = f"-XX:TieredStopAtLevel=1 -XX:ArchiveClassesAtExit={scratch.absolute()}"
    with (
        patch.object(kafka_broker, "STOP_TIMEOUT_S", _STOP_S),
        patch.object(kafka_broker.KafkaBroker, "_format_store", format_and_keep_store(FORMATTED_STORE)),
        tempfile.TemporaryDirectory() as folder,
        kafka_broker.KafkaBroker(Path(folder), BrokerSettings(port=0, controller_port=0)),
    ):
        scratch.unlink(missing_ok=True)  # of the tool that formats the store
    scratch.rename(path)


if __name__ == "__main__" and not list_missing_programs():
    write_class_archive(Path(sys.argv[1]))
