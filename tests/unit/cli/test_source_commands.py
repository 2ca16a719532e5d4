import re
from pathlib import Path

from click.testing import CliRunner

from ingest.sources import SourceRegistry
from smspulse.cli.main import cli


def source(tmp_path: Path, *arguments: str) -> str:
    done = CliRunner().invoke(cli, ["source", *arguments, "--data", str(tmp_path)], catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


def token(output: str) -> str:
    (shown,) = set(re.findall(r"https://x\.example/webhooks/acme/(\S+)", output))
    return str(shown)


def test_a_rotation_shows_each_token_once_and_finish_ends_the_old_one(tmp_path: Path) -> None:
    old = token(source(tmp_path, "add", "acme", "--url", "https://x.example"))
    new = token(source(tmp_path, "rotate", "acme", "--url", "https://x.example"))
    assert all(SourceRegistry(tmp_path).accepts_token("acme", each) for each in (old, new))
    assert source(tmp_path, "list") == "acme\t2 tokens\n"
    output = source(tmp_path, "rotate", "acme", "--finish")
    assert not {old, new} & set(output.split())
    assert [SourceRegistry(tmp_path).accepts_token("acme", each) for each in (old, new)] == [False, True]
