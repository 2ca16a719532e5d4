"""Gateway accounts: source add, rotate, list."""

from pathlib import Path

import click

from smspulse.cli.options import Url, data_option, writable
from smspulse.processes.terminal import echo


@click.group()
def source() -> None:
    """Gateway accounts that may send webhooks.

    \b
    smspulse source add mygateway --url https://sms.example.org
    smspulse source list
    """


@source.command("add")
@data_option
@click.argument("name")
@click.option(
    "--url", type=Url(), default="http://127.0.0.1:8080", show_default=True, help="Where the gateway reaches ingest."
)
def source_add(data: Path, name: str, url: str) -> None:
    """Make a token for a source and print what to paste into the gateway.

    \b
    smspulse source add mygateway --url https://sms.example.org
    """
    from ingest.sources import add_source

    writable(data)
    _show_webhook(url, name, add_source(data, name))


@source.command("rotate")
@data_option
@click.argument("name")
@click.option(
    "--url", type=Url(), default="http://127.0.0.1:8080", show_default=True, help="Where the gateway reaches ingest."
)
@click.option("--finish", is_flag=True, help="Make no token: end all but the newest.")
def source_rotate(data: Path, name: str, url: str, *, finish: bool) -> None:
    """Replace the token of a source without a gap.

    \b
    smspulse source rotate mygateway              makes a new one; both are valid
    smspulse source rotate mygateway --finish     once the gateway has the new one: ends the others
    """
    from ingest.sources import retire_tokens, rotate_source

    if finish:
        echo(f"{retire_tokens(data, name)} tokens of {name} are no longer valid, the newest is")
        return
    _show_webhook(url, name, rotate_source(data, name))
    echo(f"\nThe old token stays valid until: smspulse source rotate {name} --finish")


def _show_webhook(url: str, name: str, token: str) -> None:
    from ingest.sources import webhook_url

    webhook = webhook_url(url, name, token)
    echo(
        f"In smsgateway24, paste this one URL into both places. It holds the token, which is shown only now:\n\n"
        f"  device settings, delivery status URL         {webhook}\n"
        f"  each channel slot, incoming message URL      {webhook}"
    )


@source.command("list")
@data_option
def source_list(data: Path) -> None:
    """List the sources and how many tokens each has.

    \b
    smspulse source list
    """
    from ingest.sources import list_sources

    sources = list_sources(data)
    if not sources:
        echo("there is none yet: smspulse source add NAME", err=True)
    for name, tokens in sources.items():
        echo(f"{name}\t{tokens} token{'s' if tokens != 1 else ''}")
