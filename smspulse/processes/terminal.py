r"""Terminal output. Text of clients is never markup and never a control sequence.

Every command writes through `echo` or `make_console`; a test finds those that do not. A control character is shown as
its escape, such as `\x1b`. Colours are styles, never part of the text.
"""

import re
from collections.abc import Iterable
from typing import Any, Final

import click
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

# C0 and C1 controls, DEL, separators of lines and paragraphs, characters that change the direction of a line, and
# halves of surrogate pairs, which no encoding can write. Tab and newline are layout and are kept.
_CONTROLS: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_CONTROLS_AND_LINES: Final = re.compile(f"[\n]|{_CONTROLS.pattern}")


def escape_controls(text: str) -> str:
    """Return a text with its control characters as escapes; tabs and newlines are kept."""
    return _CONTROLS.sub(_escape_character, text)


def escape_to_line(text: str) -> str:
    """Return a text as one line, with its control characters and newlines as escapes."""
    return _CONTROLS_AND_LINES.sub(_escape_character, text)


def _escape_character(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


def echo(text: str, *, err: bool = False) -> None:
    """Write a text and a newline to standard output or standard error."""
    click.echo(escape_controls(text), err=err)


class _PlainConsole(Console):
    """A console that takes every text literally."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a text as it will be shown, before widths are measured."""
        return super().render_str(escape_controls(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the segments without control characters of the renderable."""
        for segment in super().render(renderable, options):
            # Control segments are from rich itself, such as those of a live display.
            yield segment if segment.control else Segment(escape_controls(segment.text), segment.style)


def make_console(**options: Any) -> Console:
    """Return a console that shows text as it is: no markup, no emoji codes, no highlighting, no control characters.

    Args:
        options: Options of `rich.console.Console`.
    """
    return _PlainConsole(markup=False, emoji=False, highlight=False, **options)


def format_duration(seconds: float) -> str:
    """Return seconds for people: `4.2 s`, `3 min`, `5.5 h`, `2 days`."""
    for limit, unit, text in ((120, 1, "{:.1f} s"), (7200, 60, "{:.0f} min"), (172_800, 3600, "{:.1f} h")):
        if seconds < limit:
            return text.format(seconds / unit)
    return f"{seconds / 86_400:.0f} days"
