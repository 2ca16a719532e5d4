"""Gauges that are replaced as a whole: a scrape sees all values of one state."""

import threading
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from gateway.alerts import KINDS
from gateway.metrics import GaugeFamily, GaugeSnapshot
from smspulse.page import metrics as page
from streams import metrics as stream
from warehouse import metrics as lander

SCRAPES = 300
PARTITIONS = 50


def scraped(registry: CollectorRegistry) -> dict[tuple[str, tuple[str, ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.values()))): sample.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
        if sample.name.startswith("smspulse_")
    }


def scraped_while(registry: CollectorRegistry, replace: Callable[[int], None]) -> list[Mapping[Any, float]]:
    """Return what scrapes see while values are replaced again and again by another thread."""
    over, begun = threading.Event(), threading.Event()

    def work() -> None:
        number = 0
        while not over.is_set():
            number += 1
            replace(number)
            begun.set()

    writer = threading.Thread(target=work)
    writer.start()
    try:
        assert begun.wait(60)
        return [scraped(registry) for _ in range(SCRAPES)]
    finally:
        over.set()
        writer.join()


@pytest.mark.parametrize("metrics", [stream, lander])
def test_a_scrape_sees_the_lag_of_every_partition_and_of_one_time(metrics: Any) -> None:
    def replace(number: int) -> None:
        metrics.lag({("sms.raw", partition): number for partition in range(PARTITIONS)})

    for seen in scraped_while(metrics.REGISTRY, replace):
        lags = [value for (name, _), value in seen.items() if name.endswith("_lag_records")]
        assert len(lags) == PARTITIONS
        assert len(set(lags)) == 1


def test_partitions_that_went_to_others_are_gone_from_the_next_scrape_on() -> None:
    stream.lag({("sms.raw", 0): 1, ("sms.raw", 1): 2})
    stream.lag({("sms.raw", 1): 3})
    assert {key: value for key, value in scraped(stream.REGISTRY).items() if "_lag_" in key[0]} == {
        ("smspulse_stream_lag_records", ("1", "sms.raw")): 3
    }


def test_a_scrape_of_the_page_sees_all_that_one_reading_found() -> None:
    class Time:
        def __init__(self, seconds: int) -> None:
            self._seconds = seconds

        def timestamp(self) -> int:
            return self._seconds

    def replace(number: int) -> None:
        checks = [
            {"expectation": f"e{each}", "severity": "critical", "success": True, "checked_at": Time(number)}
            for each in range(PARTITIONS)
        ]
        page.read({"checks": checks, "alerts": []}, number, number)

    for seen in scraped_while(page.REGISTRY, replace):
        assert sum(name == "smspulse_check_holds" for name, _ in seen) == PARTITIONS
        assert sum(name == "smspulse_alerts_firing" for name, _ in seen) == len(KINDS)
        times = {
            value for (name, _), value in seen.items() if name.startswith(("smspulse_page_", "smspulse_check_newest"))
        }
        assert len(times) == 1


def test_a_gauge_without_labels_is_there_before_its_first_value() -> None:
    registry = CollectorRegistry()
    GaugeSnapshot(registry, GaugeFamily("smspulse_a", "A."), GaugeFamily("smspulse_b", "B.", ("name",)))
    assert scraped(registry) == {("smspulse_a", ()): 0}


def test_a_gauge_of_another_snapshot_is_refused() -> None:
    snapshot = GaugeSnapshot(CollectorRegistry(), GaugeFamily("smspulse_a", "A."))
    with pytest.raises(ValueError, match="smspulse_b"):
        snapshot.replace({GaugeFamily("smspulse_b", "B."): {(): 1}})
