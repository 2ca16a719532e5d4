"""The checks of the files in `checks/`, with the names that they refer to."""

import tomllib
from collections.abc import Iterable, Mapping
from importlib.resources import files
from typing import Any, Final

from expectations import SUITE_NAMES
from expectations.quality_check import SEVERITIES, QualityCheck
from expectations.settings import CheckSettings
from gateway.statuses import ENDS, FAILURES, STATUSES, Outcome, StatusCode

# The rows that `QualityCheck.wrong` tests, and the SQL of their names, by suite.
RELATION_BY_DATASET: Final = {
    "raw": ("raw_files", "topic || ':' || \"partition\" || ':' || \"offset\""),
    "messages": ("messages", "message_key"),
    "deadletters": ("deadletter_files", "topic || ':' || \"partition\" || ':' || \"offset\""),
}

# The name of a setting ends with its unit.
_UNIT_BY_SUFFIX: Final = {"share": "share", "s": "seconds"}


def build_checks(settings: CheckSettings, statuses: Mapping[int, StatusCode] = STATUSES) -> tuple[QualityCheck, ...]:
    """Return every check, suite by suite.

    Args:
        settings: The thresholds.
        statuses: Meaning of each status id in the stream.
    """
    names = settings.model_dump() | {
        "outcomes": _quoted_outcomes(Outcome),
        "ends": _quoted_outcomes(ENDS),
        "failures": _quoted_outcomes(FAILURES),
        "meanings": "{" + ", ".join(f"{id_}: '{status.outcome}'" for id_, status in sorted(statuses.items())) + "}",
    }
    shared = _read_tables("files")
    checks: list[QualityCheck] = []
    for suite in SUITE_NAMES:
        tables = {f"{suite}_{name}": table for name, table in shared.items()} if suite in RELATION_BY_DATASET else {}
        for name, table in (tables | _read_tables(suite)).items():
            checks.append(_build_check(name, suite, table, names | {"dataset": suite}))
    return tuple(checks)


def _read_tables(file: str) -> dict[str, Any]:
    return tomllib.loads(read_resource("checks", f"{file}.toml"))


def _build_check(name: str, suite: str, table: Mapping[str, Any], names: Mapping[str, Any]) -> QualityCheck:
    fields = {"unit": _UNIT_BY_SUFFIX.get(str(table.get("most")).rpartition("_")[2], "count")} | dict(table)
    # The meaning has the name of the severity.
    severity = next(each for each in SEVERITIES if each in table)
    fields["meaning"] = fields.pop(severity)
    for text in {"meaning", "action", "wrong"} & fields.keys():
        fields[text] = fields[text].format_map(names)
    for bound in {"least", "most"} & fields.keys():
        fields[bound] = names.get(fields[bound], fields[bound])
    if "allowed" in fields:
        fields["allowed"] = tuple(outcome.value for outcome in Outcome)
    return QualityCheck(name, suite, severity=severity, **fields)


def _quoted_outcomes(outcomes: Iterable[Outcome]) -> str:
    return ", ".join(f"'{outcome.value}'" for outcome in sorted(outcomes))


def read_resource(folder: str, name: str) -> str:
    """Return the text of a file of this package."""
    return files("expectations").joinpath(folder, name).read_text("utf-8")
