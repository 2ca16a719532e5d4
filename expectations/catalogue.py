"""The checks, as `catalogue.toml` has them, and what it refers to."""

import tomllib
from collections.abc import Iterable, Mapping
from importlib.resources import files
from typing import Any, Final

from expectations.settings import CheckSettings
from expectations.suites import Check
from gateway.statuses import ENDS, FAILURES, STATUSES, Outcome, Status

SUITES: Final = ("raw", "messages", "deadletters", "devices", "delivery", "reconciliation")
"""In the order in which data walks."""

BATCHES: Final = {
    "raw": """
        SELECT
            topic || ':' || "partition" || ':' || "offset" AS scope, topic, "partition", "offset", ingest_id,
            (epoch_ms(received_at) - try_cast('0x' || replace(ingest_id[1:13], '-', '') AS BIGINT)) / 1000 AS id_lag_s
        FROM raw_files
        WHERE topic IS NOT NULL AND recorded_at >= (SELECT max(recorded_at) FROM raw_files) - INTERVAL 1 DAY
        ORDER BY recorded_at DESC LIMIT getvariable('batch_rows')
    """,
    "messages": """
        SELECT
            message_key AS scope, first_seen_at, last_seen_at,
            epoch(first_seen_at - list_min([each.first_received_at FOR each IN observations])) AS first_off_s,
            epoch(last_seen_at - list_max([each.last_received_at FOR each IN observations])) AS last_off_s,
            version - len(observations) AS further_facts
        FROM version_files
        WHERE version IS NOT NULL
            AND recorded_at >= (SELECT max(recorded_at) FROM version_files) - INTERVAL 1 DAY
        ORDER BY recorded_at DESC LIMIT getvariable('batch_rows')
    """,
}
"""The newest rows of a dataset, for what Great Expectations says of rows; `scope` names a row."""

RELATIONS: Final = {
    "raw": ("raw_files", "topic || ':' || \"partition\" || ':' || \"offset\""),
    "messages": ("messages", "message_key"),
    "deadletters": ("deadletter_files", "topic || ':' || \"partition\" || ':' || \"offset\""),
}
"""Of which rows `Check.wrong` speaks, and what names one."""


def all_checks(settings: CheckSettings, statuses: Mapping[int, Status] = STATUSES) -> tuple[Check, ...]:
    """Return every check, suite by suite.

    Args:
        settings: The thresholds.
        statuses: What each status id means, as the stream has it.
    """
    told = settings.model_dump()
    names = told | {
        "outcomes": _quoted(Outcome),
        "ends": _quoted(ENDS),
        "failures": _quoted(FAILURES),
        "meanings": "{" + ", ".join(f"{id_}: '{status.outcome}'" for id_, status in sorted(statuses.items())) + "}",
    }
    text = files("expectations").joinpath("catalogue.toml").read_text("utf-8")
    found = [
        _check(f"{dataset}_{name}" if dataset else name, table, told, names | {"dataset": dataset})
        for name, table in tomllib.loads(text).items()
        for dataset in table.pop("datasets", [""])
    ]
    return tuple(sorted(found, key=lambda check: SUITES.index(check.suite)))


def _check(name: str, table: Mapping[str, Any], told: Mapping[str, Any], names: Mapping[str, Any]) -> Check:
    fields = {"suite": name.partition("_")[0]} | dict(table)
    for text in ("meaning", "action", "wrong"):
        fields[text] = fields.get(text, "").format_map(names)
    for bound in ("least", "most"):
        if bound in fields:
            fields[bound] = told.get(fields[bound], fields[bound])
    if "allowed" in fields:
        fields["allowed"] = tuple(outcome.value for outcome in Outcome)
    return Check(name, **fields)


def _quoted(outcomes: Iterable[Outcome]) -> str:
    return ", ".join(f"'{outcome.value}'" for outcome in sorted(outcomes))
