"""Distribution of the tests to the processes of `make test`, and the end of a process.

A process runs a scope at a time. A scope is a file, but for integration tests, where

- tests on the shared Kafka are in a few scopes, since each process that has one starts a Kafka of its own;
- tests that start all that they need are a scope each, so that they wait side by side.
"""

import gc
import logging
import os
import re
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).parent
CLASS_ARCHIVE = ROOT.parent / ".venv" / "kafka.jsa"
"""`make test` writes it (`support/class_archive.py`); without it all works, more slowly."""

# Two thousand tests are many objects that stay; looking for garbage among them took a fifth of the time of collection.
gc.set_threshold(100_000, 50, 100)

# Kafka starts in half of the processor time without the optimizing compiler, and no test is long enough to gain by it.
_java_options = "-XX:TieredStopAtLevel=1"
if CLASS_ARCHIVE.exists():
    _java_options += f' "-XX:SharedArchiveFile={CLASS_ARCHIVE}"'
os.environ.setdefault("JDK_JAVA_OPTIONS", _java_options)

# An example has no time limit. On a busy machine any of them can take longer than the default of 200 ms.
hypothesis.settings.register_profile("smspulse", deadline=None)
hypothesis.settings.load_profile("smspulse")

_SHARED_KAFKA = {"test_stream_worker": "workers", "test_partition_processor": "workers", "test_alert_stream": "workers"}
"""Scopes of tests on the shared Kafka by file; of all others it is `records`."""
_LONGEST = (
    "integration/test_soak",
    "integration/test_pipeline",
    "integration/test_stream_worker",
    "integration/test_chaos",
    "integration/test_docs_run",
    "integration/test_outage",
    "integration/",
    "unit/warehouse/test_rebuild",
    "unit/warehouse/test_retention",
    "unit/warehouse/test_compaction",
    "unit/simulator/test_ground_truth",
    "unit/warehouse/test_",
)
"""Tests by how early they begin, so that no long scope begins when there is nothing left to run beside it."""
_SCOPED = re.compile(r"@(alone|kafka-\w+)$")


def _scope(item: pytest.Item) -> str | None:
    """Return the mark of a test's scope; None for its file's."""
    if "integration" not in item.path.relative_to(ROOT).parts:
        return None
    names = getattr(item, "fixturenames", ())
    if "kafka" in names:
        return f"kafka-{_SHARED_KAFKA.get(item.path.stem, 'records')}"
    definitions = item._fixtureinfo.name2fixturedefs  # type: ignore[attr-defined]
    if any(definitions[name][-1].scope == "module" for name in names if name in definitions):
        return None
    return "alone"


def _rank(item: pytest.Item) -> int:
    path = item.path.relative_to(ROOT).as_posix()
    return next((number for number, head in enumerate(_LONGEST) if path.startswith(head)), len(_LONGEST))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Order the tests of a process that gets its tests from another one, and mark their scopes for it."""
    if not hasattr(config, "workerinput"):
        return
    items.sort(key=_rank)
    for item in items:
        if scope := _scope(item):
            item._nodeid = f"{item.nodeid}@{scope}"


class _Scopes(LoadScopeScheduling):
    def _split_scope(self, nodeid: str) -> str:
        mark = _SCOPED.search(nodeid)
        if mark is None:
            return nodeid.partition("::")[0]
        return nodeid if mark[1] == "alone" else mark[1]


def pytest_xdist_make_scheduler(config: Any, log: Any) -> _Scopes:
    config.option.loadscopereorder = False  # they are in order
    return _Scopes(config, log)


def pytest_unconfigure() -> None:
    """Take back what would write to the terminal when the process ends.

    Hypothesis adds a callback to the garbage collector with the first property and never removes it. Its globals name
    the loader of its module, which is pytest's. So it keeps the session with every test until after the last
    collection, and DuckDB's module reports the classes that annotations of the tests name as leaked.
    """
    # Commands that ran in this process leave handlers whose stream is closed, and which write a count at the end.
    logging.raiseExceptions = False
    gc.callbacks[:] = [each for each in gc.callbacks if not getattr(each, "__module__", "").startswith("hypothesis.")]
