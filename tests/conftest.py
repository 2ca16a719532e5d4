"""How `make test` shares the tests out over two processes, of which none may start more than one Kafka at a time."""

from typing import Any

from xdist.scheduler import LoadScopeScheduling

_OWN_KAFKA = ("tests/integration/test_chaos.py", "tests/integration/test_outage.py")
"""Long, and each test has a Kafka of its own: they run beside the others that need one."""


class _Rooms(LoadScopeScheduling):
    # The scopes with the most tests come first: those that share a Kafka, in one process; these, in the other one.
    def _split_scope(self, nodeid: str) -> str:
        if nodeid.startswith(_OWN_KAFKA):
            return "own Kafka"
        return "integration" if nodeid.startswith("tests/integration/") else nodeid


def pytest_xdist_make_scheduler(config: Any, log: Any) -> _Rooms:
    return _Rooms(config, log)
