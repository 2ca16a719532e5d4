"""The commands `check`, `check payload` and `doctor`."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final
from xml.etree import ElementTree

import click
from rich.table import Table
from rich.text import Text

from expectations import SUITE_NAMES
from smspulse.cli.options import EXIT_CHECK_FAILED, ParsedType, broker_option, data_option, ingest_options
from smspulse.processes.terminal import echo, escape_to_line, make_console

if TYPE_CHECKING:
    import pandas as pd

    from expectations.quality_check import CheckReport, CheckResult
    from expectations.settings import CheckSettings

_COLOURS: Final = {"critical": "bold red", "warning": "yellow", "info": "cyan"}
_PERIODS: Final = {"h": "hours", "d": "days"}


def _parse_time(text: str) -> datetime:
    """Parse `24h`, `7d`, or a date or time in ISO 8601, UTC unless it names a zone."""
    try:
        if found := re.fullmatch(r"(\d+)([hd])", text):
            return datetime.now(UTC) - timedelta(**{_PERIODS[found[2]]: int(found[1])})
        moment = datetime.fromisoformat(text)
    except (ValueError, OverflowError) as error:
        msg = f"{text!r} is not a time: write 24h, 7d or 2026-11-20"
        raise ValueError(msg) from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


@click.group(invoke_without_command=True)
@data_option
@broker_option
@click.option(
    "--suite", "suites", multiple=True, type=click.Choice(SUITE_NAMES), help="Only this one; can be repeated."
)
@click.option("--since", type=ParsedType("WHEN", _parse_time), help="Leave out older data: 24h, 7d or 2026-11-20.")
@click.option("--format", "form", type=click.Choice(["table", "json", "junit"]), default="table")
@click.option("--docs", is_flag=True, help="Write the page quality/index.html in the data folder as well.")
@click.pass_context
def check_command(
    context: click.Context,
    data: Path,
    broker: str,
    suites: Sequence[str],
    since: datetime | None,
    form: str,
    *,
    docs: bool,
) -> None:
    """Check the data quality. Exits with 1 if a critical expectation does not hold, with 2 if a check cannot run.

    Each run is kept: the view `quality` has the last results, `quality_history` those of every run.

    \b
    smspulse check                               all landed data, and Kafka if it runs
    smspulse check --suite raw --since 24h       webhooks of the last day
    smspulse check --format junit > checks.xml   for a CI
    """
    if context.invoked_subcommand:
        return
    from expectations.runner import run_checks
    from expectations.settings import CheckSettings
    from warehouse.status_codes import load_known_statuses

    # One time before all reads: what is younger may be in transit between receipts, Kafka and warehouse.
    suites, settings, now = suites or SUITE_NAMES, CheckSettings(), datetime.now(UTC)
    further: dict[str, pd.DataFrame] = {}
    note = ""
    if "reconciliation" in suites:
        further, note = _measure_reconciliation(data, broker, settings, now, since)
    statuses = load_known_statuses(data)
    report = run_checks(
        data, settings, now, clock=lambda: datetime.now(UTC), suites=suites, since=since, statuses=statuses,
        further=further,
    )  # fmt: skip
    report = replace(report, note=report.note + note)
    # Only full runs are kept, because those of a part of the data do not compare.
    if report.rows and since is None:
        _keep_results(data, report)
    if docs:
        from expectations.quality_page import write_quality_page

        page = data.resolve() / "quality" / "index.html"
        write_quality_page(report, page)
        echo(f"smspulse: {page.as_uri()}", err=True)
    {"json": _print_json, "junit": _print_junit, "table": _print_text}[form](report)
    raise SystemExit(report.exit_code)


def _keep_results(data: Path, report: "CheckReport") -> None:
    from warehouse.quality import append_check_results

    try:
        append_check_results(data, report.checked_at, [asdict(row) for row in report.rows])
    except OSError as error:
        echo(f"smspulse: the results of the check are not kept in {data}: {error}", err=True)


def _measure_reconciliation(
    data: Path, broker: str, settings: "CheckSettings", now: datetime, since: datetime | None
) -> tuple[dict[str, "pd.DataFrame"], str]:
    """Return the measures of the reconciliation, and a note about what is missing."""
    from confluent_kafka import KafkaException

    from expectations.reconciliation import KafkaContents, measure_reconciliation, read_kafka_contents
    from ingest.errors import SpoolError
    from smspulse.broker.errors import KafkaAccessError
    from smspulse.broker.locate import find_kafka_settings

    notes: list[str] = []
    hidden = "; the suite reconciliation was left out: this user may not read what ingest answered (accepted and spool)"

    def read_kafka() -> KafkaContents | None:
        try:
            return read_kafka_contents(find_kafka_settings(data, broker), data, now, since)
        except (KafkaAccessError, KafkaException) as error:
            reason = error.args[0].str() if isinstance(error, KafkaException) else error
            notes.append(f"; Kafka was not read: {reason}")
            return None

    try:
        measures = measure_reconciliation(data, settings, now, since, read_kafka)
    except (SpoolError, PermissionError) as error:
        if not isinstance(error.__cause__ or error, PermissionError):
            raise
        return {}, "".join([*notes, hidden])
    return {"reconciliation": measures}, "".join(notes)


@check_command.command()
@click.argument("sample", type=click.File("rb"))
@click.option("--lines", is_flag=True, help="SAMPLE has one payload a line.")
@click.option("--content-type", help="Content-Type that the gateway sends; its charset is decoded.")
@click.option("--content-encoding", help="Content-Encoding that the gateway sends: gzip or deflate.")
def payload_command(sample: BinaryIO, content_type: str | None, content_encoding: str | None, *, lines: bool) -> None:
    """Show the generation and the errors of a gateway's payloads. Exits with 1 if there is an error.

    SAMPLE is a file, or - for standard input. It is the body of one webhook, and is read as ingest and stream read it.

    \b
    smspulse check payload examples/webhooks/status.json
    pbpaste | smspulse check payload -
    smspulse check payload --content-type "application/json; charset=ISO-8859-1" examples/webhooks/status.json
    """
    from expectations.payload_check import run_raw_suite
    from gateway.payload_times import parse_zone
    from gateway.statuses import build_status_table, parse_status_meanings
    from streams.settings import StreamSettings

    settings = StreamSettings(state=Path())
    zone, statuses = parse_zone(settings.zone), build_status_table(parse_status_meanings(settings.status_meanings))
    declared = (content_type or "").encode("ascii", "replace")
    received = sample.read()
    if not received.strip():
        msg = "there is no payload in it"
        raise click.BadParameter(msg, param_hint="SAMPLE")
    payloads = [line for line in received.splitlines() if line.strip()] if lines else [received]
    bodies, has_faults = _check_payloads(payloads, zone, declared, content_encoding or "")
    if not bodies:
        raise SystemExit(EXIT_CHECK_FAILED)
    report = run_raw_suite(bodies, zone, declared, statuses)
    _print_text(report)
    raise SystemExit(max(int(has_faults), report.exit_code))


def _check_payloads(
    payloads: Sequence[bytes], zone: tzinfo, content_type: bytes, content_encoding: str
) -> tuple[list[bytes], bool]:
    """Print a verdict on each payload; return the bodies that ingest would store, and whether there is a fault."""
    from expectations.payload_check import check_payload, decode_request_body
    from ingest.request_body import RefusedBodyError

    bodies, has_faults = [], False
    for number, sent in enumerate(payloads, 1):
        try:
            body = decode_request_body(sent, content_encoding)
        except RefusedBodyError as error:
            echo(f"✗ {number}: would not be stored\n    ingest answers {error.status}: {error}")
            has_faults = True
            continue
        bodies.append(body)
        found = check_payload(body, zone, content_type)
        mark = "✗" if found.faults else "✓"
        echo(f"{mark} {number}: {found.generation or 'cannot be read, and would be a dead letter'}")
        for fault in found.faults:
            echo(escape_to_line(f"    {fault}"))
        if found.unknown:
            echo(escape_to_line(f"    fields that no known generation has: {', '.join(found.unknown)}"))
        has_faults |= bool(found.faults)
    return bodies, has_faults


def _print_json(report: "CheckReport") -> None:
    found = {"checked_at": report.checked_at.isoformat(), "note": report.note}
    echo(json.dumps(found | {"expectations": [asdict(row) for row in report.rows]}))


def _print_junit(report: "CheckReport") -> None:
    """Write a failure for a critical expectation, and a skip with the reason for any other that does not hold."""
    root = ElementTree.Element("testsuites", name="smspulse check")
    for suite, rows in report.rows_by_suite.items():
        critical = [row.severity == "critical" for row in rows if not row.success]
        counts = {"tests": len(rows), "failures": sum(critical), "skipped": len(critical) - sum(critical)}
        element = ElementTree.SubElement(root, "testsuite", {name: str(count) for name, count in counts.items()})
        element.attrib |= {"name": suite, "timestamp": report.checked_at.isoformat()}
        for row in rows:
            case = ElementTree.SubElement(element, "testcase", classname=suite, name=row.expectation)
            if not row.success:
                # A CI must not fail because of a warning.
                kind = "failure" if row.severity == "critical" else "skipped"
                # XML cannot hold control characters.
                message = escape_to_line(f"{row.severity}: {row.observed}")
                failure = ElementTree.SubElement(case, kind, message=message)
                failure.text = "\n".join(f"{title}: {text}" for title, text in _describe_failure(row))
    echo('<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode"))


def _print_text(report: "CheckReport") -> None:
    console = make_console(soft_wrap=True)
    for row in report.failures:
        console.print(Text.assemble((f"✗ {row.severity} ", _COLOURS[row.severity]), (row.expectation, "bold")))
        for title, text in _describe_failure(row):
            console.print(Text.assemble((f"    {title:<9} ", "dim"), text))
    for suite, rows in report.rows_by_suite.items():
        holding = sum(row.success for row in rows)
        mark = ("✓ ", "green") if holding == len(rows) else ("✗ ", "red")
        console.print(Text.assemble(mark, f"{suite}: {holding} of {len(rows)} expectations hold"))
    console.print(escape_to_line(report.note))


def _describe_failure(row: "CheckResult") -> list[tuple[str, str]]:
    """Return titles and texts about an expectation that does not hold."""
    details = [("found", row.observed), ("expected", row.expected), ("rows", ", ".join(row.rows))]
    details += [("means", row.meaning), ("do", row.action)]
    return [(title, escape_to_line(text)) for title, text in details if text]


@click.command()
@data_option
@broker_option
@ingest_options()
def doctor_command(data: Path, broker: str, host: str | None, port: int | None) -> None:
    """Check this machine, and show what is missing and how to fix it. Exits with 1 if something does not work.

    \b
    smspulse doctor
    smspulse doctor --broker kafka1:9092
    """
    from smspulse.broker.locate import find_kafka_settings
    from smspulse.runtime.doctor import diagnose_machine

    findings = diagnose_machine(data, find_kafka_settings(data, broker) if ":" in broker else None, port, host)
    marks = {"ok": Text("✓", "green"), "warn": Text("!", "yellow"), "fail": Text("✗", "red")}
    table = Table("", "what", "found", "fix")
    for finding in findings:
        table.add_row(marks[finding.level], finding.name, finding.detail, finding.fix)
    make_console().print(table)
    raise SystemExit(EXIT_CHECK_FAILED if any(finding.level == "fail" for finding in findings) else 0)
