"""Run the whole pipeline under steady traffic, and measure what grows: files, memory, log, lag and query times.

    make soak                                              55 minutes at 200 webhooks a second
    make soak ARGS="--minutes 30 --rate 500"
    make soak ARGS="--minutes 6 --rate 5 --workers 2"

The simulator starts messages by the clock, so a slow pipeline does not slow down the traffic. Its gateway has the usual
errors but no sick phone and no undocumented status, so a healthy pipeline raises no alert and fails no check. Each
minute prints a row for each process and each query. Afterwards, the traffic stops, everything lands, and all results
are compared with the ground truth. Queries are measured on the idle machine, on copies of the files that were taken
under traffic at different times after the last merge of recent files. The slowest copy of each query counts. Then they
are measured again after `smspulse rebuild` and `smspulse compact` of the last copy.

The maintenance of `smspulse up` keeps its interval of an hour. A run of the default length ends before it, so it shows
the state that an hour without maintenance leaves. A run of more than an hour includes it. In a run of just an hour it
begins while the results are compared, so prefer 55 or 65 minutes. The ground truth is compared with all versions on
`sms.messages`: a run must not be so long that Kafka compacts this topic (256 MB a partition).

Exits with 0 if all goals hold, with 1 if one does not, with 2 if the run failed.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, Final

sys.path.append(str(Path(__file__).parents[1] / "support"))

from judge import Findings, judge
from running import Pipeline, start
from soak_figures import Sample, SoakRun, compute_figures, max_gap_s, max_live_files
from soak_readings import CheckRuns, copy_warehouse, disk_use_mb, lines_after_ready, take_sample, time_queries

from smspulse.processes.children import die_with_parent, find_free_port
from smspulse.runtime.status import collect_pipeline_status
from smspulse.simulator.options import DEMO_BEHAVIOUR, DEMO_LONGEST_DELAY_S, DEMO_TIME_SCALE, GatewayBehaviour
from smspulse.simulator.scenarios import generate_scenarios

_SAMPLE_S: Final = 4.0
_MINUTE_S: Final = 60.0
_SEED: Final = 1
# A single message that is not permitted raises an alert, and each undocumented status fails a check of level `info`.
_BEHAVIOUR: Final = GatewayBehaviour(failure_mix=DEMO_BEHAVIOUR.failure_mix, unhealthy=(), unknown_codes=0.0)
# With fewer started messages the run did not have the traffic that it claims.
_MIN_STARTED_SHARE: Final = 0.9
# Scenarios from which the number of webhooks of a message is estimated: 4.46, and 4.51 over the first 17,204.
_ESTIMATED_FROM: Final = 2000
_STOP_S: Final = 180.0
# Four copies, so many seconds apart, last about as long as the time between two merges of recent files.
_COPY_S: Final = 3.0


class SoakError(Exception):
    """The run could not be done."""


class PipelineEndedError(Exception):
    """The pipeline ended by itself during the run."""


class Traffic:
    """`smspulse simulate` in a process of its own, from the constructor to `stop`.

    Args:
        url: The webhook.
        rate: Webhooks a second.
        truth: File for the ground truth.
        log: File for the output of the process.
    """

    def __init__(self, url: str, rate: float, truth: Path, log: Path) -> None:
        self._truth, self._log = truth, log
        scenarios = list(islice(generate_scenarios(_SEED, None, _BEHAVIOUR), _ESTIMATED_FROM))
        self._starts_a_second = rate * len(scenarios) / sum(len(each.webhooks) for each in scenarios)
        options = {
            "--rate": self._starts_a_second,
            "--seed": _SEED,
            "--truth": truth,
            "--time-scale": DEMO_TIME_SCALE,
            "--max-delay": DEMO_LONGEST_DELAY_S,
            "--failure-mix": ",".join(f"{status}={share}" for status, share in _BEHAVIOUR.failure_mix),
            "--unhealthy": "",
            "--unknown-codes": _BEHAVIOUR.unknown_codes,
        }
        arguments = [str(part) for option in options.items() for part in option]
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "smspulse", "simulate", *arguments],
                env=os.environ | {"SMSPULSE_SIMULATE_URL": url},
                stdout=out,
                stderr=out,
                preexec_fn=die_with_parent(),  # noqa: PLW1509 - safe after a fork
            )

    def stop(self) -> dict[str, Any]:
        """Stop it, and return the totals of the simulation.

        Raises:
            SoakError: It ended without a truth, or started too few messages.
        """
        stopped_ms = time.time() * 1000
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(_STOP_S)
        if not self._truth.exists():
            msg = f"the traffic ended with {code} and without a truth, see {self._log}"
            raise SoakError(msg)
        with self._truth.open("rb") as lines:
            totals: dict[str, Any] = json.loads(list(lines)[-1])["totals"]
        started = totals["messages"] + totals["incoming"] + totals["malformed"]
        planned = (stopped_ms - totals["started_at"]) / 1000 * self._starts_a_second
        if started < _MIN_STARTED_SHARE * planned:
            msg = (
                f"the simulator started {started:,} messages, not {planned:,.0f}: the machine is too busy for this rate"
            )
            raise SoakError(msg)
        return totals


class Watch:
    """Samples a pipeline every few seconds, and prints a report every minute.

    Args:
        pipeline: The running pipeline.
        traffic: The process that sends webhooks.
        key: The `message_key` of a message that has landed.
        folder: Folder of all files of the run.
        check_minutes: Minutes between two checks.
    """

    def __init__(self, pipeline: Pipeline, traffic: Traffic, key: str, folder: Path, check_minutes: int) -> None:
        self._pipeline, self._traffic, self.key, self._check_minutes = pipeline, traffic, key, check_minutes
        self.samples: list[Sample] = []
        self.query_times: list[dict[str, float]] = []
        self.checks = CheckRuns(pipeline.data, folder)
        # A report can take longer than the time between two samples. The thread lasts until this process ends, because
        # it starts the checks, which end with it.
        self._reporter = ThreadPoolExecutor(1)

    def run(self, seconds: float) -> None:
        """Watch for so many seconds.

        Raises:
            PipelineEndedError: The pipeline has ended.
            SoakError: The traffic has ended.
        """
        began, reported, report = time.monotonic(), 0, Future[None]()
        report.set_result(None)
        while (at_s := time.monotonic() - began) < seconds:
            self._check_running()
            self.samples.append(take_sample(self._pipeline.process.pid, self._pipeline.data, at_s))
            minute = int(at_s / _MINUTE_S)
            if minute > reported and report.done():
                report.result()
                reported, report = minute, self._reporter.submit(self._report_minute, minute)
            time.sleep(min(_SAMPLE_S, max(seconds - (time.monotonic() - began), 0)))
        report.result()
        self._reporter.submit(self._report, "end of traffic").result()

    def _check_running(self) -> None:
        if self._pipeline.process.poll() is not None:
            msg = f"the pipeline ended with {self._pipeline.process.returncode}, see {self._pipeline.log}"
            raise PipelineEndedError(msg)
        if self._traffic.process.poll() is not None:
            msg = f"the traffic ended with {self._traffic.process.returncode}"
            raise SoakError(msg)

    def _report_minute(self, minute: int) -> None:
        self._report(f"minute {minute}")
        # Its result is in the next report. So no check runs while queries are timed, unless it takes a minute.
        if minute % self._check_minutes == 0:
            self.checks.start()

    def _report(self, title: str) -> None:
        self.checks.collect()
        data = self._pipeline.data
        times = time_queries(data, self.key, repeats=3, budget_s=0.5)
        self.query_times.append(times)
        lag = collect_pipeline_status(data, "auto")["lag"]
        lag_text = "unknown" if lag is None else ", ".join(f"{name} {records:,}" for name, records in lag.items())
        files = ", ".join(f"{name} {count}" for name, count in sorted(self.samples[-1].files.items()))
        failed = [name for names in self.checks.failed for name in names]
        lines = [
            f"{title}: disk {disk_use_mb(data):,.0f} MB, of which Kafka {disk_use_mb(data / 'kafka'):,.0f} MB; "
            f"{len(lines_after_ready(self._pipeline.log))} log lines; lag {lag_text}",
            f"  live files: {files}",
            f"  checks: {len(failed)} failed in {len(self.checks.failed)} runs",
            *(f"    {name}" for name in sorted(set(failed))),
            *format_processes(self.samples[-1]),
            f"  {'query':16} {'ms':>8}",
            *(f"  {name:16} {ms:8.1f}" for name, ms in times.items()),
        ]
        print("\n".join(lines), flush=True)


def format_processes(sample: Sample) -> list[str]:
    """Return a row for each process."""
    rows = [f"  {'process':16} {'RSS MB':>8} {'own MB':>8} {'open files':>10}"]
    rows += [
        f"  {name:16} {each.rss_mb:8.1f} {each.own_mb:8.1f} {each.open_files:10}"
        for name, each in sample.processes.items()
    ]
    return rows


def maintain(data: Path) -> int:
    """Run `rebuild` and `compact`; return 1 if `rebuild` found a difference between stream and log, else 0.

    Raises:
        SoakError: One of them failed.
    """
    differences = 0
    for command in ("rebuild", "compact"):
        done = subprocess.run(
            [sys.executable, "-m", "smspulse", command, "--data", str(data)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode == 1 and command == "rebuild":
            print(f"rebuild found a difference:\n{done.stdout}")
            differences = 1
        elif done.returncode:
            msg = f"{command} ended with {done.returncode}:\n{done.stdout}"
            raise SoakError(msg)
    return differences


def soak(pipeline: Pipeline, options: argparse.Namespace, folder: Path) -> tuple[Watch, Findings, int]:
    """Run the traffic, watch the pipeline, and compare the results; return these with the number of log lines."""
    truth = folder / "truth.jsonl"
    traffic = Traffic(pipeline.source("soak"), options.rate, truth, folder / "traffic.log")
    key = pipeline.wait_for("SELECT message_key FROM messages LIMIT 1")[0].message_key
    watch = Watch(pipeline, traffic, key, folder, options.check_minutes)
    watch.run(options.minutes * 60)
    for number in range(options.copies):
        copy_warehouse(pipeline.data, folder / f"copy-{number}")
        time.sleep(_COPY_S)
    log_lines = lines_after_ready(pipeline.log)
    totals = traffic.stop()
    seconds = (totals["finished_at"] - totals["started_at"]) / 1000
    print(f"\n{totals['accepted']:,} webhooks accepted in {seconds:.0f} s, {totals['retried']:,} sent again")
    found = judge(pipeline, truth)
    watch.checks.collect(wait=True)
    # A last run on data that no longer changes, so that even the shortest run has one.
    watch.checks.start()
    watch.checks.collect(wait=True)
    return watch, found, len(log_lines)


def measure(data: Path, key: str, repeats: int) -> dict[str, float]:
    """Return the milliseconds of each query on the idle machine."""
    # The first run reads files that may have left the page cache.
    time_queries(data, key, repeats=1, budget_s=0)
    return time_queries(data, key, repeats=repeats, budget_s=5)


def run(options: argparse.Namespace, folder: Path) -> int:
    environment = {"SMSPULSE_PAGE_PORT": str(find_free_port())}
    arguments = ("--broker", "kafka", "--workers", str(options.workers))
    pipeline = start(folder / "data", *arguments, environment=environment)
    try:
        watch, found, log_lines = soak(pipeline, options, folder)
    finally:
        pipeline.stop()
    copies = [folder / f"copy-{number}" for number in range(options.copies)]
    measured = [measure(copy, watch.key, options.repeats) for copy in copies]
    running_ms = {name: max(times[name] for times in measured) for name in measured[0]} if copies else {}
    differences = maintain(pipeline.data) if copies else 0
    maintained_ms: dict[str, float] = {}
    if copies:
        maintain(copies[-1])
        maintained_ms = measure(copies[-1], watch.key, options.repeats)
    counts = {"lost": found.lost.total(), "twice": found.twice.total(), "wrong": found.wrong.total() + differences}
    readings = SoakRun(
        options.minutes * 60, watch.samples, log_lines, watch.checks.failed, running_ms, maintained_ms, **counts
    )
    print_result(readings, watch, found)
    figures = compute_figures(readings)
    for figure in figures:
        print(figure.line)
    missed = [figure.name for figure in figures if not figure.holds]
    print(f"\nmissed: {', '.join(missed) if missed else 'none'}; log: {pipeline.log}")
    return 1 if missed else 0


def print_result(readings: SoakRun, watch: Watch, found: Findings) -> None:
    """Print what the figures are computed from."""
    print(f"{found.messages:,} messages, {found.versions:,} versions")
    for problem in found.problems():
        print(f"  {problem}")
    print(f"{found.line}\n")
    print(
        f"{'query':16} {'under traffic':>14} {'worst minute':>13} {'after the run':>14} {'after maintenance':>18}  ms"
    )
    for name, running_ms in readings.running_ms.items():
        minutes = [times[name] for times in watch.query_times]
        print(
            f"{name:16} {statistics.median(minutes):14.1f} {max(minutes):13.1f} {running_ms:14.1f} "
            f"{readings.maintained_ms[name]:18.1f}"
        )
    most = ", ".join(f"{name} {count}" for name, count in sorted(max_live_files(readings.samples).items()))
    print(f"most live files: {most}")
    for names in readings.checks:
        for name in names:
            print(f"failed check: {name}")
    print(f"{len(readings.samples)} samples, at most {max_gap_s(readings.samples):.1f} s apart\n")


def main() -> int:
    """Run the pipeline and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=55, help="duration of the steady traffic")
    parser.add_argument("--rate", type=float, default=200, help="webhooks a second")
    parser.add_argument("--workers", type=int, default=1, help="stream workers")
    parser.add_argument("--check-minutes", type=int, default=1, help="minutes between two checks")
    parser.add_argument("--copies", type=int, default=4, help="copies on which queries are measured; 0: no measurement")
    parser.add_argument("--repeats", type=int, default=7, help="most repetitions of each query afterwards")
    parser.add_argument("--keep", type=Path, help="folder of all files, which is kept; otherwise only the log is")
    options = parser.parse_args()
    folder = options.keep or Path(tempfile.mkdtemp(prefix="smspulse-soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        code = run(options, folder)
    except PipelineEndedError as error:
        print(f"NOT FINISHED: {error}")
        code = 1
    except Exception:
        traceback.print_exc()
        code = 2
    if code:
        print(f"kept for inspection: {folder}", file=sys.stderr)
    elif not options.keep:
        for name in ("data", *(f"copy-{number}" for number in range(options.copies))):
            shutil.rmtree(folder / name)
    return code


if __name__ == "__main__":
    sys.exit(main())
