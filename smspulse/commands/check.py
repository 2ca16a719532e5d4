"""Whether numbers and machine are as they should be: check, doctor."""

import json
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from smspulse.commands.options import NOT_SO, broker_option, data_option


@click.command()
@data_option
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
def check(data: Path, form: str) -> None:
    """Check the quality of what was landed; 1 if a critical expectation failed.

    \b
    smspulse check
    smspulse check --format json
    """
    from expectations.check import run_checks
    from expectations.settings import CheckSettings

    console = Console(soft_wrap=True)
    report = run_checks(data, CheckSettings())
    if form == "json":
        click.echo(json.dumps({"note": report.note, "expectations": [asdict(row) for row in report.rows]}))
    else:
        for row in report.rows:
            mark = "[green]✓[/]" if row.success else "[red]✗[/]"
            console.print(f"{mark} {row.expectation}  [dim]{row.severity}[/]  {escape(row.observed)}", highlight=False)
            if not row.success:
                console.print(f"    expected {escape(row.expected)}. {escape(row.meaning)} {escape(row.action)}")
        failed = sum(not row.success for row in report.rows)
        console.print(f"{report.note}; {failed} of {len(report.rows)} expectations failed", highlight=False)
    raise SystemExit(report.exit_code)


@click.command()
@data_option
@broker_option
@click.option("--port", envvar="SMSPULSE_INGEST_PORT", default=8080, show_default=True)
def doctor(data: Path, broker: str, port: int) -> None:
    """Look at this machine and say what is missing and how to mend it.

    \b
    smspulse doctor
    smspulse doctor --broker kafka1:9092
    """
    from gateway.kafka import KafkaSettings
    from smspulse.doctor import diagnose

    findings = diagnose(data, KafkaSettings(bootstrap=broker) if ":" in broker else None, port)
    marks = {"ok": "[green]✓[/]", "warn": "[yellow]![/]", "fail": "[red]✗[/]"}
    table = Table("", "what", "found", "mend")
    for finding in findings:
        table.add_row(marks[finding.level], finding.name, finding.what, finding.mend)
    Console().print(table)
    raise SystemExit(NOT_SO if any(finding.level == "fail" for finding in findings) else 0)
