"""How many messages arrive? Shown by `marimo run notebooks/delivery_overview.py`; `marimo edit` changes it."""

# marimo ends each cell with a return.
# ruff: noqa: PLR1711

# /// script
# [tool.marimo.display]
# theme = "system"
# ///

import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="smspulse: delivery overview")

with app.setup(hide_code=True):
    import os
    from pathlib import Path

    import altair as alt
    import marimo as mo

    from notebooks.common import COLOURS, chosen, look, plain, span
    from warehouse.views import rates


@app.cell
def _():
    data = Path(os.environ.get("SMSPULSE_DATA", "./.smspulse"))
    return (data,)


@app.cell(hide_code=True)
def _():
    mo.md("""
    # How many messages arrive?
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
    device_picker = mo.ui.text(label="Device (empty: all)")
    mo.hstack([source_picker, device_picker, days_picker], justify="start", gap=2, wrap=True)
    return days_picker, device_picker, source_picker


@app.cell(hide_code=True)
def _(days_picker, device_picker, source_picker):
    source, days = source_picker.value, days_picker.value
    device = int(device_picker.value) if device_picker.value.isdecimal() else None
    return days, device, source


@app.cell(hide_code=True)
def _(data, days, device, source):
    # A row an hour up to two days, else a row a day; and one of all.
    delivery = chosen(
        data,
        f"""
        SELECT *, {rates()}
        FROM (
            SELECT
                date_trunc(if($days <= 2, 'hour', 'day'), first_seen_at) AS time,
                count(*) AS attempted,
                count(*) FILTER (is_ended) AS ended,
                count(*) FILTER (NOT is_ended) AS open,
                count(*) FILTER (outcome = 'delivered') AS delivered
            FROM chosen
            WHERE $device IS NULL OR device_id = $device
            GROUP BY GROUPING SETS ((time), ())
        )
        ORDER BY time NULLS FIRST
        """,  # noqa: S608 - SQL of ours
        source,
        days,
        device=device,
    )
    outcomes = chosen(
        data,
        """
        SELECT CASE WHEN is_ended THEN outcome ELSE 'open' END AS outcome, count(*) AS messages
        FROM chosen
        WHERE $device IS NULL OR device_id = $device
        GROUP BY ALL
        ORDER BY messages DESC, outcome
        """,
        source,
        days,
        device=device,
    )
    return delivery, outcomes


@app.cell(hide_code=True)
def _(days, delivery):
    _all = delivery.iloc[0]
    if not _all.attempted:
        verdict = f"No message in these {span(days)}: choose another device or source."
    elif not _all.ended:
        verdict = f"None of {_all.attempted:,} messages has ended in these {span(days)}."
    else:
        verdict = (
            f"**{_all.delivered_per_ended:.1%} of the messages that ended were delivered** in these {span(days)}: "
            f"{_all.delivered:,} of {_all.ended:,} (95 % interval {_all.delivered_per_ended_low:.1%} to "
            f"{_all.delivered_per_ended_high:.1%}). Of all {_all.attempted:,} attempted it is "
            f"{_all.delivered_per_attempted:.1%}, and {_all.open_share:.1%} are open."
        )
    mo.md(verdict)
    return (verdict,)


@app.cell(hide_code=True)
def _(delivery):
    _bins = delivery[delivery["time"].notna() & (delivery["ended"] > 0)]
    mo.stop(_bins.empty)
    _base = alt.Chart(_bins).encode(x=alt.X("time:T", title="first report (UTC)", scale=alt.Scale(type="utc")))
    _axis = alt.Axis(format=".0%", title="delivered / ended, with its 95 % interval")
    _band = _base.mark_rule(strokeWidth=3, color=COLOURS[0], opacity=0.4).encode(
        y=alt.Y("delivered_per_ended_low:Q", axis=_axis, scale=alt.Scale(zero=False, domainMax=1)),
        y2="delivered_per_ended_high:Q",
    )
    _line = _base.mark_line(point=True, color=COLOURS[0]).encode(
        y="delivered_per_ended:Q",
        tooltip=["time:T", "ended:Q", alt.Tooltip("delivered_per_ended:Q", format=".1%")],
    )
    plain((_band + _line).properties(width=620, height=240))
    return


@app.cell(hide_code=True)
def _(outcomes):
    mo.stop(outcomes.empty)
    _chart = alt.Chart(outcomes).mark_bar(color=COLOURS[0])
    _bars = _chart.encode(
        x=alt.X("messages:Q", axis=alt.Axis(tickMinStep=1)), y=alt.Y("outcome:N", sort=None, title=None)
    )
    mo.vstack([plain(_bars.properties(width=560, height=alt.Step(24))), mo.ui.table(outcomes, selection=None)])
    return


@app.cell(hide_code=True)
def _():
    mo.md("""
    **How to read it.** A message counts once, by its first report, whatever its attempts. *Ended* means delivered,
    failed or expired; what is open is in no share but its own, so the newest hours look better or worse than they will.
    """)
    return


if __name__ == "__main__":
    app.run()
