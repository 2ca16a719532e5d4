"""How long do messages take? Shown by `marimo run notebooks/latency.py`; `marimo edit` changes it."""

# marimo ends each cell with a return.

# /// script
# [tool.marimo.display]
# theme = "system"
# ///

import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="smspulse: latency")

with app.setup(hide_code=True):
    import altair as alt
    import marimo as mo

    from notebooks import common

    STEPS = {"first report to end": "total", "queue": "queue", "phone": "device", "network": "network"}


@app.cell(hide_code=True)
def _():
    question = "How long do messages take?"
    data, problem, picked = common.open_notebook(step=mo.ui.dropdown(STEPS, value="first report to end", label="Step"))
    common.show_header(question, problem, picked)
    return data, picked, problem, question


@app.cell(hide_code=True)
def _(data, picked):
    choice = common.read_choice(picked)
    # A row an hour up to two days, else a row a day; and one of all.
    latency = common.query_chosen_messages(
        data,
        f"""
        SELECT
            time,
            count(*) AS messages,
            quantile_cont(seconds, 0.5) AS p50,
            quantile_cont(seconds, 0.95) AS p95,
            quantile_cont(seconds, 0.99) AS p99,
            avg((seconds <= 10)::INTEGER) AS within_10_s
        FROM (SELECT time, {choice.step}_s AS seconds FROM chosen)
        WHERE seconds IS NOT NULL
        GROUP BY GROUPING SETS ((time), ())
        ORDER BY time NULLS FIRST
        """,  # noqa: S608 - a step of the controls
        choice,
    )
    return choice, latency


@app.cell(hide_code=True)
def _(choice, latency):
    _all = latency.iloc[0]
    _names = {"total": "from first report to end", "queue": "in the queue", "device": "on the phone"}
    verdict = (
        f"**Half of the messages spent {_all.p50:.1f} s or less {_names.get(choice.step, 'in the network')}**, "
        f"95 of 100 {_all.p95:.1f} s or less, 99 of 100 {_all.p99:.1f} s or less: {_all.messages:,} messages in the "
        f"{choice.time_span}, {_all.within_10_s:.1%} of them within 10 s."
        if _all.messages
        else f"No message of the {choice.time_span} has this latency: a report of the step's begin or end is missing."
    )

    _percentiles = ["p50", "p95", "p99"]
    _bins = latency[latency["time"].notna()].melt("time", _percentiles, "percentile", "seconds")
    _axis = alt.Axis(
        values=[0, 1, 3, 10, 30, 60, 300, 1800, 3600, 21_600, 86_400],
        labelExpr="datum.value < 60 ? datum.value + ' s' : datum.value < 3600 ? datum.value / 60 + ' min' "
        ": datum.value / 3600 + ' h'",
    )
    _lines = (
        alt.Chart(_bins)
        .mark_line(point=True)
        .encode(
            x=common.time_axis("time", "first report"),
            y=alt.Y("seconds:Q", title="latency", scale=alt.Scale(type="symlog", constant=1), axis=_axis),
            color=alt.Color("percentile:N", scale=alt.Scale(domain=_percentiles, range=common.COLOURS[:3])),
            shape=alt.Shape("percentile:N", scale=alt.Scale(domain=_percentiles)),
            tooltip=["time:T", "percentile:N", alt.Tooltip("seconds:Q", format=".1f")],
        )
    )
    pieces = [
        verdict,
        *([] if _bins.empty else [_lines.properties(width=560, height=260)]),
        """
**How to read it.** The payload has no time of the event, so these are times between *reports as they were
received*: a gateway that reports late makes them longer. A step whose report is missing, or came before the step
before it, is left out.
""",
    ]
    common.show_pieces(pieces)
    return pieces, verdict


if __name__ == "__main__":
    app.run()
