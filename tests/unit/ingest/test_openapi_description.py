"""The endpoint against its own OpenAPI description, by Schemathesis."""

import asyncio
import sys
from pathlib import Path

import pytest
from served_ingest import TOKEN, receiving

VALID = f'[parameters]\n"path.source" = "acme"\n"path.token" = "{TOKEN}"\n'


@pytest.mark.parametrize("parameters", ["", VALID], ids=["untrusted clients", "a source"])
async def test_every_answer_is_as_described(tmp_path: Path, parameters: str) -> None:
    (tmp_path / "schemathesis.toml").write_text(parameters)
    async with receiving(tmp_path) as running:
        tester = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "schemathesis.cli", "run", "--seed", "1", "-n", "30", "--auth", f"any:{TOKEN}"),
            f"http://127.0.0.1:{running.port}/openapi.json",
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        report, _ = await tester.communicate()
    assert tester.returncode == 0, report.decode()
    assert "Operations:       5 selected" in report.decode()  # it leaves out the description's own
    assert bool(running.sink.kept) == bool(parameters)
