"""Runs commands to which file modes apply, also if root runs the tests."""

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

_PR_CAPBSET_DROP: Final = 24  # linux/prctl.h
_CAP_DAC_OVERRIDE: Final = 1  # linux/capability.h: root may ignore file modes
_CAP_DAC_READ_SEARCH: Final = 2
_libc = ctypes.CDLL(None)


def drop_file_capabilities() -> None:
    """Drop root's capability to ignore file modes, from the next `exec` on."""
    for capability in (_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH):
        _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)


def run_unprivileged(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments as a user to whom file modes apply; return its output."""
    options.setdefault("timeout", 120)
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=drop_file_capabilities,
        **options,
    )


@contextmanager
def as_seen_by_group(folder: Path) -> Iterator[None]:
    """Reduce the owner's rights on everything in a folder to those of the group, for a context."""
    paths = [Path(root, name) for root, _, files in os.walk(folder, topdown=False) for name in (*files, ".")]
    modes = {path: path.stat().st_mode for path in paths}
    for path, mode in modes.items():
        path.chmod((mode >> 3 & 0o7) * 0o111)
    yield
    for path, mode in reversed(modes.items()):
        path.chmod(mode)
