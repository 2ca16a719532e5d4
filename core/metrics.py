"""Prometheus gauges whose values are replaced together."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

GaugeValues = Mapping[tuple[str, ...], float]
"""Values of a gauge by its labels' values."""


@dataclass(frozen=True, slots=True)
class GaugeFamily:
    """A gauge of a snapshot.

    Args:
        name: Name in Prometheus.
        documentation: Help text.
        labels: Names of its labels.
    """

    name: str
    documentation: str
    labels: tuple[str, ...] = ()


class GaugeSnapshot(Collector):
    """Gauges of one state that are replaced together.

    A scrape sees all values of one state. A gauge that is cleared and filled again could be scraped between the two.

    Args:
        registry: Registry of the collector.
        families: The gauges. A gauge without labels is 0 until its first value. The others have no value until then.
    """

    def __init__(self, registry: CollectorRegistry, *families: GaugeFamily) -> None:
        self.families: Sequence[GaugeFamily] = families
        self._values: Mapping[str, GaugeValues] = {family.name: {(): 0.0} for family in families if not family.labels}
        registry.register(self)

    def replace_values(self, values: Mapping[GaugeFamily, GaugeValues]) -> None:
        """Replace all values of all gauges. A gauge that is left out has no value."""
        unknown = set(values) - set(self.families)
        if unknown:
            msg = f"not of this snapshot: {', '.join(sorted(family.name for family in unknown))}"
            raise ValueError(msg)
        # One assignment is atomic: a scrape in another thread sees all old values or all new ones.
        self._values = {family.name: dict(found) for family, found in values.items()}

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Yield the gauges without values."""
        for family in self.families:
            yield GaugeMetricFamily(family.name, family.documentation, labels=family.labels)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the gauges with the values of one state."""
        values = self._values
        for family, gauge in zip(self.families, self.describe(), strict=True):
            for labels, value in values.get(family.name, {}).items():
                gauge.add_metric(labels, value)
            yield gauge
