"""Can the numbers be trusted? Shown by `marimo run notebooks/data_quality.py`; `marimo edit` changes it."""

# marimo ends each cell with a return.
# ruff: noqa: PLR1711

# /// script
# [tool.marimo.display]
# theme = "system"
# ///

import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="smspulse: data quality")

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
    # Can the numbers be trusted?
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
    mo.hstack([source_picker, days_picker], justify="start", gap=2, wrap=True)
    return days_picker, source_picker


@app.cell(hide_code=True)
def _(days_picker, source_picker):
    source, days = source_picker.value, days_picker.value
    return days, source


@app.cell(hide_code=True)
def _(data, days, source):
    quality = query(
        data,
        """
        WITH chosen AS (SELECT * FROM webhook_quality WHERE $source = '' OR source = $source)
        SELECT * FROM chosen
        WHERE day > (SELECT max(day) FROM chosen) - $days::INTEGER
        ORDER BY day, source
        """,
        {"source": source, "days": days},
    )
    differing = int(query(data, "SELECT count(DISTINCT message_key) AS n FROM rebuild_differences")["n"].iloc[0])
    dead = query(data, "SELECT reason, count(*) AS records FROM deadletters GROUP BY ALL ORDER BY ALL")
    fresh = query(data, "SELECT dataset, rows, newest_recorded_at FROM freshness ORDER BY dataset")
    return dead, differing, fresh, quality


@app.cell(hide_code=True)
def _(days, dead, differing, quality):
    _all, _dead = int(quality["webhooks"].sum()), int(dead["records"].sum())

    def _share(name):
        return f"{quality[name].sum():,} {name} ({quality[name].sum() / _all:.1%})"

    verdict = (
        f"**{_all:,} webhooks in {span(days)}**: "
        + ", ".join(_share(name) for name in ("duplicates", "unreadable", "flawed", "unknown"))
        + f". {_dead:,} records are dead letters. "
        + (
            f"**{differing:,} messages differ** from what follows from the log: see `rebuild_differences`."
            if differing
            else "No message differs from what follows from the log, as far as `smspulse rebuild` has compared."
        )
        if _all
        else f"No webhook in these {span(days)}."
    )
    mo.md(verdict)
    return (verdict,)


@app.cell(hide_code=True)
def _(quality):
    _names = ["duplicates", "reordered", "late", "contradicted", "flawed", "unreadable", "unknown"]
    _sums = quality.groupby("day", as_index=False)[["webhooks", *_names]].sum()
    _long = _sums.melt(["day", "webhooks"], _names, "what", "count")
    mo.stop(_long.empty)
    _long["share"] = _long["count"] / _long["webhooks"]
    _bars = (
        alt.Chart(_long)
        .mark_bar(color=COLOURS[0])
        .encode(
            x=alt.X("yearmonthdate(day):O", title=None),
            y=alt.Y("share:Q", axis=alt.Axis(format="%", title=None, tickCount=3)),
            tooltip=["what:N", "count:Q", alt.Tooltip("share:Q", format=".2%")],
            facet=alt.Facet("what:N", columns=2, sort=_names, title="per webhook, by day (UTC)"),
        )
    )
    plain(_bars.properties(width=270, height=70))
    return


@app.cell(hide_code=True)
def _(dead, fresh):
    mo.vstack(
        [
            mo.md("Newest record of each dataset, and dead letters by reason:"),
            mo.ui.table(fresh, selection=None),
            mo.ui.table(dead, selection=None),
        ]
    )
    return


@app.cell(hide_code=True)
def _():
    mo.md("""
    **How to read it.** *Duplicates* were received before on that day and change nothing. *Reordered*, *late* and
    *contradicted* count messages; the lifecycle copes with all three. *Flawed* webhooks have a field that could not be
    read, *unknown* ones an undocumented status, *unreadable* ones are dead letters. `smspulse check` judges them.
    """)
    return


if __name__ == "__main__":
    app.run()
