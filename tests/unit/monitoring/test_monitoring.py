"""The names of metrics agree in the processes, the rules, the dashboard and the reference."""

import json
import re
import subprocess
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest
from outcome_records import DELIVERED, T0, outcome
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from reference_pages import list_metric_families
from running import program
from warehouse_records import alert

from core.alerts import decode_alert
from smspulse.alerting import metrics as alerting
from smspulse.dashboard import metrics as page
from streams import metrics as stream
from streams.processor import OutputRecord, ProcessorOutput
from warehouse import metrics as lander

FOLDER = Path(__file__).parents[3] / "monitoring"
LABELS = {
    "route",
    "code",
    "topic",
    "partition",
    "outcome",
    "step",
    "kind",
    "expectation",
    "severity",
    "part",
    "notified_by",
}
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}


@pytest.fixture(scope="module")
def known() -> set[str]:
    return {family.name + suffix for family in list_metric_families() for suffix in SUFFIXES[family.type]}


def asked(text: str) -> set[str]:
    return set(re.findall(r"\bsmspulse_\w+", text))


def test_no_panel_uses_an_unknown_metric(known: set[str]) -> None:
    for panel in json.loads((FOLDER / "dashboard.json").read_text())["panels"]:
        for target in panel["targets"]:
            assert asked(target["expr"]) <= known, panel["title"]


def test_no_rule_uses_an_unknown_metric(known: set[str]) -> None:
    text = (FOLDER / "smspulse.rules.yml").read_text()
    expressions = re.findall(r"expr: (.*)", text)
    assert len(expressions) == text.count("alert: ")
    assert asked(" ".join(expressions)) <= known


def test_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    panels = json.loads((FOLDER / "dashboard.json").read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    covered = Counter(
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    )
    assert set(covered.values()) == {1}
    assert {x for x, _ in covered} == set(range(24)), "Grafana's grid has 24 columns"


def test_labels_have_few_values_and_no_personal_data() -> None:
    for family in list_metric_families():
        assert set(family.labels) <= LABELS, family.name


def promtool(*arguments: str, text: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([program("promtool"), *arguments], cwd=FOLDER, input=text, capture_output=True, check=False)


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", "prometheus.yml"),
        ("check", "rules", "smspulse.rules.yml"),
        ("test", "rules", "smspulse.rules.test.yml"),
    ],
)
def test_promtool_accepts_the_files(arguments: tuple[str, ...]) -> None:
    done = promtool(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr


def test_committed_records_are_counted_and_promtool_accepts_the_metrics() -> None:
    ended = stream.ENDED.labels("delivered")._value
    before = ended.get()
    outputs = ProcessorOutput(
        ends=[outcome(DELIVERED, 1, T0, network_s=4.0, total_s=9.0), outcome(DELIVERED, 2, T0, total_s=1.0)],
        records=[OutputRecord("sms.deadletters", b"", b"")],
    )
    stream.count_commit("sms.raw", 3, outputs)
    lander.count_landed_file("sms.raw", 1, 5000)
    assert ended.get() == before + 2
    checks = [
        {"expectation": "raw_offsets_whole", "severity": "critical", "success": False, "checked_at": datetime.now(UTC)}
    ]
    page.set_page_metrics(checks, at=7, took=0.5)
    records = [
        alert(0, "firing", kind="silent"),
        alert(1, "firing", kind="pipeline", scope="pipeline", source="*", id="pipeline:*:*:*:stream"),
    ]
    alerting.set_alert_metrics([decode_alert(each.value or b"") for each in records], has_receivers=False)
    for registry in (stream.REGISTRY, lander.REGISTRY, page.REGISTRY, alerting.REGISTRY):
        text = generate_latest(registry)
        assert list(text_string_to_metric_families(text.decode()))
        done = promtool("check", "metrics", text=text)
        assert done.returncode == 0, done.stdout + done.stderr
    assert b'smspulse_lander_newest_record_timestamp_seconds{topic="sms.raw"} 5.0' in generate_latest(lander.REGISTRY)
    metrics_page = generate_latest(page.REGISTRY)
    assert b'smspulse_check_holds{expectation="raw_offsets_whole",severity="critical"} 0.0' in metrics_page
    firing = generate_latest(alerting.REGISTRY)
    for labels in (
        b'kind="silent",notified_by="prometheus",part="",severity="warning"',
        b'kind="pipeline",notified_by="prometheus",part="stream",severity="critical"',
    ):
        assert b"smspulse_alerts_firing{%s} 1.0" % labels in firing
    alerting.set_alert_metrics([], has_receivers=True)
    assert b"smspulse_alerts_firing{" not in generate_latest(alerting.REGISTRY), "an alert that is over"
    page.set_page_metrics([], at=8, took=0.5)
    assert b"smspulse_check_holds{" not in generate_latest(page.REGISTRY), "an expectation that is no more"
