"""How long do messages take? Shown by `marimo run notebooks/latency.py`; `marimo edit` changes it."""

# marimo ends each cell with a return.
# ruff: noqa: PLR1711

# /// script
# [tool.marimo.display]
# theme = "system"
# ///

import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="smspulse: latency")

with app.setup(hide_code=True):
    import os
    from pathlib import Path

    import altair as alt
    import marimo as mo

    from notebooks.common import COLOURS, chosen, look, plain, span


@app.cell
def _():
    data = Path(os.environ.get("SMSPULSE_DATA", "./.smspulse"))
    return (data,)


@app.cell(hide_code=True)
def _():
    mo.md("""
    # How long do messages take?
    """)
    return


@app.cell(hide_code=True)
def _(data):
    problem, sources = look(data)
    mo.callout(mo.md(problem), kind="warn") if problem else mo.md("")
    return problem, sources


@app.cell(hide_code=True)
def _(problem, sources):
    mo.stop(bool(problem))
    source_picker = mo.ui.dropdown({"all": "", **{_name: _name for _name in sources}}, value="all", label="Source")
    days_picker = mo.ui.slider(
        steps=[1, 2, 7, 14, 30, 90], value=7, label="Days up to the newest message", show_value=True
    )
    step_picker = mo.ui.dropdown(
        {"first report to end": "total", "queue": "queue", "phone": "device", "network": "network"},
        value="first report to end",
        label="Step",
    )
    mo.hstack([source_picker, step_picker, days_picker], justify="start", gap=2, wrap=True)
    return days_picker, source_picker, step_picker


@app.cell(hide_code=True)
def _(days_picker, source_picker, step_picker):
    source, days, step = source_picker.value, days_picker.value, step_picker.value
    return days, source, step


@app.cell(hide_code=True)
def _(data, days, source, step):
    # A row an hour up to two days, else a row a day; and one of all.
    latency = chosen(
        data,
        """
        SELECT
            date_trunc(if($days <= 2, 'hour', 'day'), first_seen_at) AS time,
            count(*) AS messages,
            quantile_cont(seconds, 0.5) AS p50,
            quantile_cont(seconds, 0.95) AS p95,
            quantile_cont(seconds, 0.99) AS p99,
            avg((seconds <= 10)::INTEGER) AS within_10_s
        FROM (
            SELECT
                first_seen_at,
                CASE $step
                    WHEN 'queue' THEN queue_s
                    WHEN 'device' THEN device_s
                    WHEN 'network' THEN network_s
                    ELSE total_s
                END AS seconds
            FROM chosen
        )
        WHERE seconds IS NOT NULL
        GROUP BY GROUPING SETS ((time), ())
        ORDER BY time NULLS FIRST
        """,
        source,
        days,
        step=step,
    )
    return (latency,)


@app.cell(hide_code=True)
def _(days, latency, step):
    _all = latency.iloc[0]
    _names = {"total": "from first report to end", "queue": "in the queue", "device": "on the phone"}
    verdict = (
        f"**Half of the messages spent {_all.p50:.1f} s or less {_names.get(step, 'in the network')}**, 95 of 100 "
        f"{_all.p95:.1f} s or less, 99 of 100 {_all.p99:.1f} s or less: {_all.messages:,} messages in {span(days)}, "
        f"{_all.within_10_s:.1%} of them within 10 s."
        if _all.messages
        else f"No message of these {span(days)} has this latency: a report of the step's begin or end is missing."
    )
    mo.md(verdict)
    return (verdict,)


@app.cell(hide_code=True)
def _(latency):
    _bins = latency[latency["time"].notna()].melt("time", ["p50", "p95", "p99"], "percentile", "seconds")
    mo.stop(_bins.empty)
    _scale = alt.Scale(domain=["p50", "p95", "p99"], range=COLOURS[:3])
    _lines = (
        alt.Chart(_bins)
        .mark_line(point=True)
        .encode(
            x=alt.X("time:T", title="first report (UTC)", scale=alt.Scale(type="utc")),
            y=alt.Y("seconds:Q", scale=alt.Scale(type="symlog", constant=1)),
            color=alt.Color("percentile:N", scale=_scale),
            shape="percentile:N",
            tooltip=["time:T", "percentile:N", alt.Tooltip("seconds:Q", format=".1f")],
        )
    )
    plain(_lines.properties(width=560, height=260))
    return


@app.cell(hide_code=True)
def _():
    mo.md("""
    **How to read it.** The payload has no time of the event, so these are times between *reports as they were
    received*: a gateway that reports late makes them longer. A step whose report is missing, or came before the step
    before it, is left out.
    """)
    return


if __name__ == "__main__":
    app.run()
