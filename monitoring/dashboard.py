"""The Grafana dashboard, as JSON: `python monitoring/dashboard.py > monitoring/dashboard.json`."""

import json
from typing import Any, Final

# Of a panel, in Grafana's grid of 24 columns: two panels side by side.
_WIDTH: Final = 12
_HEIGHT: Final = 8
# Okabe and Ito's colours, as on the live page: colour-blind people can distinguish them.
_COLOURS: Final = {
    "delivered": "#0072b2",
    "undelivered": "#d55e00",
    "not_sent": "#e69f00",
    "not_permitted": "#cc79a7",
    "expired": "#999999",
}
_ENDED: Final = "smspulse_stream_messages_ended_total"
# An expiry is no failure: it is the absence of a report.
_FAILED: Final = f'{_ENDED}{{outcome=~"undelivered|not_sent|not_permitted"}}'
_STREAM_SECONDS: Final = "smspulse_stream_latency_seconds_bucket"
_REQUESTS: Final = 'smspulse_ingest_requests_total{route="webhooks"}'
_INGEST_SECONDS: Final = "smspulse_ingest_webhook_seconds_bucket"
_SHARES: Final = (0.5, 0.95, 0.99)


def _rate(metric: str, by: str = "") -> str:
    # Grafana chooses an interval that holds several scrapes.
    return f"sum{f' by ({by}) ' if by else ''}(rate({metric}[$__rate_interval]))"


def _percentiles(metric: str, shares: tuple[float, ...] = _SHARES) -> dict[str, str]:
    return {f"p{share * 100:g}": f"histogram_quantile({share}, {_rate(metric, 'le')})" for share in shares}


def _increase(metric: str) -> str:
    return f"sum(increase({metric}[$__rate_interval]))"


PANELS: Final[tuple[tuple[str, str, dict[str, str]], ...]] = (
    ("Messages ended per minute, by outcome", "short", {"{{outcome}}": f"60 * {_rate(_ENDED, 'outcome')}"}),
    ("Failures / ended", "percentunit", {"failed": f"{_rate(_FAILED)} / {_rate(_ENDED)}"}),
    ("Sent to delivered", "s", _percentiles(f'{_STREAM_SECONDS}{{step="network"}}')),
    ("First report to end", "s", _percentiles(f'{_STREAM_SECONDS}{{step="total"}}')),
    ("Webhooks a second, by answer", "reqps", {"{{code}}": _rate(_REQUESTS, "code")}),
    ("Time to answer a webhook", "s", _percentiles(_INGEST_SECONDS, (0.5, 0.99))),
    (
        "Records behind",
        "short",
        {"stream": 'sum(smspulse_stream_lag_records{topic="sms.raw"})', "lander": "sum(smspulse_lander_lag_records)"},
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
            "dead letters": _increase("smspulse_stream_deadletters_total"),
            "lost": _increase("smspulse_lander_lost_records_total"),
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
    # Legends with other names than those of outcomes keep Grafana's own colours.
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
                "gridPos": {"x": number % 2 * _WIDTH, "y": number // 2 * _HEIGHT, "w": _WIDTH, "h": _HEIGHT},
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
