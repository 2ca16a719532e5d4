"""The command line. Heavy imports happen inside the commands, so that `smspulse --help` answers at once.

Exit codes: 0 done, 1 a check found a problem, 2 an error.
"""

import gc
import logging
import os
import sys
from typing import Final, NoReturn

import click

from core.errors import SmspulseError
from smspulse.cli import alerts, check, pipeline, simulate, source, status, warehouse
from smspulse.processes import log_setup
from smspulse.processes.children import NEVER_READY, READY_FD_VARIABLE, ensure_home, report_readiness
from smspulse.processes.output import make_tolerant
from smspulse.processes.terminal import escape_controls

# Exit code: an error.
_EXIT_FAILED = 2
_GC_THRESHOLD: Final = 100_000

_COMMANDS: Final = (
    pipeline.up_command,
    pipeline.broker_command,
    pipeline.ingest_command,
    pipeline.stream_command,
    pipeline.land_command,
    warehouse.rebuild_command,
    warehouse.compact_command,
    warehouse.retain_command,
    warehouse.erase_command,
    warehouse.sql_command,
    simulate.simulate_command,
    source.source_group,
    status.status_command,
    status.message_command,
    status.page_command,
    alerts.alerts_group,
    check.check_command,
    check.doctor_command,
)


@click.group(
    commands=_COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100, "show_default": True},
    invoke_without_command=True,
    epilog="Exit codes: 0 done, 1 a check found a problem, 2 an error. Completion: eval "
    '"$(_SMSPULSE_COMPLETE=bash_source smspulse)", or zsh_source, fish_source.',
)
@click.option("-v", "--verbose", is_flag=True, help="Log everything.")
@click.version_option(package_name="smspulse")
@click.pass_context
def cli(context: click.Context, *, verbose: bool) -> None:
    """Delivery analytics for SMS gateways: webhooks in, SQL, notebooks and alerts out.

    Begin with `smspulse up --demo`, or with `smspulse source add NAME` and `smspulse up`.
    """
    log_setup.set_up_logging(verbose=verbose, supervised=READY_FD_VARIABLE in os.environ)
    if context.invoked_subcommand is None:
        from smspulse.cli.hints import hints_command

        with hints_command.make_context(None, [], parent=context) as hints:
            hints_command.invoke(hints)


def main() -> None:
    """Run the command line. An error with a fix is one line on standard error, with exit code 2."""
    # The libraries of a command have some hundred thousand objects, which stay. Python searches them for garbage after
    # every 700 new objects. With a higher threshold, a command needs up to a tenth less processor time. Long-running
    # processes set their own threshold.
    gc.set_threshold(_GC_THRESHOLD)
    ensure_home()
    supervised = READY_FD_VARIABLE in os.environ
    try:
        cli(standalone_mode=False)
    except click.Abort:
        # The exit code of shells for Ctrl-C.
        sys.exit(130)
    except Exception as error:
        described = _describe_error(error)
        if described is None:
            raise
        problem, is_permanent = described
        if supervised:
            logging.getLogger(__name__).error("%s", problem)
            if is_permanent:
                report_readiness(NEVER_READY)
        elif isinstance(error, click.ClickException):
            error.message = escape_controls(error.message)
            error.show()
        else:
            make_tolerant(sys.stderr).write(f"smspulse: {escape_controls(problem)}\n")
        _exit_process(_EXIT_FAILED)


def _describe_error(error: Exception) -> tuple[str, bool] | None:
    """Return an error as one line, and whether a restart would fail too; None for an error without a fix."""
    from pydantic import ValidationError

    if isinstance(error, click.ClickException):
        return escape_controls(error.format_message()), True
    if isinstance(error, ValidationError):
        faults = [f"{'.'.join(str(part) for part in each['loc'])}: {each['msg']}" for each in error.errors()]
        what = f"{error.title}, {'; '.join(faults)}"
        return f"{what}: correct the option, or the SMSPULSE_ variable, of that name", True
    if isinstance(error, SmspulseError):
        return str(error), error.is_permanent
    if isinstance(error, OSError):
        return str(error), False
    # DuckDB is heavy. Where a command did not import it, no error is one of DuckDB's.
    duckdb = sys.modules.get("duckdb")
    if duckdb is None or not isinstance(error, duckdb.Error):
        return None
    detail = str(error).partition("\n")[0]
    return f"the warehouse cannot be read: {detail}; `smspulse check` and `smspulse doctor` look for the cause", False


def _exit_process(code: int) -> NoReturn:
    """Exit with a code, even if the buffer of standard output cannot be written."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        # Python would try again at exit, and fail with another code.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)
