"""Alerts as the receivers read them."""

from typing import Any

from warehouse_records import alert

from core.alerts import Alert, decode_alert


def decoded_alert(phase: str = "firing", **fields: Any) -> Alert:
    """Return a state of the alert of device 1, channel 2, which fires at noon."""
    return decode_alert(alert(0, phase, **fields).value or b"")
