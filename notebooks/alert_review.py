"""Were the alerts right? Shown by `marimo run notebooks/alert_review.py`; `marimo edit` changes it."""

# marimo ends each cell with a return.

# /// script
# [tool.marimo.display]
# theme = "system"
# ///

import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="smspulse: alert review")

with app.setup(hide_code=True):
    import altair as alt

    from notebooks import common
    from warehouse.reader import query


@app.cell(hide_code=True)
def _():
    question = "Were the alerts right?"
    data, problem, picked = common.open_notebook(days=30)
    common.show_header(question, problem, picked)
    return data, picked, problem, question


@app.cell(hide_code=True)
def _(data, picked):
    choice = common.read_choice(picked)
    # A row each time that one fired, and what it rested on.
    alerts = query(
        data,
        """
        SELECT
            replace(kind, '_', ' ') AS kind,
            concat_ws(', ', if(source = '*', 'pipeline', source), 'phone ' || device_id, 'channel ' || channel_id)
                AS place,
            since,
            fired_at,
            coalesce(resolved_at, now()) AS until,
            if(is_firing, 'fires', 'resolved') AS phase,
            (epoch(fired_at) - epoch(since)) / 60 AS noticed_after_min,
            lasted_s / 60 AS lasted_min,
            count,
            failures,
            ratio,
            baseline,
            map_keys(errors)[list_position(map_values(errors), list_max(map_values(errors)))] AS top_error
        FROM alerts
        WHERE
            ($source IS NULL OR source = $source)
            AND ($device IS NULL OR device_id = $device)
            AND ($channel IS NULL OR channel_id = $channel)
            AND fired_at < $until::DATE + INTERVAL 1 DAY
            AND fired_at >= $until::DATE + INTERVAL 1 DAY - to_days($days)
        ORDER BY fired_at, place
        """,
        choice.parameters,
    )
    return alerts, choice


@app.cell(hide_code=True)
def _(alerts, choice):
    if alerts.empty:
        verdict = f"No alert fired in the {choice.time_span}."
    else:
        _often = alerts["place"].value_counts()
        _firing = (alerts["phase"] == "fires").sum()
        verdict = (
            f"**{len(alerts):,} alerts fired in the {choice.time_span}**, and {_firing:,} of them still fire. "
            f"Most often: {_often.index[0]}, {_often.iloc[0]:,} of them. Half of them fired "
            f"{alerts['noticed_after_min'].median():.1f} minutes or less after it is thought to have begun."
        )

    # Distinguished by colour and by shape.
    _classes = ["fires", "resolved"]
    _legend = alt.Legend(orient="top", title=None)
    _frame = alerts.tail(200).assign(alert=alerts["kind"] + ": " + alerts["place"])
    _base = alt.Chart(_frame).encode(
        x=common.time_axis("fired_at", "firing"),
        y=alt.Y("alert:N", title=None, axis=alt.Axis(labelLimit=330)),
        color=alt.Color("phase:N", legend=_legend, scale=alt.Scale(domain=_classes, range=common.ALARM_COLOURS)),
        tooltip=[
            *("alert:N", "failures:Q", "count:Q"),
            alt.Tooltip("ratio:Q", format=".1%"),
            alt.Tooltip("baseline:Q", format=".1%", title="usual"),
        ],
    )
    # However short it was, its beginning shows.
    _starts = _base.mark_point(filled=True, size=60, opacity=1).encode(
        shape=alt.Shape("phase:N", legend=_legend, scale=alt.Scale(domain=_classes, range=["triangle-right", "circle"]))
    )
    _picture = _base.mark_bar(height=6).encode(x2="until:T") + _starts
    pieces = [
        verdict,
        *([] if alerts.empty else [_picture.properties(width=440, height=alt.Step(22))]),
        alerts.drop(columns=["until", "phase"]),
        """
**How to read it.** *Failures* of *count* is what each alert rested on when it fired, *baseline* what is usual for
its place. A false alarm shows by a short bar, few failures and no error that stands out. The alert of a phone that
was fixed ends by itself; one whose failures stay ends after a week, as the new normal. `smspulse alerts explain ID`
has the evidence, and the runbooks what to do.
""",
    ]
    common.show_pieces(pieces)
    return pieces, verdict


if __name__ == "__main__":
    app.run()
