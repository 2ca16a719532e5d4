"""Notebooks as Markdown with pictures, for reading without marimo: `python -m notebooks.report FOLDER [NAME …]`.

It reads the data folder of SMSPULSE_DATA, by default `./.smspulse`.
"""

import importlib
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pandas as pd

from notebooks.common import readable_table

NOTEBOOK_NAMES: Final = (
    *("device_health", "blame", "delivery_overview", "latency", "alert_review", "data_quality", "first_steps"),
)
_MAX_ROWS: Final = 30


def render_notebook(name: str) -> dict[str, str]:
    """Execute a notebook; return the texts of its files: the Markdown and the pictures as SVG."""
    _, found = importlib.import_module(f"notebooks.{name}").app.run()
    note = f"The output of `marimo run notebooks/{name}.py`, without its controls."
    parts, files = [f"# {found['question']}", note], {}
    for piece in found.get("pieces", [found["problem"]]):
        if isinstance(piece, str):
            parts.append(piece.strip())
        elif isinstance(piece, pd.DataFrame):
            parts.append(_markdown_table(piece))
        else:
            picture = f"{name}{len(files) or ''}.svg"
            files[picture] = _chart_svg(piece)
            parts.append(f"![{found['question']}]({picture})")
    return {f"{name}.md": "\n\n".join(parts) + "\n", **files}


def _chart_svg(chart: object) -> str:
    text = io.StringIO()
    chart.properties(background="white").configure_view(stroke=None).save(text, format="svg")  # type: ignore[attr-defined]
    return text.getvalue()


def _markdown_table(frame: pd.DataFrame) -> str:
    lines = [list(frame), ["---"] * len(frame.columns)]
    lines += readable_table(frame.head(_MAX_ROWS)).to_numpy().tolist()
    rows = [
        "| " + " | ".join(str(cell).replace("|", "\\|").replace("_", "\\_") for cell in line) + " |" for line in lines
    ]
    rest = len(frame) - _MAX_ROWS
    return "\n".join([*rows, *([f"\nAnd {rest:,} more."] if rest > 0 else [])]) if len(frame) else "None."


def write_notebooks(folder: Path, names: Sequence[str] = NOTEBOOK_NAMES) -> None:
    """Write notebooks into a folder. Creates the folder if it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        for file, text in render_notebook(name).items():
            (folder / file).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write_notebooks(Path(sys.argv[1]), sys.argv[2:] or NOTEBOOK_NAMES)
