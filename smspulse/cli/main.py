"""The command line. Heavy imports happen inside the commands, so that `smspulse --help` answers at once.

Exit codes: 0 done, 1 the thing checked is not so, 2 it could not be done.
"""

import gc
import logging
import os
import sys
from pathlib import Path
from typing import Final, NoReturn

import click

from core.errors import SmspulseError
from smspulse.cli import alerts, check, simulate, source, warehouse
from smspulse.cli import pipeline as run
from smspulse.cli import status as look
from smspulse.processes import log_setup as logs
from smspulse.processes.children import ensure_home
from smspulse.processes.output import tolerant
from smspulse.processes.readiness import VARIABLE, report_permanent_failure
from smspulse.processes.terminal import echo, visible

_NOT_DONE = 2
_NEW_OBJECTS: Final = 100_000


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    invoke_without_command=True,
    epilog="Exit codes: 0 done, 1 the thing checked is not so, 2 it could not be done. Completion: eval "
    '"$(_SMSPULSE_COMPLETE=bash_source smspulse)", or zsh_source, fish_source.',
)
@click.option("-v", "--verbose", is_flag=True, help="Log everything.")
@click.version_option(package_name="smspulse")
@click.pass_context
def cli(context: click.Context, *, verbose: bool) -> None:
    """Delivery analytics for SMS gateways: webhooks in, SQL, notebooks and alerts out.

    Begin with `smspulse up --demo`, or with `smspulse source add NAME` and `smspulse up`.
    """
    logs.set_up(verbose=verbose, supervised=VARIABLE in os.environ)
    if context.invoked_subcommand is None:
        from smspulse.cli.hints import next_step

        echo(next_step(Path(os.environ.get("SMSPULSE_DATA", "./.smspulse"))))


for _command in (
    run.up,
    run.broker,
    run.ingest,
    run.stream,
    run.land,
    warehouse.rebuild,
    warehouse.compact,
    warehouse.retain,
    warehouse.erase,
    warehouse.sql,
    simulate.simulate,
    source.source,
    look.status,
    look.message,
    look.page,
    alerts.alerts,
    check.check,
    check.doctor,
):
    cli.add_command(_command)


def main() -> None:
    """Run the command line; errors that have a mend are one line on standard error, with exit code 2."""
    # The libraries of a command are some hundred thousand objects that stay. Python looks for garbage among them after
    # every 700 new ones; less often, a command takes up to a tenth less of the processor. Long processes set their own.
    gc.set_threshold(_NEW_OBJECTS)
    from pydantic import ValidationError

    ensure_home()
    supervised = VARIABLE in os.environ
    is_permanent = True
    try:
        cli(standalone_mode=False)
    except click.ClickException as error:
        error.message = visible(error.message)
        if not supervised:
            error.show()
            sys.exit(_NOT_DONE)
        problem = error.format_message()
    except click.Abort:
        sys.exit(130)
    except ValidationError as error:
        faults = [f"{'.'.join(str(part) for part in each['loc'])}: {each['msg']}" for each in error.errors()]
        problem = f"{error.title}, {'; '.join(faults)}: correct the option, or the SMSPULSE_ variable, of that name"
    except SmspulseError as error:
        problem, is_permanent = str(error), error.is_permanent
    except OSError as error:
        problem, is_permanent = str(error), False
    except Exception as error:
        duckdb = sys.modules.get("duckdb")  # heavy: of those that did not import it, none is an error of it
        if duckdb is None or not isinstance(error, duckdb.Error):
            raise
        is_permanent = False
        detail = str(error).partition("\n")[0]
        problem = f"the warehouse cannot be read: {detail}; `smspulse check` and `smspulse doctor` look for the cause"
    else:
        return
    if supervised:
        logging.getLogger(__name__).error("%s", problem)
        if is_permanent:
            report_permanent_failure()
    else:
        tolerant(sys.stderr).write(f"smspulse: {visible(problem)}\n")
    _end(_NOT_DONE)


def _end(code: int) -> NoReturn:
    """End with an exit code, though what is buffered for standard output cannot be written."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        # Python would try again at its end, and fail with another code.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)
