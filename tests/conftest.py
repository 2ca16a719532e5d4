"""How `make test` shares the tests out: those that need real programs to one process, the rest beside them."""

from typing import Any

from xdist.scheduler import LoadScopeScheduling


class _Rooms(LoadScopeScheduling):
    def _split_scope(self, nodeid: str) -> str:
        return "integration" if nodeid.startswith("tests/integration/") else nodeid


def pytest_xdist_make_scheduler(config: Any, log: Any) -> _Rooms:
    return _Rooms(config, log)
