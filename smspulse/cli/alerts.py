"""The commands `smspulse alerts`: send, list, explain, silence, test and backtest."""

import asyncio
import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import click

from smspulse.cli import options
from smspulse.processes.terminal import echo, make_console

_UNIT_SECONDS: Final = {"m": 60, "h": 3_600, "d": 86_400}


@click.group()
def alerts_group() -> None:
    """Alerts: rising failures, silent devices, stuck messages, slow networks, and the pipeline itself.

    \b
    smspulse alerts list
    smspulse alerts explain failure_ratio:mygateway:10482:1
    """


@alerts_group.command()
@options.data_option
@options.broker_option
def send_command(data: Path, broker: str) -> None:
    """Evaluate the alert rules, and send alerts to each receiver that is set, until Ctrl-C.

    Receivers: SMSPULSE_ALERTS_ALERTMANAGER, SMSPULSE_ALERTS_WEBHOOK, SMSPULSE_ALERTS_APPRISE. `smspulse up` runs it.

    \b
    smspulse alerts send --broker kafka1:9092
    """
    from smspulse.alerting.dispatcher import run_dispatcher
    from smspulse.alerting.metrics import REGISTRY
    from smspulse.alerting.receivers import check_receivers
    from smspulse.alerting.settings import read_alert_settings
    from smspulse.broker.topic_admin import connect_with_topics
    from smspulse.processes.children import report_readiness
    from smspulse.processes.metrics_endpoint import serve_metrics

    settings = read_alert_settings()
    check_receivers(settings)
    options.prepare_process(data)
    kafka = connect_with_topics(data, broker)
    serve_metrics(data, "alerts", REGISTRY)
    run_dispatcher(settings, kafka, data, report_readiness)


@alerts_group.command("list")
@options.data_option
@click.option("--all", "everything", is_flag=True, help="Include resolved alerts.")
def list_alerts_command(data: Path, *, everything: bool) -> None:
    """List the alerts that fire.

    \b
    smspulse alerts list --all
    """
    from smspulse.alerting.rendering import print_alerts
    from smspulse.alerting.settings import read_alert_settings

    wait_s = read_alert_settings().cause_wait_s
    print_alerts(data, make_console(soft_wrap=True), everything=everything, cause_wait_s=wait_s)


@alerts_group.command()
@options.data_option
@click.argument("alert_id")
def explain_command(data: Path, alert_id: str) -> None:
    """Show the evidence of the latest alert of an id.

    \b
    smspulse alerts explain failure_ratio:mygateway:10482:1
    """
    from smspulse.alerting.rendering import print_alert_evidence

    print_alert_evidence(data, make_console(soft_wrap=True), alert_id)


def _parse_duration(text: str) -> int:
    """Parse `30m`, `2h` or `7d` to seconds."""
    found = re.fullmatch(r"([1-9]\d*)([mhd])", text)
    if found is None:
        msg = f"{text!r} is no length: write 30m, 2h or 7d"
        raise ValueError(msg)
    return int(found[1]) * _UNIT_SECONDS[found[2]]


_LENGTH: Final = options.ParsedType("LENGTH", _parse_duration)


@alerts_group.command()
@options.data_option
@click.argument("alert_id", required=False)
@click.option("--for", "seconds", type=_LENGTH, help="How long, such as 30m, 2h, 7d.")
@click.option("--lift", is_flag=True, help="End the silence of the alert.")
def silence_command(data: Path, alert_id: str | None, seconds: int | None, *, lift: bool) -> None:
    """Mute notifications for an alert. The alert stays listed. Without an id: list the silences.

    \b
    smspulse alerts silence failure_ratio:mygateway:10482:1 --for 2h
    smspulse alerts silence failure_ratio:mygateway:10482:1 --lift
    """
    from smspulse.alerting.rendering import print_silences
    from smspulse.alerting.silences import SilenceStore

    if (seconds is not None) + lift != (alert_id is not None):
        msg = "name an alert with --for LENGTH or --lift, or give nothing at all to list the silences"
        raise click.UsageError(msg)
    if alert_id is not None:
        if not lift:
            options.require_data_folder(data, "silences.json")
        SilenceStore(data).set_silence(alert_id, seconds or 0)
    print_silences(data, make_console(soft_wrap=True))


@alerts_group.command()
def test_command() -> None:
    """Send a test alert to each receiver, and then its resolution. Exits with 1 if a receiver does not accept it.

    \b
    smspulse alerts test
    """
    from smspulse.alerting.receivers import try_receivers
    from smspulse.alerting.settings import read_alert_settings

    errors = asyncio.run(try_receivers(read_alert_settings(), time.time()))
    for line in errors:
        echo(line, err=True)
    if errors:
        raise SystemExit(options.EXIT_CHECK_FAILED)
    echo("every receiver accepted an alert of the source `test`, and its resolution")


@alerts_group.command()
@options.data_option
@click.option("--since", type=click.DateTime(["%Y-%m-%d"]), help="Only messages that ended from this day on, UTC.")
@click.option("--budget", type=options.POSITIVE, default=30.0, help="Days between two false alarms, on average.")
@click.option("--learn", type=click.IntRange(0), default=200, help="Messages that a new unit learns from.")
@click.option("--relearn-after", default="500,7d", help="When a rise is the new normal, or `never`.")
@click.option("--threshold", type=options.SHARE, default=0.2, help="Failure ratio of the simple rule for comparison.")
@click.option("--picture", type=options.OUTPUT_FILE, help="Also draw it: .svg, .png or .html.")
def backtest_command(
    data: Path,
    since: datetime | None,
    budget: float,
    learn: int,
    relearn_after: str,
    threshold: float,
    picture: Path | None,
) -> None:
    """Run the detectors over past messages, and list the alerts, next to a threshold on the ratio of fifteen minutes.

    Runs failure_ratio and not_permitted, and names the other kinds. Each channel, device and source begins to learn
    with its first message.

    \b
    smspulse alerts backtest --since 2026-11-01 --budget 7 --picture alerts.svg
    """
    from smspulse.alerting.backtest import read_message_ends, run_backtest
    from smspulse.alerting.rendering import draw_backtest, print_backtest
    from smspulse.processes.data_folder import use_original_umask
    from streams.failure_baseline import DetectorPolicy
    from streams.settings import parse_relearn_after

    try:
        policy = DetectorPolicy(budget, learn, *parse_relearn_after(relearn_after))
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    found = run_backtest(read_message_ends(data, since.replace(tzinfo=UTC) if since else None), policy, threshold)
    print_backtest(found, make_console(soft_wrap=True))
    if picture:
        with use_original_umask(picture, data):
            draw_backtest(found, picture)
