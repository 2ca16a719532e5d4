"""The checks, as `catalogue.toml` has them, and what it refers to."""

import tomllib
from collections.abc import Iterable, Mapping
from importlib.resources import files
from typing import Any, Final

from expectations.expectation import Check
from expectations.settings import CheckSettings
from gateway.statuses import ENDS, FAILURES, STATUSES, Outcome, Status

SUITES: Final = ("raw", "messages", "deadletters", "devices", "delivery", "reconciliation")
"""In the order in which data walks."""

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
