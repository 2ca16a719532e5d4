"""The commands `source add`, `source rotate` and `source list`."""

from pathlib import Path

import click

from smspulse.cli.options import URL, data_option, ensure_data_folder
from smspulse.processes.terminal import echo

_url_option = click.option(
    "--url", type=URL, default="http://127.0.0.1:8080", help="URL with which the gateway reaches ingest."
)


@click.group()
def source_group() -> None:
    """Gateway accounts that may send webhooks.

    \b
    smspulse source add mygateway --url https://sms.example.org
    smspulse source list
    """


@source_group.command("add")
@data_option
@click.argument("name")
@_url_option
def add_source_command(data: Path, name: str, url: str) -> None:
    """Create a token for a source, and print the URL for the gateway.

    \b
    smspulse source add mygateway --url https://sms.example.org
    """
    from ingest.sources import add_source

    ensure_data_folder(data)
    _print_webhook_setup(url, name, add_source(data, name))


@source_group.command("rotate")
@data_option
@click.argument("name")
@_url_option
@click.option("--finish", is_flag=True, help="Create no token. End all but the newest.")
def rotate_source_command(data: Path, name: str, url: str, *, finish: bool) -> None:
    """Replace the token of a source without a gap.

    \b
    smspulse source rotate mygateway              creates a new token; both are valid
    smspulse source rotate mygateway --finish     ends the old tokens, once the gateway has the new one
    """
    from ingest.sources import retire_tokens, rotate_source

    if finish:
        echo(f"{retire_tokens(data, name)} tokens of {name} are no longer valid, the newest is")
        return
    _print_webhook_setup(url, name, rotate_source(data, name))
    echo(f"\nThe old token stays valid until: smspulse source rotate {name} --finish")


def _print_webhook_setup(url: str, name: str, token: str) -> None:
    from ingest.sources import webhook_url

    webhook = webhook_url(url, name, token)
    echo(
        f"In smsgateway24, paste this one URL into both places. It holds the token, which is shown only now:\n\n"
        f"  device settings, delivery status URL         {webhook}\n"
        f"  each channel slot, incoming message URL      {webhook}"
    )


@source_group.command("list")
@data_option
def list_sources_command(data: Path) -> None:
    """List the sources and how many tokens each has.

    \b
    smspulse source list
    """
    from ingest.sources import list_sources

    sources = list_sources(data)
    if not sources:
        echo("there is no source yet: smspulse source add NAME", err=True)
    for name, tokens in sources.items():
        echo(f"{name}\t{tokens} token{'s' if tokens != 1 else ''}")
