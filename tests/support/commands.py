"""Commands of `smspulse` in the process of a test, without another import of all libraries."""

import logging
import os
from collections.abc import Mapping

from click.testing import CliRunner, Result

from smspulse.cli.main import cli


def invoke(*arguments: str, environment: Mapping[str, str | None] | None = None) -> Result:
    """Run a command, and restore the umask and the logging afterwards. Errors are raised.

    Args:
        arguments: Arguments of `smspulse`.
        environment: Additional variables; None removes a variable.
    """
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    umask = os.umask(0o077)
    os.umask(umask)
    try:
        return CliRunner().invoke(cli, arguments, env=environment, catch_exceptions=False)
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        os.umask(umask)
