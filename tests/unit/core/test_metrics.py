"""Gauges that are replaced as a whole: a scrape sees all values of one state, whenever it comes."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from core.metrics import GaugeFamily, GaugeSnapshot
from smspulse.dashboard import metrics as page
from streams import metrics as stream
from warehouse import metrics as lander

PARTITIONS = 5

Scraped = dict[tuple[str, tuple[str, ...]], float]


def scraped(registry: CollectorRegistry) -> Scraped:
    return {
        (sample.name, tuple(sorted(sample.labels.values()))): sample.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
        if sample.name.startswith("smspulse_")
    }


class Scraper:
    """Scrapes a registry, and keeps what it saw."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry, self.seen = registry, list[Scraped]()

    def __call__(self) -> None:
        self.seen.append(scraped(self._registry))


class ScrapedMapping(dict[Any, Any]):
    """A mapping that has a scrape come between its items: as one of another thread may, but surely."""

    def __init__(self, scrape: Callable[[], None], values: dict[Any, Any]) -> None:
        super().__init__(values)
        self._scrape = scrape

    def __iter__(self) -> Iterator[Any]:
        for key in super().__iter__():
            self._scrape()
            yield key

    def keys(self) -> Any:
        return iter(self)

    def items(self) -> Any:
        return ((key, self[key]) for key in self)


class ScrapedList(list[Any]):
    """A list, likewise."""

    def __init__(self, scrape: Callable[[], None], values: list[Any]) -> None:
        super().__init__(values)
        self._scrape = scrape

    def __iter__(self) -> Iterator[Any]:
        for value in super().__iter__():
            self._scrape()
            yield value


def test_a_scrape_while_values_are_replaced_sees_those_before() -> None:
    registry = CollectorRegistry()
    one, other = GaugeFamily("smspulse_a", "A.", ("name",)), GaugeFamily("smspulse_b", "B.", ("name",))
    snapshot = GaugeSnapshot(registry, one, other)
    names = [(str(number),) for number in range(3)]
    snapshot.replace_values({one: dict.fromkeys(names, 1), other: dict.fromkeys(names, 1)})
    before = scraped(registry)
    scraper = Scraper(registry)
    values = ScrapedMapping(scraper, dict.fromkeys(names, 2))
    snapshot.replace_values(ScrapedMapping(scraper, {one: values, other: values}))
    assert scraper.seen
    assert all(seen == before for seen in scraper.seen)
    assert set(scraped(registry).values()) == {2}


def test_a_scrape_during_which_values_are_replaced_sees_one_state() -> None:
    one, other = GaugeFamily("smspulse_a", "A."), GaugeFamily("smspulse_b", "B.")
    snapshot = GaugeSnapshot(CollectorRegistry(), one, other)
    snapshot.replace_values({one: {(): 1}, other: {(): 1}})
    collected = snapshot.collect()
    first = next(collected)
    snapshot.replace_values({one: {(): 2}, other: {(): 2}})
    assert [sample.value for gauge in (first, *collected) for sample in gauge.samples] == [1, 1]


@pytest.mark.parametrize(
    ("registry", "set_lag"),
    [(stream.REGISTRY, stream.set_stream_lag), (lander.REGISTRY, lander.set_lander_lag)],
    ids=["stream", "lander"],
)
def test_a_scrape_sees_the_lag_of_every_partition_and_of_one_time(registry: Any, set_lag: Any) -> None:
    def lag(number: int) -> dict[tuple[str, int], int]:
        return {("sms.raw", partition): number for partition in range(PARTITIONS)}

    set_lag(lag(1))
    scraper = Scraper(registry)
    set_lag(ScrapedMapping(scraper, lag(2)))
    scraper()
    lags = [[value for (name, _), value in seen.items() if name.endswith("_lag_records")] for seen in scraper.seen]
    assert lags == [*[[1] * PARTITIONS] * PARTITIONS, [2] * PARTITIONS]


def test_partitions_that_went_to_others_are_gone_from_the_next_scrape_on() -> None:
    stream.set_stream_lag({("sms.raw", 0): 1, ("sms.raw", 1): 2})
    stream.set_stream_lag({("sms.raw", 1): 3})
    assert {key: value for key, value in scraped(stream.REGISTRY).items() if "_lag_" in key[0]} == {
        ("smspulse_stream_lag_records", ("1", "sms.raw")): 3
    }


def test_a_scrape_of_the_page_sees_all_that_one_reading_found() -> None:
    class Time:
        def __init__(self, seconds: int) -> None:
            self._seconds = seconds

        def timestamp(self) -> int:
            return self._seconds

    def checks(number: int) -> list[dict[str, Any]]:
        return [
            {"expectation": f"e{each}", "severity": "critical", "success": True, "checked_at": Time(number)}
            for each in range(PARTITIONS)
        ]

    page.set_page_metrics(checks(1), 1, 1)
    scraper = Scraper(page.REGISTRY)
    page.set_page_metrics(ScrapedList(scraper, checks(2)), 2, 2)
    assert scraper.seen
    for seen, number in [*((each, 1) for each in scraper.seen), (scraped(page.REGISTRY), 2)]:
        assert sum(name == "smspulse_check_holds" for name, _ in seen) == PARTITIONS
        times = {
            value for (name, _), value in seen.items() if name.startswith(("smspulse_page_", "smspulse_check_newest"))
        }
        assert times == {number}


def test_a_gauge_without_labels_is_there_before_its_first_value() -> None:
    registry = CollectorRegistry()
    GaugeSnapshot(registry, GaugeFamily("smspulse_a", "A."), GaugeFamily("smspulse_b", "B.", ("name",)))
    assert scraped(registry) == {("smspulse_a", ()): 0}


def test_a_gauge_of_another_snapshot_is_refused() -> None:
    snapshot = GaugeSnapshot(CollectorRegistry(), GaugeFamily("smspulse_a", "A."))
    with pytest.raises(ValueError, match="smspulse_b"):
        snapshot.replace_values({GaugeFamily("smspulse_b", "B."): {(): 1}})
