import io
import logging
from collections.abc import Callable

import pytest

from smspulse.processes import log_setup
from smspulse.processes.log_setup import LogBudget, PlainFormatter, PrefixHandler, set_up_logging, truncate_text
from smspulse.processes.terminal import make_console

log = logging.getLogger("test_log_budget")


class Budgeted:
    """A logger's handler with a budget, and a clock that stands."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.later: list[tuple[float, Callable[[], None]]] = []
        self.output = io.StringIO()
        self.handler = logging.StreamHandler(self.output)
        self.handler.setFormatter(PlainFormatter("%(levelname)s %(message)s"))
        self.budget = LogBudget(self.handler)
        monkeypatch.setattr(log_setup.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(
            log_setup, "_start_timer", lambda seconds, call: self.later.append((self.now + seconds, call))
        )
        self.handler.addFilter(self.budget)

    def log(self, text: str, level: int = logging.WARNING, *, line: int = 1, error: Exception | None = None) -> None:
        exc_info = (type(error), error, error.__traceback__) if error else None
        self.handler.handle(logging.LogRecord("x", level, __file__, line, text, None, exc_info))

    def go_on_to(self, now: float) -> None:
        self.now = now
        due = [call for at, call in self.later if at <= now]
        self.later = [(at, call) for at, call in self.later if at > now]
        for call in due:
            call()

    @property
    def lines(self) -> list[str]:
        return self.output.getvalue().splitlines()


@pytest.fixture
def budgeted(monkeypatch: pytest.MonkeyPatch) -> Budgeted:
    return Budgeted(monkeypatch)


def test_the_same_error_is_written_once_a_minute_with_a_count(budgeted: Budgeted) -> None:
    for second in range(180):
        budgeted.go_on_to(second)
        for _ in range(100):
            budgeted.log("too many open files", logging.ERROR)
    budgeted.go_on_to(1_000)
    count = "ERROR too many open files (%d lines like this were left out in a minute)"
    assert budgeted.lines == ["ERROR too many open files", count % 5_999] * 3
    budgeted.log("too many open files", logging.ERROR)
    assert len(budgeted.lines) == 7
    assert budgeted.later == []


def test_another_place_another_text_and_another_error_are_written(budgeted: Budgeted) -> None:
    for _ in range(3):
        budgeted.log("one")
        budgeted.log("one", line=2)
        budgeted.log("two")
        budgeted.log("one", error=ValueError("a"))
        budgeted.log("one", error=ValueError("b"))
    assert len([line for line in budgeted.lines if line.startswith("WARNING")]) == 5


def test_different_texts_of_one_place_have_a_limit(budgeted: Budgeted) -> None:
    for number in range(10_000):
        budgeted.log(f"bad input {number}")
    budgeted.go_on_to(60)
    assert len(budgeted.lines) == 11
    assert budgeted.lines[-1] == "WARNING bad input 9999 (9990 lines like this were left out in a minute)"


def test_repeated_information_is_one_line_and_then_one_an_hour_with_a_count(budgeted: Budgeted) -> None:
    for minute in range(180):
        budgeted.go_on_to(minute * 60)
        budgeted.log("a test webhook arrived", logging.INFO)
    budgeted.go_on_to(10_800)
    count = "INFO a test webhook arrived (%d lines like this were left out in an hour)"
    assert budgeted.lines == ["INFO a test webhook arrived", count % 59, count % 60, count % 60]
    assert budgeted.later == []


def test_information_that_comes_again_after_a_quiet_hour_is_written_at_once(budgeted: Budgeted) -> None:
    for hour in (0, 2, 4):
        budgeted.go_on_to(hour * 3600)
        budgeted.log("Kafka is back", logging.INFO)
    assert budgeted.lines == ["INFO Kafka is back"] * 3


def test_different_information_is_never_left_out(budgeted: Budgeted) -> None:
    for number in range(100):
        budgeted.log(f"owns partition {number}", logging.INFO)
    budgeted.go_on_to(10_000)
    assert budgeted.lines == [f"INFO owns partition {number}" for number in range(100)]


def test_a_warning_right_after_information_of_the_same_line_of_code_is_written_at_once(budgeted: Budgeted) -> None:
    for _ in range(3):
        budgeted.log("check: raw", logging.INFO)
    budgeted.log("check: raw", logging.ERROR)
    assert budgeted.lines == ["INFO check: raw", "ERROR check: raw"]


def test_counts_are_written_at_the_end_of_the_process(budgeted: Budgeted) -> None:
    for _ in range(3):
        budgeted.log("again")
    budgeted.budget.write_suppressed_counts()
    budgeted.go_on_to(100)
    assert budgeted.lines == ["WARNING again", "WARNING again (2 lines like this were left out in a minute)"]


def test_a_traceback_is_cut_in_its_middle_and_keeps_its_error(budgeted: Budgeted) -> None:
    def a(depth: int) -> None:
        b(depth - 1)

    def b(depth: int) -> None:
        if depth <= 0:
            raise ValueError("x" * 300_000)
        a(depth - 1)

    with pytest.raises(ValueError, match="x") as raised:
        a(300)
    budgeted.log("a request failed", error=raised.value)
    written = budgeted.output.getvalue()
    assert written.startswith("WARNING a request failed\nTraceback (most recent call last):\n")
    assert "lines are left out here" in written
    assert "ValueError: xxx" in written
    assert len(written) < 10_000


def test_a_long_message_is_cut() -> None:
    assert truncate_text("x" * 1_000) == "x" * 1_000
    assert truncate_text("x" * 400_000) == "x" * 1_000 + "…"


def test_every_process_has_the_budget(capfd: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    console = make_console(file=io.StringIO(), soft_wrap=True)
    try:
        set_up_logging(verbose=False, supervised=True)
        for _ in range(1_000):
            log.warning("the same")
        assert capfd.readouterr().err.count("the same") == 1
        root.handlers[:] = [PrefixHandler(console)]
        for _ in range(1_000):
            log.warning("the same")
        assert console.file.getvalue().count("the same") == 1  # type: ignore[attr-defined]
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
