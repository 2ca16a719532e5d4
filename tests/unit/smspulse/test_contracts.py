"""Payloads of a gateway that is not connected yet: which generation they are, and what is wrong with them."""

from pathlib import Path

import orjson
import pytest
from click.testing import CliRunner

from smspulse.cli import cli
from smspulse.contracts import read, split

EXAMPLES = Path(__file__).parents[3] / "examples" / "webhooks"
GENERATIONS = {
    "status": "status report, current",
    "status-sim": "status report, older (sim in place of channel_id)",
    "incoming-sim": "incoming message, oldest (sim, no type)",
    "incoming-channel": "incoming message, older (channel_id, no type)",
    "incoming-text": "incoming text, current",
    "incoming-image": "incoming image, current",
    "unverified-event": None,
}


def test_every_documented_payload_is_told_by_its_generation() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.json")} == GENERATIONS.keys()
    for name, generation in GENERATIONS.items():
        found = read((EXAMPLES / f"{name}.json").read_bytes())
        assert (found.generation, bool(found.faults)) == (generation, generation is None), name
        assert found.unknown == (), name


def test_what_is_wrong_is_named_by_its_field_and_never_by_its_value() -> None:
    found = read(orjson.dumps({"sms_id": 1, "status_id": 7, "senttime": "secret", "colour": "secret"}))
    assert (found.faults, found.unknown) == (("senttime cannot be read and would be null",), ("colour",))
    assert read(b'{"status_id": 7}').faults == ("missing_field: sms_id is missing",)


@pytest.mark.parametrize("form", [b'{"a": 1}\n{"a": 2}\n', b'[{"a": 1}, {"a": 2}]'])
def test_a_sample_is_lines_or_an_array(form: bytes) -> None:
    assert [orjson.loads(each) for each in split(form)] == [{"a": 1}, {"a": 2}]


def test_a_single_payload_may_span_lines_and_be_no_json() -> None:
    assert split(b'{\n"a": 1}\n') == [b'{\n"a": 1}\n']
    assert split(b"<html>\n</html>") == [b"<html>\n</html>"]


def test_the_command_runs_the_suite_too_and_says_by_its_code_whether_all_is_well(tmp_path: Path) -> None:
    good = CliRunner().invoke(cli, ["check", "payload", str(EXAMPLES / "status.json")])
    assert (good.exit_code, "✓ 1: status report, current" in good.output) == (0, True), good.output
    odd = b'{"sms_id": 1, "status_id": 99, "channel_id": 8001, "sendto": "+4915"}'
    found = CliRunner().invoke(cli, ["check", "payload", "-"], input=odd)
    for check in ("raw_channels_in_range", "raw_codes_known"):
        assert f"✗ warning {check}" in found.output
    assert "payloads checked: 1, as if they had been received now" in found.output
    none = CliRunner().invoke(cli, ["check", "payload", "-"], input=b"[]")
    assert (none.exit_code, "there is no payload in it" in none.output) == (2, True)
    bad = CliRunner().invoke(cli, ["check", "payload", "-"], input=b"<html>")
    assert bad.exit_code == 1
    assert "not_json" in bad.output
