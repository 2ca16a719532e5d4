"""Writes the data folder of a release for tests of later ones: `python tests/support/released.py 0.1.0`.

To be run from the repository with its packages, once before a release whose files have another schema than those kept.
"""

import json
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

from landing import land_records
from warehouse_records import deadletter, raw, status, tombstone, version

from gateway.statuses import build_status_table
from warehouse.file_names import SEED_DATE
from warehouse.reader import open_warehouse
from warehouse.rebuild import rebuild_base

FOLDER = Path(__file__).parents[1] / "released"
VIEWS = (
    *("raw_webhooks", "status_events", "incoming_messages", "messages", "delivery_hourly", "delivery_daily"),
    *("delivery_by_device", "delivery_by_prefix", "latency_hourly", "failure_reasons", "funnel", "conversations"),
    *("webhook_quality", "deadletters", "rebuild_differences", "messages_as_of('2027-01-01')"),
)
"""The views whose content does not depend on the current time."""


def answers(data: Path, columns: dict[str, list[str]] | None = None) -> dict[str, Any]:
    """Return the rows of each view, in the given columns or in all."""
    found = {}
    with open_warehouse(data) as connection:
        for view in VIEWS:
            chosen = ", ".join(f'"{name}"' for name in columns[view]) if columns else "*"
            frame = connection.execute(f"SELECT {chosen} FROM {view} ORDER BY ALL").df()  # noqa: S608 - names of ours
            rows = frame.to_json(orient="values", date_format="iso", default_handler=str)
            found[view] = {"columns": list(frame.columns), "rows": json.loads(rows)}
    return found


def make(data: Path) -> None:
    """Land records of every kind, rebuild, and land more."""
    incoming = {"sms_id": 9, "type": "text", "device_id": 1, "body": "yes", "address": "+4915700000001"}
    way = [(1, 0), (3, 1), (2, 2), (6, 5), (7, 9)]
    records = [raw(n, status(1, status_id), seconds=seconds) for n, (status_id, seconds) in enumerate(way)]
    records += [raw(5, status(2, 9), seconds=20), raw(6, incoming, seconds=30), raw(7, b"{", seconds=40)]
    land_records(data, 0, records)
    land_records(data, 0, [deadletter(0, b"{", "not_json", "sms.raw:0:7")])
    land_records(data, 0, [version(0, 1, "sent", version=4), tombstone(1, "acme:incoming:9")])
    rebuild_base(data, build_status_table({}), timedelta(days=1))
    land_records(data, 8, [raw(8, status(3, 6), seconds=90)])
    land_records(data, 2, [version(2, 3, "sent", seconds=90, version=2)])


def main(release: str) -> None:
    """Write the folder without the catalog, which each version writes itself."""
    data = FOLDER / release
    data.mkdir(parents=True)
    make(data)
    (data / "answers.json").write_text(json.dumps(answers(data), indent=1) + "\n")
    (data / "smspulse.duckdb").unlink()
    for path in data.rglob(f"date={SEED_DATE}/*"):  # without rows, or part of the product
        path.unlink()


if __name__ == "__main__":
    main(sys.argv[1])
