"""Messages of devices at given times, landed for the alert rules."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from landing import land_records
from warehouse_records import MadeRecord, version

from smspulse.alerting.rules import (
    WarehouseRules,
)

MINUTE, HOUR, DAY = 60.0, 3_600.0, 86_400.0


class LandedMessages:
    """Messages for a warehouse. Times are in seconds from noon of Tuesday, 24 November 2026."""

    def __init__(self) -> None:
        self._records: list[tuple[float, MadeRecord]] = []

    def add(self, seconds: float, outcome: str = "delivered", **fields: Any) -> None:
        number = len(self._records)
        fields = {"device_id": 1, "channel_id": number % 2, "network_s": 3.0, "total_s": 9.0} | fields
        if outcome != "delivered":
            fields["network_s"] = None
        self._records.append((seconds, version(0, number, outcome, seconds=seconds, **fields)))

    def land(self, data: Path) -> WarehouseRules:
        in_order = sorted(self._records, key=lambda each: each[0])
        land_records(data, 0, [record._replace(offset=number) for number, (_, record) in enumerate(in_order)])
        return WarehouseRules(data)


def by_day(days: Sequence[int], every_s: float, *, first: float = -4 * HOUR, last: float = 5 * HOUR) -> Iterator[float]:
    """Return even times from eight to five on days before the day of noon."""
    for day in days:
        seconds = first
        while seconds < last:
            yield seconds - day * DAY
            seconds += every_s
