"""Which phone is failing? Shown by `marimo run notebooks/device_health.py`; `marimo edit` changes it."""

# marimo ends each cell with a return.
# ruff: noqa: PLR1711

# /// script
# [tool.marimo.display]
# theme = "system"
# ///

import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="smspulse: device health")

with app.setup(hide_code=True):
    import os
    from pathlib import Path

    import altair as alt
    import marimo as mo
    import pandas as pd

    from notebooks.common import look
    from warehouse.read import query


@app.cell
def _():
    data = Path(os.environ.get("SMSPULSE_DATA", "./.smspulse"))
    return (data,)


@app.cell(hide_code=True)
def _():
    mo.md("""
    # Which phone is failing?
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
    # A row a phone, the surest to be bad first: that is the one whose interval ends lowest.
    devices = query(
        data,
        """
        WITH outgoing AS (
            SELECT * FROM messages WHERE outcome <> 'incoming' AND ($source = '' OR source = $source)
        ),
        counted AS (
            SELECT
                source,
                device_id,
                count(*) AS messages,
                count(*) FILTER (is_ended) AS ended,
                count(*) FILTER (outcome = 'delivered') AS delivered,
                1 - ended / messages AS open_share,
                max(last_seen_at) AS last_seen_at,
                mode(CASE WHEN outcome = 'expired' THEN outcome ELSE failure_class END ORDER BY failure_class)
                    AS top_failure
            FROM outgoing
            WHERE first_seen_at >= (SELECT max(first_seen_at) FROM outgoing) - to_days($days)
            GROUP BY source, device_id
        ),
        rated AS (
            SELECT
                *,
                delivered / nullif(ended, 0) AS rate,
                sum(delivered) OVER () / nullif(sum(ended) OVER (), 0) AS fleet_rate,
                -- Wilson's score interval, 95 %: centre and half width.
                1.96 ** 2 / nullif(ended, 0) AS z2n,
                (rate + z2n / 2) / (1 + z2n) AS centre,
                sqrt(rate * (1 - rate) * z2n + z2n ** 2 / 4) / (1 + z2n) AS half
            FROM counted
        )
        SELECT
            source, device_id, messages, ended, delivered, open_share, rate, last_seen_at, top_failure, fleet_rate,
            greatest(centre - half, 0) AS low,
            least(centre + half, 1) AS high,
            -- Of fewer than 5, the interval misses too often to accuse anybody.
            coalesce(high < fleet_rate AND ended >= 5 AND device_id IS NOT NULL, false) AS is_failing,
            coalesce('phone ' || device_id, 'no phone named') || ' (' || source || ')' AS phone
        FROM rated
        ORDER BY high NULLS LAST, source, device_id
        """,
        {"source": source, "days": days},
    )
    return (devices,)


@app.cell(hide_code=True)
def _(days, devices):
    # In words.
    failing = devices[devices["is_failing"]]
    phones = devices[devices["device_id"].notna() & (devices["ended"] > 0)]
    _fleet = devices["fleet_rate"].iloc[0]
    _span = "24 hours" if days == 1 else f"{days} days"

    def _describe(row):
        cause = f", failures mostly `{row.top_failure}`" if isinstance(row.top_failure, str) else ""
        return (
            f"of its {row.ended:,} ended messages {row.rate:.1%} were delivered "
            f"(95 % interval {row.low:.1%} to {row.high:.1%}){cause}; last seen {row.last_seen_at:%d %b %H:%M} UTC."
        )

    if phones.empty:
        verdict = f"No message of a phone has ended in these {_span}, so nothing can be said yet."
    elif len(failing):
        _worst, _more = failing.iloc[0], len(failing) - 1
        verdict = f"**Failing: {_worst.phone}**: {_describe(_worst)} The fleet delivered {_fleet:.1%} in these {_span}."
        verdict += f" {_more} more are failing, {failing.iloc[1].phone} next to it." if _more else ""
    elif len(phones) == 1:
        _worst = phones.iloc[0]
        verdict = f"There is one phone, and none to compare it with. **{_worst.phone}**: {_describe(_worst)}"
    else:
        _worst = phones.iloc[0]
        verdict = (
            f"**No phone stands out.** The fleet delivered {_fleet:.1%} of the messages that ended in these {_span}. "
            f"Lowest: {_worst.phone}: {_describe(_worst)}"
        )
    mo.md(verdict)
    return failing, verdict


@app.cell(hide_code=True)
def _(devices):
    _ended = devices[devices["ended"] > 0]
    mo.stop(_ended.empty)
    _shown = _ended.head(30)
    _notes = [
        f"{_row.ended:,} ended · seen {_row.last_seen_at:%d %b %H:%M}"
        + (f" · mostly {_row.top_failure}" if isinstance(_row.top_failure, str) else "")
        for _row in _shown.itertuples()
    ]
    # One row of the picture is labelled on both sides: by axes, whose text follows the page's theme, light or dark.
    _frame = _shown.assign(
        row=[f"{_name}\n{_note}" for _name, _note in zip(_shown["phone"], _notes, strict=True)],
        verdict=_shown["is_failing"].map({True: "failing", False: "others"}),
    )
    _left, _right = (
        alt.Axis(
            orient=_side,
            labelExpr=f"split(datum.label, '\\n')[{_part}]",
            labelLimit=330,
            labelPadding=8,
            ticks=False,
            domain=False,
        )
        for _part, _side in enumerate(["left", "right"])
    )
    # Colours of Okabe and Ito, which the colour-blind tell apart and which show on white and on black; and two shapes.
    _classes = ["failing", "others"]
    _color = alt.Scale(domain=_classes, range=["#D55E00", "#0072B2"])
    _shape = alt.Scale(domain=_classes, range=["triangle-down", "circle"])
    _base = alt.Chart(_frame).encode(
        color=alt.Color("verdict:N", scale=_color, legend=None),
        tooltip=[
            *("phone:N", "messages:Q", "ended:Q", "delivered:Q"),
            alt.Tooltip("rate:Q", title="delivered / ended", format=".1%"),
            alt.Tooltip("low:Q", format=".1%"),
            alt.Tooltip("high:Q", format=".1%"),
            alt.Tooltip("open_share:Q", title="open share", format=".1%"),
        ],
    )
    _axis = alt.Axis(format=".0%", tickCount=5, gridOpacity=0.4, title="delivered / ended, with its 95 % interval")
    _intervals = _base.mark_rule(strokeWidth=3).encode(
        x=alt.X("low:Q", scale=alt.Scale(domain=[0, 1]), axis=_axis),
        x2="high:Q",
        y=alt.Y("row:N", sort=None, title=None, axis=_left),
    )
    _rates = _base.mark_point(filled=True, size=110, opacity=1).encode(
        x="rate:Q",
        shape=alt.Shape("verdict:N", scale=_shape, legend=None),
        y=alt.Y("row:N", sort=None, title=None, axis=_right),
    )
    _fleet = alt.Chart(_frame.head(1)).mark_rule(strokeDash=[5, 4], strokeWidth=2, color="#808080")
    _chart = (
        (_fleet.encode(x="fleet_rate:Q") + _intervals + _rates)
        .resolve_axis(y="independent")
        .properties(width=380, height=alt.Step(26))
        .configure(background="transparent", view=alt.ViewConfig(stroke=None))
    )
    _cut = f" The {len(_shown)} lowest of {len(_ended)}." if len(_ended) > len(_shown) else ""
    mo.vstack([_chart, mo.md(f"Dashed: the fleet. Triangle, orange: failing.{_cut} Times are UTC.")])
    return


@app.cell(hide_code=True)
def _(devices):
    def _percent(values):
        return ["" if pd.isna(value) else f"{value:.1%}" for value in values]

    _table = mo.ui.table(
        pd.DataFrame(
            {
                "phone": devices["phone"],
                "messages": devices["messages"],
                "delivered / ended": _percent(devices["rate"]),
                "open share": _percent(devices["open_share"]),
                "last seen (UTC)": devices["last_seen_at"].dt.strftime("%d %b %H:%M"),
                "mostly failed by": devices["top_failure"],
            }
        ),
        show_column_summaries=False,
        show_data_types=False,
        page_size=20,
        selection=None,
        show_download=False,
    )
    _reading = mo.md("""
    **How to read it.** A phone is called failing when it has 5 ended messages or more and its whole interval lies below
    the share of the fleet; about one healthy phone in forty is called so by chance. Messages under way are in no
    share: a phone that died shows by *open share* and *last seen*. A message counts for the phone that its newest
    report names.
    """)
    mo.vstack([_table, _reading])
    return


if __name__ == "__main__":
    app.run()
