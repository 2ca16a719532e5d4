"""`smspulse check --docs`: a page with every expectation, its meaning and its result. It loads nothing from a network.

The Data Docs of Great Expectations load styles and scripts from other hosts, and request a logo with the id of the data
context. This page has the same results in one file.
"""

from html import escape
from pathlib import Path
from typing import Final

from core.atomic_file import write_file_atomically
from expectations.quality_check import CheckReport, CheckResult

_HEAD: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>smspulse: data quality</title><style>
:root { color-scheme: light dark; --line: #8884; --bad: #c62828; --warn: #b26a00; --info: #1565c0; --good: #2e7d32 }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem }
nav a { margin-right: 1rem } h2 { margin-top: 2.5rem } table { border-collapse: collapse; width: 100% }
td, th { border-top: 1px solid var(--line); padding: .5rem .6rem; text-align: left; vertical-align: top }
td:nth-child(1), td:nth-child(2) { white-space: nowrap } code { overflow-wrap: anywhere }
.critical { color: var(--bad); font-weight: 600 } .warning { color: var(--warn); font-weight: 600 }
.info { color: var(--info); font-weight: 600 } .holds { color: var(--good) } small { opacity: .75 }
@media (max-width: 50rem) { td, th { display: block; border: 0; padding: .1rem 0 } tr { display: block;
border-top: 1px solid var(--line); padding: .6rem 0 } thead { display: none }
td:nth-child(1), td:nth-child(2) { white-space: normal } }
</style></head><body><h1>Data quality</h1>
"""


def write_quality_page(report: CheckReport, path: Path) -> None:
    """Write the page.

    Raises:
        OSError: The file cannot be written.
    """
    failed, suites = report.failures, report.rows_by_suite
    parts = [
        _HEAD,
        f"<p>{escape(report.note)}, {report.checked_at:%Y-%m-%d %H:%M:%S} UTC. "
        f"{len(report.rows) - len(failed)} of {len(report.rows)} expectations hold.</p><nav>",
        *(f'<a href="#{escape(name)}">{escape(name)}</a>' for name in (*(["failed"] if failed else []), *suites)),
        "</nav>",
    ]
    if failed:
        parts += ['<h2 id="failed">What does not hold</h2>', _results_table(failed)]
    for suite, rows in suites.items():
        parts += [f'<h2 id="{escape(suite)}">{escape(suite)}</h2>', _results_table(rows)]
    write_file_atomically(path, "\n".join([*parts, "</body></html>\n"]))


def _results_table(rows: list[CheckResult]) -> str:
    heads = "".join(f"<th>{head}</th>" for head in ("", "expectation", "found", "what it means, and what to do"))
    lines = [f"<table><thead><tr>{heads}</tr></thead><tbody>"]
    for row in rows:
        state = "holds" if row.success else row.severity
        named = f"<br><small>rows: <code>{escape(', '.join(row.rows))}</code></small>" if row.rows else ""
        # The meaning describes a problem. Of an expectation that holds, it must not read like a finding.
        why = f"<small>else: {escape(row.meaning)}</small>" if row.success else (
            f"{escape(row.meaning)}<br><b>{escape(row.action)}</b>"
        )  # fmt: skip
        lines.append(
            f'<tr><td class="{state}">{"✓ holds" if row.success else f"✗ {state}"}</td>'
            f"<td>{escape(row.expectation)}<br><small>{row.severity if row.success else ''}</small></td>"
            f"<td>{escape(row.observed)}<br><small>expected <code>{escape(row.expected)}</code></small>{named}</td>"
            f"<td>{why}</td></tr>"
        )
    return "\n".join([*lines, "</tbody></table>"])
