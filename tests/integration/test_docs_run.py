"""Every line of code in the documentation runs next to a running pipeline, or a test that runs it is named here."""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import chdir
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from textwrap import dedent

import pytest
from commands import invoke
from running import LAND_OFTEN, Pipeline, post, start

ROOT = Path(__file__).parents[2]
GENERATED = {"reference", "notebooks", "decisions"}
PAGES = [ROOT / "README.md", *(p for p in sorted((ROOT / "docs").rglob("*.md")) if p.parent.name not in GENERATED)]
ALERT = "failure_ratio:mygateway:10482:1"
SETTINGS = (ROOT / "docs" / "reference" / "settings.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]

# Lines that cannot run here, and the tests that run them.
ELSEWHERE = {
    "smspulse up": "tests/integration/test_pipeline.py",
    "smspulse alerts test": "tests/unit/alerting/test_alert_receivers.py",
    "smspulse land --data s3://": "tests/integration/test_lander_s3.py",
    "smspulse sql --data s3://": "tests/integration/test_lander_s3.py",
    "CREATE SECRET": "tests/integration/test_lander_s3.py",
    "ATTACH 's3://": "tests/integration/test_lander_s3.py",
    "amtool silence add": "tests/integration/test_alertmanager.py",
    "marimo run": "tests/unit/notebooks/test_notebooks.py",
    "kafka-topics.sh": "tests/integration/test_broker_login.py",
    "kafka-configs.sh": "tests/integration/test_broker_login.py",
}
CAN_BE_1 = ("smspulse status", "smspulse check", "smspulse doctor", "smspulse erase", "smspulse message demo:")
"""Commands with exit code 1 for a problem that they find."""


def blocks(page: Path) -> Iterator[list[str]]:
    """Return the blocks of code, with continued lines joined. A fence without a language is a drawing."""
    text = re.sub(r"^```\n.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    fenced = re.findall(r"^```\w+\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    indented = re.findall(r"(?<=\n\n)((?: {4,}\S.*\n|\n(?= {4,}\S))+)", text)
    for block in (*fenced, *indented):
        lines = dedent(re.sub(r"\\\n\s*", "", block)).splitlines()
        # A line that starts with a number or a drawing is output, one with a bar is a table.
        if found := [line for line in lines if re.match(r"\s*[A-Za-z.]", line)]:
            yield found


@dataclass
class Reader:
    """A reader who types the lines of a page, with a printed URL in place of TOKEN.

    A line that stands on several pages is typed once. The lines of the README are typed into a shell, and those that
    need one; the other commands of `smspulse` run in this process, which need not import all libraries again.
    """

    pipeline: Pipeline
    folder: Path
    url: str
    numbers: Iterator[int]
    typed: set[str] = field(default_factory=set)

    def follow(self, block: list[str], *, in_shell: bool) -> None:
        if block[0].startswith("import "):
            code = "\n".join(block).replace('".smspulse"', repr(str(self.pipeline.data)))
            self.execute([sys.executable, "-c", code])
            return
        for line in block:
            bare = re.sub(r"^(?:[A-Z_]+=\S+ +)*", "", line)
            self.know(line)
            if where := next((test for start_, test in ELSEWHERE.items() if bare.startswith(start_)), None):
                assert (ROOT / where).is_file()
            elif re.match(r"(smspulse|curl|python) ", bare):
                if line not in self.typed:
                    self.type(line, judges=bare.startswith(CAN_BE_1), in_shell=in_shell)
                    self.typed.add(line)
            elif found := re.match(r"make ([a-z-]+)", bare):
                assert f"\n{found[1]}: " in MAKEFILE, line
            else:
                assert re.match(r"export |\. \.venv/bin/activate|pip install|ATTACH|\$ ?", bare), f"who runs it: {line}"

    @staticmethod
    def know(line: str) -> None:
        for name in re.findall(r"\b(SMSPULSE_[A-Z_]+)=", line):
            assert f"`{name}`" in SETTINGS, name
        for extra in re.findall(r"smspulse\[(\w+)\]", line):
            assert extra in EXTRAS, extra

    def type(self, line: str, *, judges: bool, in_shell: bool) -> None:
        line = re.sub(r"http://127\.0\.0\.1:8080/webhooks/\S+/TOKEN", self.url, line)
        line = re.sub(r"(source add \w+)", rf"\1-{next(self.numbers)}", line)
        line = re.sub(r"\b(explain|silence) ID\b", rf"\1 {ALERT}", line)
        line = re.sub(r" --watch( [\d.]+)?|\| while.*", "", line)
        if " simulate " in line:
            line = (
                re.sub(r"--messages \d+|--time-scale \S+", "", line) + " --messages 30 --time-scale 0.01 --max-delay 1"
            )
        if in_shell or needs_shell(line):
            output = self.execute(["bash", "-c", line], judges=judges)
        else:
            output = self.invoke(shlex.split(line, comments=True)[1:], judges=judges)
        if found := re.search(r"http\S+/webhooks/\S+/\S+", output):
            self.url = re.sub(r"https?://[^/]+", self.pipeline.url, found[0])

    @property
    def variables(self) -> dict[str, str]:
        return {
            "SMSPULSE_DATA": str(self.pipeline.data),
            "SMSPULSE_INGEST_PORT": self.pipeline.url.rpartition(":")[2],
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "COLUMNS": "160",
        }

    def execute(self, command: list[str], *, judges: bool = False) -> str:
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=os.environ | self.variables,
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        output = f"{command[-1]}\n{done.stdout}\n{done.stderr}"
        assert done.returncode in ({0, 1} if judges else {0}), output
        assert "Traceback" not in done.stderr, output
        return done.stdout

    def invoke(self, arguments: list[str], *, judges: bool) -> str:
        with chdir(self.folder):
            done = invoke(*arguments, environment=self.variables)
        output = f"{arguments}\n{done.output}"
        assert done.exit_code in ({0, 1} if judges else {0}), output
        assert "Traceback" not in done.stderr, output
        return done.stdout


def needs_shell(line: str) -> bool:
    """Return whether a line is more than a command of `smspulse` with plain or quoted arguments and a comment."""
    bare = re.sub(r"""'[^']*'|"[^"$`]*"|\s#.*""", "", line)
    return re.match(r"smspulse [^|&;<>()$`*?~{}\\]*$", bare) is None


@pytest.fixture(scope="module")
def reader(real_kafka: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    folder = tmp_path_factory.mktemp("reader")
    for name in ("examples", "notebooks", "monitoring"):
        (folder / name).symlink_to(ROOT / name)
    running = start(folder / "data", "--broker", "kafka", environment=LAND_OFTEN)
    try:
        url = running.source("mygateway")
        example = json.loads((ROOT / "examples" / "webhooks" / "status.json").read_bytes())
        post(url, json.dumps(example).encode())
        for number in range(40):
            failed = example | {"sms_id": number, "status_id": 9, "channel_id": 1}
            post(url, json.dumps(failed).encode())
        running.wait_for("FROM alerts WHERE alert_id = ? AND is_firing", ALERT)
        yield Reader(running, folder, url, count())
    finally:
        assert running.stop() == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_line_of_a_page_runs(page: Path, reader: Reader) -> None:
    for block in blocks(page):
        reader.follow(block, in_shell=page.name == "README.md")


def test_commands_are_found() -> None:
    lines = [line for page in PAGES for block in blocks(page) for line in block]
    assert len(lines) > 80
    assert sum(line.startswith("smspulse ") for line in lines) > 50
