"""External text is never markup and never a control sequence, in any output."""

import ast
import io
import logging
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result
from landing import land_records
from rich.console import Console
from rich.table import Table
from rich.text import Text
from warehouse_records import alert, moment, raw, status, version

from expectations.quality_check import CheckReport, CheckResult
from expectations.quality_page import write_quality_page
from smspulse.cli.check import _print_junit, _print_text
from smspulse.cli.main import cli
from smspulse.processes import log_setup
from smspulse.processes.supervisor import ChildProcess, ProcessSupervisor
from smspulse.processes.terminal import escape_controls, escape_to_line, make_console

ROOT = Path(__file__).parents[3]
HOSTILE = "Hi [/b] [red]x[/red] :house: [link=http://e]y[/link] \x1b]0;t\x07\x1b[2J\x9b31m\u202e\x7f\r\x08"
SHOWN = r"Hi [/b] [red]x[/red] :house: [link=http://e]y[/link] \x1b]0;t\x07\x1b[2J\x9b31m\u202e\x7f\r\x08"
FORBIDDEN = [chr(code) for code in (*range(9), *range(11, 32), *range(127, 160), 0x202E)]


def is_clean(text: str) -> bool:
    return not any(character in text for character in FORBIDDEN)


@pytest.fixture
def data(published: Path) -> Path:
    """A warehouse with records of a sender of arbitrary texts."""
    incoming = {"sms_id": 5, "type": "text", "device_id": 1, "body": HOSTILE, "address": "+491"}
    land_records(published, 0, [raw(0, incoming, source=HOSTILE), raw(1, status(1, 7), source=HOSTILE)])
    land_records(published, 0, [version(0, 1, "delivered", source=HOSTILE, last_status_id=7)])
    hostile = {"id": f"pipeline:{HOSTILE}", "what": HOSTILE, "source": HOSTILE, "errors": {HOSTILE: 2}}
    land_records(published, 0, [alert(0, "firing", **hostile)])
    return published


def smspulse(data: Path, *arguments: str) -> Result:
    environment = {"SMSPULSE_DATA": str(data), "COLUMNS": "400", "SMSPULSE_KAFKA_BOOTSTRAP": None}
    return CliRunner().invoke(cli, arguments, catch_exceptions=False, env=environment)


@pytest.mark.parametrize(
    "arguments",
    [
        ["sql", "SELECT text FROM incoming_messages"],
        ["alerts", "list"],
        ["alerts", "explain", f"pipeline:{HOSTILE}"],
        ["status", "--broker", "127.0.0.1:1", "--port", "1"],
    ],
    ids=["sql", "alerts list", "alerts explain", "status"],
)
def test_texts_are_shown_literally(data: Path, arguments: list[str]) -> None:
    output = smspulse(data, *arguments).output
    assert SHOWN in output
    assert is_clean(output)


def test_names_of_columns_and_errors_are_shown_literally(data: Path) -> None:
    quoted = HOSTILE.replace('"', '""')
    assert SHOWN in smspulse(data, "sql", f'SELECT 1 AS "{quoted}"').output


@pytest.mark.parametrize("form", ["csv", "json", "table"])
def test_output_to_a_terminal_has_no_control_sequence(data: Path, form: str) -> None:
    ours, theirs = pty.openpty()
    statement = "SELECT text FROM incoming_messages"
    command = [sys.executable, "-m", "smspulse", "sql", "--data", str(data), statement, "--format", form]
    environment = os.environ | {"COLUMNS": "300", "TERM": "dumb"}
    subprocess.run(command, stdout=theirs, stderr=theirs, check=True, env=environment)
    os.close(theirs)
    output = b""
    while True:
        try:
            chunk = os.read(ours, 1 << 16)
        except OSError:  # the other end is closed and everything is read
            break
        if not chunk:
            break
        output += chunk
    os.close(ours)
    text = output.decode().replace("\r\n", "\n")  # line ends of the terminal
    assert "[/b] [red]x[/red] :house: [link=http://e]y[/link]" in text
    assert is_clean(text)


def test_vertical_output_shows_texts_literally(data: Path) -> None:
    output = smspulse(data, "sql", "SELECT text, * FROM raw_webhooks").output
    assert "│ text" in output
    assert r"\x1b]0;t\x07\x1b[2J\x9b31m\u202e" in output
    assert is_clean(output)


@pytest.mark.parametrize("form", ["table", "junit", "json"])
def test_checks_show_names_literally(data: Path, form: str) -> None:
    assert is_clean(smspulse(data, "check", "--suite", "raw", "--format", form).stdout)


def test_reports_of_checks_show_names_literally(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = CheckResult(
        "raw_fresh", "raw", "critical", False, f"{HOSTILE}<script>", HOSTILE, HOSTILE, HOSTILE, (HOSTILE,)
    )
    report = CheckReport((row,), HOSTILE, moment(0))
    _print_text(report)
    output = capsys.readouterr().out
    assert output.count(SHOWN) == 6
    assert is_clean(output)
    _print_junit(report)
    output = capsys.readouterr().out
    texts = ElementTree.fromstring(output.partition("\n")[2]).itertext()  # noqa: S314 - ours
    assert SHOWN in "".join(texts)
    assert is_clean(output)
    write_quality_page(report, tmp_path / "index.html")
    page = (tmp_path / "index.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_a_folder_and_an_error_are_shown_literally(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "[red]x[/red] \x1b[2J:house:"
    output = smspulse(folder, "doctor").output
    assert r"[red]x[/red] \x1b[2J:house:" in output
    assert is_clean(output)
    missing = subprocess.run(
        [sys.executable, "-m", "smspulse", "message", "acme:1", "--data", str(folder)], capture_output=True, check=False
    )
    assert r"[red]x[/red] \x1b[2J:house:" in missing.stderr.decode()
    assert is_clean(missing.stderr.decode())


@pytest.mark.parametrize("supervised", [True, False])
def test_a_log_line_is_one_line(capsys: pytest.CaptureFixture[str], *, supervised: bool) -> None:
    before = logging.getLogger().handlers[:]
    try:
        log_setup.set_up_logging(verbose=False, supervised=supervised)
        logging.getLogger("test").warning("device %s", f"{HOSTILE}\nERROR forged")
    finally:
        logging.getLogger().handlers[:] = before
    output = capsys.readouterr().err
    assert output.endswith(f"WARNING device {SHOWN}\\nERROR forged\n")
    assert is_clean(output)


async def test_relayed_lines_are_shown_literally() -> None:
    written = io.StringIO()
    console = make_console(file=written, width=400)
    supervisor = ProcessSupervisor(lambda name, level, text: log_setup.print_process_line(console, name, level, text))
    child = ChildProcess("stream", ["sql", "--data", "/nonexistent", f"SELECT '{HOSTILE}"], stop_timeout_s=10)
    assert await supervisor.run(child) != 0
    assert "[/b] [red]x[/red] :house: [link=http://e]y[/link]" in written.getvalue()
    assert is_clean(written.getvalue())
    log_setup.print_process_line(console, "lander", logging.INFO, HOSTILE)
    assert SHOWN in written.getvalue()


def test_a_console_measures_the_escaped_text() -> None:
    written = io.StringIO()
    console = make_console(file=written, width=200)
    table = Table(HOSTILE, "b")
    table.add_row(HOSTILE, "1")
    table.add_row("short", Text(f"{HOSTILE}"))
    console.print(table)
    console.print(HOSTILE, Text(HOSTILE))
    assert is_clean(written.getvalue())
    assert len({len(line) for line in written.getvalue().splitlines()[:4]}) == 1


def test_letters_of_every_language_are_not_escaped() -> None:
    text = "Grüße, שלום, سلام, 你好, 😀, 👩‍👩‍👧\ttab\nline"
    assert escape_controls(text) == text
    assert escape_to_line("a\nb") == r"a\nb"
    assert escape_controls("\ud800") == r"\ud800"


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.mark.parametrize("package", ["smspulse", "ingest", "streams", "warehouse", "expectations", "gateway"])
def test_no_other_module_writes_to_a_terminal(package: str) -> None:
    """Any other output, and any markup, would have to escape external texts itself."""
    for path in sorted((ROOT / package).rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        tree = ast.parse(path.read_text())
        if name == "smspulse/processes/terminal.py":
            continue
        for called, node in calls(tree):
            assert called not in {"Console", "print", "click.echo", "click.secho", "rich.print", "escape_markup"}, (
                f"{name}:{node.lineno}: {called}: use smspulse.terminal"
            )
            assert not called.endswith("Text.from_markup"), f"{name}:{node.lineno}"
            options = {each.arg for each in node.keywords}
            assert not called.endswith("Console.print") or "markup" not in options, f"{name}:{node.lineno}"
            assert not called.endswith(("logging.Formatter", "StreamHandler")), f"{name}:{node.lineno}: {called}"
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                assert node.module not in {"rich.markup", "rich.logging", "rich.prompt"}, f"{name}:{node.lineno}"


def test_the_scan_detects_a_console_of_rich() -> None:
    found = {called for called, _ in calls(ast.parse("from rich.console import Console\nConsole().print('[red]x')"))}
    assert "Console" in found
    assert Console is not type(make_console())
