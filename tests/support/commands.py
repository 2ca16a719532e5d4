"""Commands of `smspulse` in the process of a test, which need not import all libraries again."""

import logging
import os
from collections.abc import Mapping

from click.testing import CliRunner, Result

from smspulse.cli.main import cli


def invoke(*arguments: str, environment: Mapping[str, str | None] | None = None) -> Result:
    """Run a command, and leave the umask and the logging of the test as they were. Its errors are raised.

    Args:
        arguments: Of `smspulse`.
        environment: Added to the test's; None removes a variable.
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
