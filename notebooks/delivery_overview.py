"""How many messages arrive? Shown by `marimo run notebooks/delivery_overview.py`; `marimo edit` changes it."""

# marimo ends each cell with a return.

# /// script
# [tool.marimo.display]
# theme = "system"
# ///

import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="smspulse: delivery overview")

with app.setup(hide_code=True):
    import altair as alt

    from notebooks import common


@app.cell(hide_code=True)
def _():
    question = "How many messages arrive?"
    data, problem, picked = common.open_notebook()
    common.show_header(question, problem, picked)
    return data, picked, problem, question


@app.cell(hide_code=True)
def _(data, picked):
    choice = common.read_choice(picked)
    # A row an hour up to two days, else a row a day; and one of all.
    delivery = common.query_chosen_messages(
        data,
        """
        SELECT * EXCLUDE (rates), unnest(rates)
        FROM (
            SELECT
                time,
                count(*) AS attempted,
                count(*) FILTER (is_ended) AS ended,
                count(*) FILTER (NOT is_ended) AS open,
                count(*) FILTER (outcome = 'delivered') AS delivered,
                rates(attempted, ended, delivered, open) AS rates
            FROM chosen
            GROUP BY GROUPING SETS ((time), ())
        )
        ORDER BY time NULLS FIRST
        """,
        choice,
    )
    outcomes = common.query_chosen_messages(
        data,
        """
        SELECT
            CASE WHEN is_ended THEN outcome ELSE 'open' END AS outcome,
            count(*) AS messages,
            messages / sum(messages) OVER () AS share
        FROM chosen
        GROUP BY ALL
        ORDER BY messages DESC, outcome
        """,
        choice,
    )
    return choice, delivery, outcomes


@app.cell(hide_code=True)
def _(choice, delivery, outcomes):
    _all = delivery.iloc[0]
    if not _all.attempted:
        verdict = f"No message in the {choice.time_span}: choose another device or source."
    elif not _all.ended:
        verdict = f"None of {_all.attempted:,} messages has ended in the {choice.time_span}."
    else:
        verdict = (
            f"**{_all.delivered_per_ended:.1%} of the messages that ended were delivered** in the {choice.time_span}: "
            f"{_all.delivered:,} of {_all.ended:,} (95 % interval {_all.delivered_per_ended_low:.1%} to "
            f"{_all.delivered_per_ended_high:.1%}). Of all {_all.attempted:,} attempted it is "
            f"{_all.delivered_per_attempted:.1%}, and {_all.open_share:.1%} are open."
        )

    _bins = delivery[delivery["time"].notna() & (delivery["ended"] > 0)]
    _base = alt.Chart(_bins).encode(x=common.time_axis("time", "first report"))
    _axis = alt.Axis(format=".0%", title="delivered / ended, with its 95 % interval")
    _band = _base.mark_rule(strokeWidth=3, color=common.COLOURS[0], opacity=0.4).encode(
        y=alt.Y("delivered_per_ended_low:Q", axis=_axis, scale=alt.Scale(zero=False, domainMax=1)),
        y2="delivered_per_ended_high:Q",
    )
    _line = _base.mark_line(point=True, color=common.COLOURS[0]).encode(
        y="delivered_per_ended:Q",
        tooltip=["time:T", "ended:Q", alt.Tooltip("delivered_per_ended:Q", format=".1%")],
    )
    pieces = [
        verdict,
        *([] if _bins.empty else [(_band + _line).properties(width=620, height=240)]),
        outcomes,
        """
**How to read it.** A message counts once, by its first report, whatever its attempts. *Ended* means delivered,
failed or expired; what is open is in no share but its own, so the newest hours look better or worse than they will.
""",
    ]
    common.show_pieces(pieces)
    return pieces, verdict


if __name__ == "__main__":
    app.run()
