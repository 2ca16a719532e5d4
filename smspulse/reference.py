"""Generator of the reference pages in `docs/`: `python -m smspulse.reference` writes them."""

import importlib
import pkgutil
import re
from collections.abc import Iterable, Iterator
from inspect import cleandoc
from pathlib import Path
from typing import Final, NamedTuple

import click
from prometheus_client.metrics import MetricWrapperBase
from pydantic_settings import BaseSettings

from core import records
from core.metrics import GaugeSnapshot
from core.topics import TOPICS
from ingest import metrics as ingest
from smspulse.cli.main import cli
from smspulse.dashboard import metrics as page
from streams import lifecycle
from streams import metrics as stream
from warehouse import metrics as lander

REFERENCE_FOLDER: Final = Path(__file__).parents[1] / "docs" / "reference"
_PACKAGES: Final = ("core", "gateway", "ingest", "streams", "warehouse", "expectations", "smspulse")
# Settings that a command takes from an option.
_COMMAND_OPTIONS: Final = {"data", "state"}


class MetricFamily(NamedTuple):
    """A metric: its name without the suffixes of its type, its type, labels and description."""

    name: str
    type: str
    labels: tuple[str, ...]
    documentation: str


def list_metric_families() -> list[MetricFamily]:
    """Return every metric of a process, without Python's own."""
    metrics = [metric for module in (ingest, stream, lander, page) for metric in vars(module).values()]
    found = [
        MetricFamily(description.name, description.type, tuple(metric._labelnames), description.documentation)
        for metric in metrics
        if isinstance(metric, MetricWrapperBase)
        for description in list(metric.describe())[:1]
    ]
    return found + [
        MetricFamily(family.name, "gauge", family.labels, family.documentation)
        for metric in metrics
        if isinstance(metric, GaugeSnapshot)
        for family in metric.families
    ]


def find_settings_classes() -> list[type[BaseSettings]]:
    """Return every class of settings in every module."""
    found: list[type[BaseSettings]] = []
    for package in _PACKAGES:
        for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
            if module.name != "smspulse.__main__":
                names = vars(importlib.import_module(module.name)).values()
                found += [each for each in names if isinstance(each, type) and each.__module__ == module.name]
    return [each for each in found if issubclass(each, BaseSettings)]


def _format_settings() -> Iterator[str]:
    yield "Environment variables, read when a process starts.\n"
    for each in find_settings_classes():
        prefix = each.model_config.get("env_prefix", "")
        yield f"\n## {prefix or each.__name__}\n\n{cleandoc(each.__doc__ or '').splitlines()[0]}\n"
        yield "| variable | default | |\n|---|---|---|"
        for name, field in each.model_fields.items():
            variable = field.validation_alias or f"{prefix}{name}".upper()
            if name not in _COMMAND_OPTIONS:
                default = "" if field.is_required() else f"`{field.get_default(call_default_factory=True)}`"
                description = " ".join((field.description or "").split())
                yield f"| `{variable}` | {default if default != '``' else ''} | {description} |"
    yield "\n## Of every process\n\n| variable | default | |\n|---|---|---|"
    yield "| `SMSPULSE_DATA` | `./.smspulse` | The data folder, as `--data`. |"
    yield "| `SMSPULSE_BROKER` | `auto` | The broker, as `--broker`. |"
    yield "| `SMSPULSE_METRICS_HOST` | `127.0.0.1` | Where stream, lander and `alerts send` answer `/metrics`. |"
    port = "Its port; 0: any free one. Under `smspulse up` the lander's; alerts and workers have the next ones."
    yield f"| `SMSPULSE_METRICS_PORT` | `0` | {port} |"
    yield "| `SMSPULSE_SIMULATE_URL` | | The webhook of `smspulse simulate`, as `--url`, which `ps` shows. |"


def _walk_commands(group: click.Group, above: str) -> Iterator[tuple[str, click.Command]]:
    for name in sorted(group.commands):
        command = group.commands[name]
        yield f"{above} {name}", command
        if isinstance(command, click.Group):
            yield from _walk_commands(command, f"{above} {name}")


def _format_commands() -> Iterator[str]:
    yield "Exit codes of every command: 0 done, 1 a check found a problem, 2 an error.\n"
    for name, command in _walk_commands(cli, "smspulse"):
        context = click.Context(command, info_name=name, max_content_width=100, terminal_width=100)
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
    yield "Metrics of ingest, stream worker, lander and page, without those of the process itself (`process_…`).\n"
    yield "| metric | type | labels | |\n|---|---|---|---|"
    for family in sorted(list_metric_families(), key=lambda each: each.name):
        name = family.name + ("_total" if family.type == "counter" else "")
        yield f"| `{name}` | {family.type} | {', '.join(family.labels)} | {family.documentation} |"


def _format_lifecycle() -> Iterator[str]:
    head, facts, _, rules = cleandoc(lifecycle.__doc__ or "").split("\n\n", 3)
    yield f"{head}\n\n{facts}"
    for name, text in re.findall(r"^(\S.*)\n((?:    .*\n?)+)", rules, re.MULTILINE):
        yield f"\n## {name}\n\n{cleandoc(text)}"


def generate_pages() -> dict[str, str]:
    """Return every generated page by file name."""
    texts: dict[str, tuple[str, Iterable[str]]] = {
        "settings.md": ("Settings", _format_settings()),
        "cli.md": ("Command line", _format_commands()),
        "topics.md": ("Topics", _format_topics()),
        "metrics.md": ("Metrics", _format_metrics()),
        "../explanation/lifecycle.md": ("The lifecycle of a message", _format_lifecycle()),
    }
    note = "Generated by `python -m smspulse.reference`."
    return {name: f"# {title}\n\n{note}\n\n" + "\n".join(text).strip() + "\n" for name, (title, text) in texts.items()}


if __name__ == "__main__":
    REFERENCE_FOLDER.mkdir(exist_ok=True)
    for _name, _text in generate_pages().items():
        (REFERENCE_FOLDER / _name).write_text(_text, "utf-8")
