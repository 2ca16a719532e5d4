"""Fixtures of the tests of the warehouse."""

import pytest

from warehouse import views

VIEWS_IN_USE = {
    *("raw_webhooks", "live_messages", "messages_by_day", "messages", "changes"),
    *("delivery_hourly", "delivery_daily", "webhook_quality", "rebuild_differences"),
}
"""The views that the tests read, and those on which they depend."""


@pytest.fixture
def published_views(monkeypatch: pytest.MonkeyPatch) -> None:
    """Publish only these views. Each rebuild publishes them, and all views would take most of its time."""
    monkeypatch.setattr(views, "VIEWS", tuple(name for name in views.VIEWS if name in VIEWS_IN_USE))
