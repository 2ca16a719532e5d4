"""The Grafana dashboard, as JSON: `python monitoring/dashboard.py > monitoring/dashboard.json`."""

import json
from typing import Any, Final

_WIDTH: Final = 12
_HEIGHT: Final = 8
_COLOURS: Final = {
    "delivered": "#0072b2",
    "undelivered": "#d55e00",
    "not_sent": "#e69f00",
    "not_permitted": "#cc79a7",
    "expired": "#999999",
}
_FAILED: Final = (
    'sum(rate(smspulse_stream_messages_ended_total{outcome=~"undelivered|not_sent|not_permitted"}[$__rate_interval]))'
)
_ENDED: Final = "sum(rate(smspulse_stream_messages_ended_total[$__rate_interval]))"


def _percentile_query(step: str, share: float) -> str:
    return (
        f"histogram_quantile({share}, sum by (le) "
        f'(rate(smspulse_stream_latency_seconds_bucket{{step="{step}"}}[$__rate_interval])))'
    )


PANELS: Final[tuple[tuple[str, str, dict[str, str]], ...]] = (
    (
        "Messages ended per minute, by outcome",
        "short",
        {"{{outcome}}": "60 * sum by (outcome) (rate(smspulse_stream_messages_ended_total[$__rate_interval]))"},
    ),
    ("Failures / ended", "percentunit", {"failed": f"{_FAILED} / {_ENDED}"}),
    (
        "Sent to delivered",
        "s",
        {f"p{share * 100:g}": _percentile_query("network", share) for share in (0.5, 0.95, 0.99)},
    ),
    (
        "First report to end",
        "s",
        {f"p{share * 100:g}": _percentile_query("total", share) for share in (0.5, 0.95, 0.99)},
    ),
    (
        "Webhooks a second, by answer",
        "reqps",
        {"{{code}}": 'sum by (code) (rate(smspulse_ingest_requests_total{route="webhooks"}[$__rate_interval]))'},
    ),
    (
        "Time to answer a webhook",
        "s",
        {
            f"p{share * 100:g}": f"histogram_quantile({share}, sum by (le) "
            "(rate(smspulse_ingest_webhook_seconds_bucket[$__rate_interval])))"
            for share in (0.5, 0.99)
        },
    ),
    (
        "Records behind",
        "short",
        {
            "stream": 'sum(smspulse_stream_lag_records{topic="sms.raw"})',
            "lander": "sum(smspulse_lander_lag_records)",
        },
    ),
    (
        "Age of what was landed last",
        "s",
        {"{{topic}}": "time() - max by (topic) (smspulse_lander_newest_record_timestamp_seconds)"},
    ),
    (
        "Spool",
        "bytes",
        {"in the spool": "sum(smspulse_ingest_spool_bytes)", "limit": "sum(smspulse_ingest_spool_limit_bytes)"},
    ),
    (
        "Dead letters and lost records",
        "short",
        {
            "dead letters": "sum(increase(smspulse_stream_deadletters_total[$__rate_interval]))",
            "lost": "sum(increase(smspulse_lander_lost_records_total[$__rate_interval]))",
        },
    ),
    ("Alerts that fire, by kind", "short", {"{{kind}}": "sum by (kind) (smspulse_alerts_firing) > 0"}),
    (
        "Expectations that do not hold",
        "short",
        {"{{severity}} {{expectation}}": "max by (severity, expectation) (1 - smspulse_check_holds) > 0"},
    ),
)
"""Title, unit and queries by legend of each panel."""


def build_dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana imports it."""
    source = {"type": "prometheus", "uid": "${source}"}
    colours = [
        {
            "matcher": {"id": "byName", "options": name},
            "properties": [{"id": "color", "value": {"mode": "fixed", "fixedColor": colour}}],
        }
        for name, colour in _COLOURS.items()
    ]
    return {
        "title": "smspulse",
        "uid": "smspulse",
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": [{"name": "source", "type": "datasource", "query": "prometheus"}]},
        "panels": [
            {
                "id": number + 1,
                "type": "timeseries",
                "title": title,
                "datasource": source,
                "gridPos": {
                    "x": number % 2 * _WIDTH,
                    "y": number // 2 * _HEIGHT,
                    "w": _WIDTH,
                    "h": _HEIGHT,
                },
                "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": colours},
                "targets": [
                    {"refId": chr(ord("A") + place), "datasource": source, "expr": expression, "legendFormat": legend}
                    for place, (legend, expression) in enumerate(queries.items())
                ],
            }
            for number, (title, unit, queries) in enumerate(PANELS)
        ],
    }


if __name__ == "__main__":
    print(json.dumps(build_dashboard(), indent=1))  # noqa: T201 - its output
