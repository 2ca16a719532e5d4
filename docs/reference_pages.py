"""Generator of the reference pages: `python docs/reference_pages.py` writes them. Not a part of the site."""

import importlib
import pkgutil
import re
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, NamedTuple

import click
from prometheus_client.metrics import MetricWrapperBase
from pydantic_settings import BaseSettings

from core import records
from core.metrics import GaugeSnapshot
from core.topics import TOPICS
from gateway.statuses import STATUSES
from ingest import metrics as ingest
from smspulse.alerting import metrics as alerting
from smspulse.cli.main import cli
from smspulse.dashboard import metrics as page
from streams import lifecycle
from streams import metrics as stream
from warehouse import metrics as lander
from warehouse.catalog import publish_views
from warehouse.reader import open_warehouse
from warehouse.views import MACROS, VIEWS

REFERENCE_FOLDER: Final = Path(__file__).with_name("reference")
_PACKAGES: Final = ("core", "gateway", "ingest", "streams", "warehouse", "expectations", "smspulse")
_COLUMNS_SQL: Final = """
    SELECT
        column_name,
        CASE
            WHEN data_type LIKE 'STRUCT(status_id%' THEN 'list of observations'
            WHEN data_type LIKE 'STRUCT%' THEN 'list of structs'
            ELSE replace(data_type, 'TIMESTAMP WITH TIME ZONE', 'TIMESTAMPTZ')
        END,
        comment
    FROM duckdb_columns() WHERE table_name = ? ORDER BY column_index
"""
# Settings that a command takes from an option.
_COMMAND_OPTIONS: Final = {"data", "state"}
_TABLE_OF_VARIABLES: Final = "| variable | default | |\n|---|---|---|"


class MetricFamily(NamedTuple):
    """A metric: its name without the suffixes of its type, its type, labels and description."""

    name: str
    type: str
    labels: tuple[str, ...]
    documentation: str


def list_metric_families() -> list[MetricFamily]:
    """Return every metric of a process by name, without Python's own."""
    found = set()
    for collector in (value for module in (ingest, stream, lander, alerting, page) for value in vars(module).values()):
        if isinstance(collector, MetricWrapperBase | GaugeSnapshot):
            # A metric has its labels itself, a snapshot of gauges has them in its families.
            for family in collector.describe():
                labels = getattr(collector, "_labelnames", None) or getattr(family, "_labelnames", ())
                found.add(MetricFamily(family.name, family.type, tuple(labels), family.documentation))
    return sorted(found)


def find_settings_classes() -> list[type[BaseSettings]]:
    """Return every class of settings in every module."""
    found: list[type[BaseSettings]] = []
    for package in _PACKAGES:
        for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
            if module.name != "smspulse.__main__":
                names = vars(importlib.import_module(module.name)).values()
                found += [each for each in names if isinstance(each, type) and each.__module__ == module.name]
    return [each for each in found if issubclass(each, BaseSettings) and each.model_fields]


def _format_settings() -> Iterator[str]:
    yield "Environment variables, read when a process starts.\n"
    known = set()
    for each in find_settings_classes():
        prefix = each.model_config.get("env_prefix", "")
        yield f"\n## {prefix or each.__name__}\n\n{cleandoc(each.__doc__ or '').splitlines()[0]}\n"
        yield _TABLE_OF_VARIABLES
        for name, field in each.model_fields.items():
            variable = field.validation_alias or f"{prefix}{name}".upper()
            known.add(variable)
            if name not in _COMMAND_OPTIONS:
                default = "" if field.is_required() else f"`{field.get_default(call_default_factory=True)}`"
                description = " ".join((field.description or "").split())
                yield f"| `{variable}` | {default if default != '``' else ''} | {description} |"
    yield f"\n## Of options\n\nA command has the option.\n\n{_TABLE_OF_VARIABLES}"
    options = [option for _, command in _walk_commands(cli, "") for option in command.params]
    for option in {option.envvar: option for option in options if isinstance(option, click.Option)}.values():
        if option.envvar and option.envvar not in known:
            default = f"`{option.default}`" if isinstance(option.default, str) else ""
            text = (option.help or "").partition("  [")[0]
            yield f"| `{option.envvar}` | {default} | `{option.opts[0]}`: {text} |"


def _walk_commands(group: click.Group, above: str) -> Iterator[tuple[str, click.Command]]:
    for name in sorted(group.commands):
        command = group.commands[name]
        yield f"{above} {name}", command
        if isinstance(command, click.Group):
            yield from _walk_commands(command, f"{above} {name}")


def _format_commands() -> Iterator[str]:
    yield "Exit codes of every command: 0 done, 1 a check found a problem, 2 an error.\n"
    for name, command in _walk_commands(cli, "smspulse"):
        context = click.Context(command, info_name=name, max_content_width=100, terminal_width=100, show_default=True)
        yield f"\n## {name}\n\n```text\n{command.get_help(context)}\n```"


def _format_topics() -> Iterator[str]:
    yield "| topic | cleanup | kept for | partitions by |\n|---|---|---|---|"
    for topic in TOPICS:
        yield f"| `{topic.name}` | {topic.cleanup} | {topic.retention_days:g} days | {topic.partitioned_by} |"
    yield "\n## Keys, values and headers\n"
    for part in cleandoc(records.__doc__ or "").split("\n\n")[1:]:
        name, _, text = part.partition("\n")
        yield f"### {name}\n\n{cleandoc(text)}\n"


def _format_metrics() -> Iterator[str]:
    yield "Metrics of ingest, stream worker, lander, alerts and page, except those of the process (`process_…`).\n"
    yield "| metric | type | labels | |\n|---|---|---|---|"
    for name, type_, labels, documentation in list_metric_families():
        full_name = name + ("_total" if type_ == "counter" else "")
        yield f"| `{full_name}` | {type_} | {', '.join(labels)} | {documentation} |"


def _format_lifecycle() -> Iterator[str]:
    head, facts, _, rules = cleandoc(lifecycle.__doc__ or "").split("\n\n", 3)
    yield f"{head}\n\n{facts}"
    for name, text in re.findall(r"^(\S.*)\n((?:    .*\n?)+)", rules, re.MULTILINE):
        yield f"\n## {name}\n\n{cleandoc(text)}"


def _format_views() -> Iterator[str]:
    """Yield every view and table macro as DuckDB shows it: comments, and the type of each column."""
    with TemporaryDirectory() as folder:
        publish_views(Path(folder))
        with open_warehouse(folder) as connection:
            comments = {
                **dict(
                    connection.execute("SELECT view_name, comment FROM duckdb_views() WHERE NOT internal").fetchall()
                ),
                **dict(connection.execute("SELECT function_name, comment FROM duckdb_functions()").fetchall()),
            }
            yield (
                "Each reference to a view lists the files for itself. While webhooks land, two views in one statement "
                "can so be of different moments; see [several views in one statement]"
                "(reading.md#several-views-in-one-statement).\n"
            )
            for name in (*VIEWS, *MACROS):
                yield from (f"## {name}", comments[name].replace("\n", "\n\n") + "\n")
                rows = connection.execute(_COLUMNS_SQL, [name]).fetchall()
                if rows:
                    yield "| column | type | |\n|---|---|---|"
                    yield from (f"| `{column}` | {kind} | {meaning} |" for column, kind, meaning in rows)
                    yield ""


def _format_statuses() -> Iterator[str]:
    yield (
        "The statuses of outgoing messages. The view `statuses` has the same rows, and those to which "
        "`SMSPULSE_STREAM_STATUS_MEANINGS` gives a meaning. `after_fix`: send it again once the cause is fixed.\n"
    )
    yield "| status | outcome | class | likely cause | what to do | send it again |\n|---|---|---|---|---|---|"
    for status in STATUSES.values():
        cells = (f"{status.id}, {status.name}", status.outcome, status.failure_class or "", status.likely_cause)
        yield f"| {' | '.join(cells)} | {status.what_to_do} | {status.retry} |"


def generate_pages() -> dict[str, str]:
    """Return every generated page by file name."""
    pages = {
        "settings.md": ("Settings", _format_settings()),
        "cli.md": ("Command line", _format_commands()),
        "topics.md": ("Topics", _format_topics()),
        "metrics.md": ("Metrics", _format_metrics()),
        "statuses.md": ("Statuses", _format_statuses()),
        "../data-dictionary.md": ("Data dictionary", _format_views()),
        "../explanation/lifecycle.md": ("The lifecycle of a message", _format_lifecycle()),
    }
    note = "Generated by `python docs/reference_pages.py`."
    return {name: f"# {title}\n\n{note}\n\n" + "\n".join(text).strip() + "\n" for name, (title, text) in pages.items()}


if __name__ == "__main__":
    for _name, _text in generate_pages().items():
        (REFERENCE_FOLDER / _name).write_text(_text, "utf-8")
