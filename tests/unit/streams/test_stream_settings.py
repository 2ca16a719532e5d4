"""Settings of the stream worker."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from streams.failure_baseline import DetectorPolicy
from streams.settings import StreamSettings

DAY_MS = 86_400_000


def policy(monkeypatch: pytest.MonkeyPatch, **environment: str) -> DetectorPolicy:
    for name, value in environment.items():
        monkeypatch.setenv(f"SMSPULSE_STREAM_{name.upper()}", value)
    return StreamSettings(state=Path()).detector_policy


def test_detectors_learn_from_200_messages_and_relearn_after_500_and_a_week() -> None:
    assert StreamSettings(state=Path()).detector_policy == DetectorPolicy(30, 200, 500, 7 * DAY_MS)


@pytest.mark.parametrize(
    ("text", "messages", "milliseconds"),
    [
        ("2000,3d", 2_000, 3 * DAY_MS),
        ("1, 36h", 1, DAY_MS * 3 // 2),
        (" 50,0.5d ", 50, DAY_MS // 2),
        ("never", None, 0),
    ],
)
def test_when_a_rise_is_the_new_normal_can_be_set(
    monkeypatch: pytest.MonkeyPatch, text: str, messages: int | None, milliseconds: int
) -> None:
    found = policy(monkeypatch, relearn_after=text, learn_messages="50", false_alarm_days="7")
    assert found == DetectorPolicy(7, 50, messages, milliseconds)


@pytest.mark.parametrize("text", ["", "7d", "500", "500,7", "0,7d", "-1,7d", "500,7m", "always"])
def test_what_is_no_such_setting_is_refused_with_what_to_write(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    with pytest.raises(ValidationError, match="such as 500,7d or 500,36h, or never"):
        policy(monkeypatch, relearn_after=text)
