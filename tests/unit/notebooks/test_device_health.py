"""The notebook runs on landed data. Its results are compared with manually computed numbers."""

import os
import subprocess
import sys
from datetime import date, timedelta
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from landing import land_records
from warehouse_records import raw, status, version

from notebooks.common import NotebookFilter
from notebooks.device_health import app
from warehouse import catalog

DAY = 86_400
LAST = date(2026, 11, 24)
NUMBER = "+4915700000001"
TEXT = "a text that is nobody's business"


@pytest.fixture
def data(published: Path) -> Path:
    return published


class Fleet:
    """Lands messages of phones."""

    def __init__(self, data: Path) -> None:
        self._data, self._offsets = data, count()

    def phone(self, device_id: int | None, delivered: int, failed: int = 0, pending: int = 0, **fields: Any) -> None:
        fields |= {"device_id": device_id, "recipient": NUMBER}
        failure = {"failure_class": fields.pop("failure", "generic"), "last_status_id": 9}
        made = [
            *(self._version("delivered", **fields) for _ in range(delivered)),
            *(self._version("not_sent", **failure, **fields) for _ in range(failed)),
            *(self._version("pending", **fields) for _ in range(pending)),
        ]
        land_records(self._data, made[0].offset, made)

    def _version(self, outcome: str, **fields: Any) -> Any:
        offset = next(self._offsets)
        return version(offset, offset, outcome, **fields)


@pytest.fixture
def fleet(data: Path) -> Fleet:
    return Fleet(data)


def run(data: Path, choice: NotebookFilter | None = None) -> tuple[str, dict[str, Any]]:
    """Run the notebook, with the initial or another choice; return its outputs as text, and its variables."""
    with patch.dict(os.environ, SMSPULSE_DATA=str(data)), pytest.MonkeyPatch.context() as patched:
        if choice:
            patched.setattr("notebooks.common.read_choice", lambda _: choice)
        outputs, found = app.run()
    return "\n".join(str(getattr(output, "text", output)) for output in outputs if output is not None), dict(found)


def test_the_failing_phone_is_named(data: Path, fleet: Fleet) -> None:
    for device_id in (1, 2, 3):
        fleet.phone(device_id, delivered=95, failed=5)
    fleet.phone(4, delivered=50, failed=50, pending=7, failure="no_service")
    _, found = run(data)
    assert found["verdict"].startswith(
        "**Failing: phone 4 (acme)**: of its 100 ended attempts 50.0% delivered the message"
    )
    assert "failures mostly `no_service`; last seen 24 Nov 12:00 UTC" in found["verdict"]
    assert "The fleet delivered 83.8%" in found["verdict"]
    assert found["failing"]["device_id"].tolist() == [4]


def test_the_interval_is_the_wilson_interval(data: Path, fleet: Fleet) -> None:
    fleet.phone(1, delivered=81, failed=182)  # the example of Newcombe, Statistics in Medicine 17 (1998), table I
    fleet.phone(2, delivered=0, failed=20)
    rows = run(data)[1]["devices"].set_index("device_id")
    assert rows.loc[1, ["low", "high"]].tolist() == pytest.approx([0.2553, 0.3662], abs=5e-5)
    assert rows.loc[2, ["low", "high"]].tolist() == pytest.approx([0.0, 0.1611], abs=5e-5)


def test_a_phone_with_few_messages_is_not_called_failing(data: Path, fleet: Fleet) -> None:
    fleet.phone(1, delivered=95, failed=5)
    fleet.phone(2, delivered=1, failed=1)
    _, found = run(data)
    assert found["verdict"].startswith("**No phone stands out.**")
    assert "Lowest: phone 2 (acme): of its 2 ended attempts 50.0%" in found["verdict"]


def test_messages_without_a_phone_call_no_phone_failing(data: Path, fleet: Fleet) -> None:
    fleet.phone(1, delivered=95, failed=5)
    fleet.phone(None, delivered=0, failed=100, failure="not_permitted")
    _, found = run(data)
    assert found["failing"].empty
    assert found["devices"]["phone"].tolist() == ["no phone named (acme)", "phone 1 (acme)"]


def test_a_single_phone_is_not_compared(data: Path, fleet: Fleet) -> None:
    fleet.phone(1, delivered=1, failed=99)
    assert run(data)[1]["verdict"].startswith("There is one phone, and none to compare it with.")


def test_phones_with_only_open_messages_are_not_judged(data: Path, fleet: Fleet) -> None:
    fleet.phone(1, delivered=0, pending=3)
    _, found = run(data)
    assert found["verdict"].startswith("No attempt of a phone has ended")
    assert found["devices"]["open_share"].tolist() == [1.0]


def test_source_and_days_can_be_selected(data: Path, fleet: Fleet) -> None:
    fleet.phone(1, delivered=5, seconds=-10 * DAY)
    fleet.phone(2, delivered=6)
    fleet.phone(2, delivered=7, source="beta")

    def phones(*choice: Any, **further: Any) -> list[tuple[str, int]]:
        devices = run(data, NotebookFilter(*choice, **further) if choice else None)[1]["devices"]
        return sorted(zip(devices["phone"], devices["attempted"], strict=True))

    assert phones() == [("phone 2 (acme)", 6), ("phone 2 (beta)", 7)]
    assert phones(LAST, 30, "acme") == [("phone 1 (acme)", 5), ("phone 2 (acme)", 6)]
    assert phones(LAST, 1, "beta") == [("phone 2 (beta)", 7)]
    assert phones(LAST - timedelta(days=1)) == [("phone 1 (acme)", 5)]
    assert phones(LAST, channel=1) == []


def test_a_selected_phone_is_shown_by_channel_next_to_the_fleet(data: Path, fleet: Fleet) -> None:
    fleet.phone(1, delivered=90)
    fleet.phone(2, delivered=10, channel_id=0)
    fleet.phone(2, delivered=0, failed=20, channel_id=1)
    _, found = run(data, choice=NotebookFilter(LAST, device=2))
    assert found["devices"]["phone"].tolist() == ["phone 2, channel 1 (acme)", "phone 2, channel 0 (acme)"]
    assert found["verdict"].startswith("**Failing: phone 2, channel 1 (acme)**")
    assert "The fleet delivered 83.3%" in found["verdict"]


def test_no_number_and_no_text_is_shown(data: Path, fleet: Fleet) -> None:
    fleet.phone(1, delivered=9, failed=1)
    fleet.phone(2, delivered=1, failed=9)
    incoming = {"sms_id": 5, "type": "text", "address": NUMBER, "body": TEXT, "device_id": 1}
    land_records(data, 0, [raw(0, incoming), raw(1, status(6, 6))])
    shown, found = run(data)
    assert "phone 2 (acme)" in shown
    assert "mostly generic" in shown  # the picture is among the outputs
    for secret in (NUMBER, NUMBER[1:], TEXT):
        assert secret not in shown
        assert secret not in found["devices"].to_csv()


@pytest.mark.parametrize("made", [True, False])
def test_without_messages_one_line_names_the_next_step(tmp_path: Path, made: bool) -> None:
    if made:
        catalog.publish_views(tmp_path)
    shown, found = run(tmp_path)
    assert str(tmp_path) in found["problem"]
    assert "smspulse" in found["problem"]
    assert shown.count(str(tmp_path)) == 1
    assert "devices" not in found
    assert "Traceback" not in shown


def test_marimo_check_passes() -> None:
    notebook = Path(sys.modules["notebooks.device_health"].__file__ or "")
    result = subprocess.run(
        [sys.executable, "-m", "marimo", "check", "--strict", str(notebook)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
