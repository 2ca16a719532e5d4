"""The goals of a soak run, computed from its readings. Pure functions: they read no process, file or clock."""

import math
import operator
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Literal, NamedTuple

# Minute of the run with which its last minute is compared. A shorter run uses the minute after its first third.
_REFERENCE_S: Final = 600.0
_WINDOW_S: Final = 60.0
_HOUR_S: Final = 3600.0
_HOLDS: Final = {"<=": operator.le, ">=": operator.ge}


class ProcessReading(NamedTuple):
    """One reading of a process.

    Args:
        pid: Its process id. Another one under the same name means that it was restarted.
        rss_mb: Resident memory in 10^6 bytes, as `ps` shows it.
        own_mb: The part of it that no file backs, in 10^6 bytes. Only this process has it, and only it can free it.
        open_files: Number of its open descriptors.
    """

    pid: int
    rss_mb: float
    own_mb: float
    open_files: int


class Sample(NamedTuple):
    """Readings at one moment.

    Args:
        at_s: Seconds since the run began.
        processes: By name of the process.
        files: Number of live files by dataset.
    """

    at_s: float
    processes: Mapping[str, ProcessReading]
    files: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class SoakRun:
    """All readings of a run.

    Args:
        seconds: Seconds of steady traffic.
        samples: In order of time, all within these seconds.
        log_lines: Lines written after "ready", until the traffic ended.
        checks: For each run of the checks, the names of those that failed.
        running_ms: Milliseconds of each query in the state that the run left.
        maintained_ms: The same after `rebuild` and `compact`.
        lost: Number of lost records.
        twice: Number of records that were counted twice.
        wrong: Number of wrong results.
    """

    seconds: float
    samples: list[Sample]
    log_lines: int
    checks: list[list[str]]
    running_ms: Mapping[str, float]
    maintained_ms: Mapping[str, float]
    lost: int = 0
    twice: int = 0
    wrong: int = 0


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured value with its goal."""

    name: str
    value: float
    comparison: Literal["<=", ">="]
    goal: float

    @property
    def holds(self) -> bool:
        """Whether the goal is met. A value that could not be measured is infinite, and meets none."""
        return math.isfinite(self.value) and _HOLDS[self.comparison](self.value, self.goal)

    @property
    def line(self) -> str:
        """The line that benchmarks print."""
        return f"figure {self.name} {self.value:.3f} goal {self.comparison} {self.goal:g}"


def compute_figures(run: SoakRun) -> list[Figure]:
    """Return all figures of a run."""
    figures = [Figure("live_files", max(max_live_files(run.samples).values(), default=math.inf), "<=", 200)]
    figures += [
        Figure(f"query_running_vs_maintained_{name}", _ratio(running_ms, run.maintained_ms.get(name)), "<=", 2)
        for name, running_ms in run.running_ms.items()
    ]
    figures.append(Figure("message_by_id_ms", run.running_ms.get("message_by_id", math.inf), "<=", 200))
    figures += [
        Figure(f"memory_growth_{name}", value, "<=", 1.1) for name, value in memory_growth(run.samples, run.seconds)
    ]
    figures.append(Figure("page_memory_mb", _max_memory_mb(run.samples, "page"), "<=", 250))
    # A run below an hour has the budget of an hour.
    figures.append(Figure("log_lines_per_hour", run.log_lines / max(run.seconds / _HOUR_S, 1), "<=", 10))
    failed = sum(map(len, run.checks)) if run.checks else math.inf
    figures.append(Figure("failed_checks", failed, "<=", 0))
    figures.append(Figure("restarted_processes", count_restarts(run.samples), "<=", 0))
    counts = {"lost": run.lost, "counted_twice": run.twice, "wrong": run.wrong}
    return figures + [Figure(name, count, "<=", 0) for name, count in counts.items()]


def max_live_files(samples: Iterable[Sample]) -> dict[str, int]:
    """Return the largest number of live files of each dataset."""
    most: Counter[str] = Counter()
    for sample in samples:
        most |= Counter(sample.files)
    return dict(most)


def memory_growth(samples: list[Sample], seconds: float) -> list[tuple[str, float]]:
    """Return the memory of each lasting process in the last minute, relative to the reference minute.

    It compares medians of `own_mb`: resident file pages are shared with other processes, and the kernel can drop them.
    A process without a reading in one of the two minutes has infinite growth.
    """
    # Short runs have shorter windows, so that the two do not overlap.
    window_s = min(_WINDOW_S, seconds / 3)
    reference_s = min(_REFERENCE_S, seconds / 3)
    growth = []
    for name in lasting_processes(samples):
        early = _median_own_mb(samples, name, reference_s, reference_s + window_s)
        late = _median_own_mb(samples, name, seconds - window_s, seconds)
        growth.append((name, _ratio(late, early)))
    return growth


def lasting_processes(samples: list[Sample]) -> list[str]:
    """Return the processes that ran from the start. Others, such as a regular check, end by themselves."""
    return sorted(samples[0].processes) if samples else []


def count_restarts(samples: list[Sample]) -> int:
    """Return how often a lasting process had another process id than before."""
    restarts = 0
    for name in lasting_processes(samples):
        pids = [sample.processes[name].pid for sample in samples if name in sample.processes]
        restarts += sum(earlier != later for earlier, later in pairwise(pids))
    return restarts


def max_gap_s(samples: list[Sample]) -> float:
    """Return the longest time between two samples."""
    times = [sample.at_s for sample in samples]
    return max((later - earlier for earlier, later in pairwise(times)), default=math.inf)


def _max_memory_mb(samples: list[Sample], name: str) -> float:
    return max((sample.processes[name].rss_mb for sample in samples if name in sample.processes), default=math.inf)


def _median_own_mb(samples: list[Sample], name: str, since_s: float, until_s: float) -> float | None:
    found = [
        sample.processes[name].own_mb
        for sample in samples
        if since_s <= sample.at_s <= until_s and name in sample.processes
    ]
    return statistics.median(found) if found else None


def _ratio(value: float | None, reference: float | None) -> float:
    return value / reference if value is not None and reference else math.inf
