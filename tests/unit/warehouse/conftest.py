"""Fixtures of the tests of the warehouse."""

from collections.abc import Iterator

import duckdb
import pytest

from warehouse import catalog, views
from warehouse.reader import open_warehouse

VIEWS_IN_USE = {
    *("raw_webhooks", "live_messages", "messages_by_day", "messages", "changes"),
    *("delivery_hourly", "delivery_daily", "webhook_quality", "rebuild_differences"),
}
"""The views that the tests read, and those on which they depend."""


@pytest.fixture
def published_views(monkeypatch: pytest.MonkeyPatch) -> None:
    """Publish only these views. Each rebuild publishes them, and all views would take most of its time."""
    monkeypatch.setattr(views, "VIEWS", tuple(name for name in views.VIEWS if name in VIEWS_IN_USE))


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[duckdb.DuckDBPyConnection]:
    """An open warehouse without rows, for tests of macros."""
    data = tmp_path_factory.mktemp("data")
    catalog.publish_views(data)
    with open_warehouse(data) as connection:
        yield connection
