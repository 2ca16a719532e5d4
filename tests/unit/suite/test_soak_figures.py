"""The figures of `make soak`: each meets its goal in a good run, and misses it in a run that is bad in this respect."""

from dataclasses import replace
from pathlib import Path

import pytest
from soak_figures import Figure, ProcessReading, Sample, SoakRun, compute_figures, max_gap_s
from soak_readings import count_live_files, name_process, read_failed_checks

SECONDS = 1800.0
QUERY_MS = {"messages_count": 40.0, "message_by_id": 30.0}
GOALS = {
    "live_files": ("<=", 200),
    "query_running_vs_maintained_messages_count": ("<=", 2),
    "query_running_vs_maintained_message_by_id": ("<=", 2),
    "message_by_id_ms": ("<=", 200),
    "memory_growth_lander": ("<=", 1.1),
    "memory_growth_page": ("<=", 1.1),
    "page_memory_mb": ("<=", 250),
    "log_lines_per_hour": ("<=", 10),
    "failed_checks": ("<=", 0),
    "restarted_processes": ("<=", 0),
    "lost": ("<=", 0),
    "counted_twice": ("<=", 0),
    "wrong": ("<=", 0),
}


def sample(at_s: float, *, page_mb: float = 100, lander_pid: int = 2, raw_files: int = 50) -> Sample:
    processes = {
        "page": ProcessReading(1, page_mb + 70, page_mb, 8),
        "lander": ProcessReading(lander_pid, 150, 80, 20),
    }
    return Sample(at_s, processes, {"raw": raw_files, "messages": 40})


def every_four_seconds(until_s: float = SECONDS) -> list[Sample]:
    return [sample(at_s) for at_s in range(0, int(until_s), 4)]


GOOD = SoakRun(SECONDS, every_four_seconds(), 10, [[], []], QUERY_MS, QUERY_MS)


def missed(run: SoakRun) -> dict[str, float]:
    return {figure.name: figure.value for figure in compute_figures(run) if not figure.holds}


def with_samples(*changed: Sample) -> SoakRun:
    """Return the good run with the samples of these moments changed."""
    by_time = {each.at_s: each for each in (*GOOD.samples, *changed)}
    return replace(GOOD, samples=[by_time[at_s] for at_s in sorted(by_time)])


def test_a_good_run_meets_every_goal() -> None:
    figures = compute_figures(GOOD)
    assert {figure.name: (figure.comparison, figure.goal) for figure in figures} == GOALS
    assert missed(GOOD) == {}


GROWN = [sample(at_s, page_mb=112) for at_s in range(1740, 1800, 4)]
RESTARTED = [sample(at_s, lander_pid=3) for at_s in range(900, 1800, 4)]
BAD = {
    "live_files": (with_samples(sample(900, raw_files=201)), 201),
    "query_running_vs_maintained_messages_count": (replace(GOOD, running_ms=QUERY_MS | {"messages_count": 84.0}), 2.1),
    "query_running_vs_maintained_message_by_id": (replace(GOOD, running_ms=QUERY_MS | {"message_by_id": 63.0}), 2.1),
    "memory_growth_page": (with_samples(*GROWN), 1.12),
    "page_memory_mb": (with_samples(sample(900, page_mb=181)), 251),
    "log_lines_per_hour": (replace(GOOD, log_lines=11), 11),
    "failed_checks": (replace(GOOD, checks=[["a"], ["a", "b"]]), 3),
    "restarted_processes": (with_samples(*RESTARTED), 1),
    "lost": (replace(GOOD, lost=1), 1),
    "counted_twice": (replace(GOOD, twice=1), 1),
    "wrong": (replace(GOOD, wrong=1), 1),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_run_misses_its_goal_and_no_other(name: str) -> None:
    run, value = BAD[name]
    assert missed(run) == {name: pytest.approx(value)}


def test_a_slow_lookup_misses_its_goal() -> None:
    slow = QUERY_MS | {"message_by_id": 201.0}
    assert missed(replace(GOOD, running_ms=slow, maintained_ms=slow)) == {"message_by_id_ms": 201}


def test_memory_is_compared_with_the_tenth_minute_or_an_earlier_one_of_a_short_run() -> None:
    # Both grow at first only, as long as caches fill: up to minute 10, and up to a third of a run of six minutes.
    filling = [sample(at_s, page_mb=50) for at_s in range(0, 600, 4)]
    assert missed(with_samples(*filling)) == {}
    short = [sample(at_s, page_mb=50 if at_s < 120 else 100) for at_s in range(0, 360, 4)]
    assert missed(replace(GOOD, seconds=360, samples=short)) == {}


def test_the_log_of_a_long_run_is_judged_by_the_hour() -> None:
    two_hours = replace(GOOD, seconds=7200, samples=every_four_seconds(7200))
    assert missed(replace(two_hours, log_lines=20)) == {}
    assert missed(replace(two_hours, log_lines=21)) == {"log_lines_per_hour": 10.5}


def test_a_reading_that_is_missing_meets_no_goal() -> None:
    assert set(missed(replace(GOOD, samples=[]))) == {"live_files", "page_memory_mb"}
    assert set(missed(replace(GOOD, checks=[]))) == {"failed_checks"}
    query = "query_running_vs_maintained_messages_count"
    assert set(missed(replace(GOOD, maintained_ms={"message_by_id": 30.0}))) == {query}
    gone = [each._replace(processes={"page": each.processes["page"]}) for each in GOOD.samples[-15:]]
    assert set(missed(with_samples(*gone))) == {"memory_growth_lander"}


def test_the_longest_gap_between_samples_is_found() -> None:
    assert max_gap_s([sample(0), sample(4), sample(13), sample(16)]) == 9


def test_a_figure_is_printed_as_benchmarks_do() -> None:
    assert Figure("lost", 0, "<=", 0).line == "figure lost 0.000 goal <= 0"
    assert Figure("share", 0.5, ">=", 0.9).holds is False


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("/venv/python -m smspulse land --data x --instance up", "lander"),
        ("/venv/python -m smspulse stream --data x --worker 1 --instance up-1", "stream-1"),
        ("/venv/python -m smspulse alerts send --data x", "alerts"),
        ("/usr/bin/java -Xmx512m kafka.Kafka x", "kafka"),
    ],
)
def test_a_process_has_the_name_of_its_log_lines(command: str, name: str) -> None:
    assert name_process(command) == name


def test_live_files_are_counted_by_dataset(tmp_path: Path) -> None:
    paths = ["raw/date=2026-01-01/a.parquet", "raw/date=2026-01-02/b.parquet", "base/date=2026-01-01/c.parquet"]
    paths += ["base/delivery/date=2026-01-01/d.parquet", "raw/date=2026-01-01/part.tmp", ".tmp/date=1/x/e.parquet"]
    for path in paths:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    assert count_live_files(tmp_path) == {"raw": 2, "base": 1, "base/delivery": 1}


def test_failed_checks_are_read_whatever_their_severity_and_a_run_without_checks_fails() -> None:
    ended = '{"expectations": [{"expectation": "a", "observed": "3", "success": false}, {"success": true}]}'
    assert read_failed_checks(1, ended, "") == ["a: 3"]
    assert read_failed_checks(0, '{"expectations": []}', "") == ["no check was run"]
    assert read_failed_checks(2, "", "x\nno Kafka\n") == ["the checks ended with 2: no Kafka"]
