"""Were the alerts right? Shown by `marimo run notebooks/alert_review.py`; `marimo edit` changes it."""

# marimo ends each cell with a return.
# ruff: noqa: PLR1711

# /// script
# [tool.marimo.display]
# theme = "system"
# ///

import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="smspulse: alert review")

with app.setup(hide_code=True):
    import os
    from pathlib import Path

    import altair as alt
    import marimo as mo

    from notebooks.common import COLOURS, look, plain, span
    from warehouse.read import query


@app.cell
def _():
    data = Path(os.environ.get("SMSPULSE_DATA", "./.smspulse"))
    return (data,)


@app.cell(hide_code=True)
def _():
    mo.md("""
    # Were the alerts right?
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
        steps=[1, 2, 7, 14, 30, 90], value=30, label="Days up to the newest alert", show_value=True
    )
    mo.hstack([source_picker, days_picker], justify="start", gap=2, wrap=True)
    return days_picker, source_picker


@app.cell(hide_code=True)
def _(days_picker, source_picker):
    source, days = source_picker.value, days_picker.value
    return days, source


@app.cell(hide_code=True)
def _(data, days, source):
    # A row each time that one fired, and what its place delivered before and while it did.
    alerts = query(
        data,
        """
        WITH chosen AS (SELECT * FROM alerts WHERE $source = '' OR source = $source)
        SELECT
            replace(kind, '_', ' ') AS kind,
            concat_ws(', ', source, 'phone ' || device_id, 'channel ' || channel_id) AS place,
            since,
            fired_at,
            coalesce(resolved_at, now()) AS until,
            is_firing,
            lasted_s / 60 AS minutes,
            epoch(fired_at) - epoch(since) AS delay_s,
            count,
            failures,
            ratio,
            baseline,
            map_keys(errors)[list_position(map_values(errors), list_max(map_values(errors)))] AS top_error
        FROM chosen
        WHERE fired_at > (SELECT max(fired_at) FROM chosen) - to_days($days)
        ORDER BY fired_at, place
        """,
        {"source": source, "days": days},
    )
    return (alerts,)


@app.cell(hide_code=True)
def _(alerts, days):
    if alerts.empty:
        verdict = f"No alert fired in {span(days)}."
    else:
        _often = alerts["place"].value_counts()
        _firing = int(alerts["is_firing"].sum())
        verdict = (
            f"**{len(alerts):,} alerts fired in {span(days)}**, and {_firing:,} of them still fire. "
            f"Most often: {_often.index[0]} ({_often.iloc[0]:,} times). Half of them fired "
            f"{alerts['delay_s'].median():.0f} s or less after it is thought to have begun."
        )
    mo.md(verdict)
    return (verdict,)


@app.cell(hide_code=True)
def _(alerts):
    mo.stop(alerts.empty)
    _classes = ["failure ratio", "not permitted"]
    _bars = (
        alt.Chart(alerts.tail(200))
        .mark_bar(height=10, stroke="#808080", strokeWidth=0.5)
        .encode(
            x=alt.X("fired_at:T", title="firing (UTC)", scale=alt.Scale(type="utc")),
            x2="until:T",
            y=alt.Y("place:N", title=None),
            color=alt.Color("kind:N", scale=alt.Scale(domain=_classes, range=COLOURS[:2])),
            tooltip=[
                *("place:N", "kind:N", "failures:Q", "count:Q"),
                alt.Tooltip("ratio:Q", format=".1%"),
                alt.Tooltip("baseline:Q", format=".1%", title="usual"),
            ],
        )
    )
    plain(_bars.properties(width=480, height=alt.Step(22)))
    return


@app.cell(hide_code=True)
def _(alerts):
    mo.stop(alerts.empty)
    _reading = mo.md("""
    **How to read it.** *Failures* of *count* is what each alert rested on when it fired, *baseline* what is usual for
    its place. A false alarm shows by a short bar, few failures and no error that stands out. The alert of a phone that
    was mended ends by itself. `smspulse alerts explain ID` has the evidence, and the runbooks what to do.
    """)
    mo.vstack([mo.ui.table(alerts.drop(columns=["until", "is_firing"]), selection=None, page_size=20), _reading])
    return


if __name__ == "__main__":
    app.run()
