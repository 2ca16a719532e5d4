"""Names of the datasets and rollups, and the topics of the landed ones. Imports no pyarrow."""

from typing import Final

from core import topics

DATASET_BY_TOPIC: Final = {
    topics.RAW: "raw",
    topics.MESSAGES: "messages",
    topics.ALERTS: "alerts",
    topics.DEADLETTERS: "deadletters",
}
"""The dataset that each topic is landed in. Its name is that of its folder under the data folder."""
ROLLUPS: Final = ("delivery", "attempts", "latency", "failures", "networks", "routes")
"""Counts of the base files of each day, in `base/{name}`."""

RECENT_BASE: Final = "base/recent"
"""Messages that appeared after the last rebuild, in the schema of `base`; `{RECENT_BASE}/{rollup}` counts them."""
RECENT_UPDATES: Final = "base/recent/updates"
"""Versions, newer than the last rebuild, of messages that other base files hold, in the schema of `messages`."""

DATASET_NAMES: Final = (
    *DATASET_BY_TOPIC.values(),
    *("base", "differences", *(f"base/{name}" for name in ROLLUPS)),
    *(RECENT_BASE, RECENT_UPDATES, *(f"{RECENT_BASE}/{name}" for name in ROLLUPS)),
    *("webhooks", "quality", "prefixes", "status_codes"),
)
"""Every dataset. Those that are not landed are rebuilt from others, or are part of the product."""
