"""Can the numbers be trusted? Shown by `marimo run notebooks/data_quality.py`; `marimo edit` changes it."""

# marimo ends each cell with a return.

# /// script
# [tool.marimo.display]
# theme = "system"
# ///

import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="smspulse: data quality")

with app.setup(hide_code=True):
    import altair as alt

    from notebooks import common
    from warehouse.reader import query


@app.cell(hide_code=True)
def _():
    question = "Can the numbers be trusted?"
    data, problem, picked = common.open_notebook(places=["source"])
    common.show_header(question, problem, picked)
    return data, picked, problem, question


@app.cell(hide_code=True)
def _(data, picked):
    choice = common.read_choice(picked)
    quality = query(
        data,
        """
        SELECT * FROM webhook_quality
        WHERE ($source IS NULL OR source = $source) AND day <= $until AND day > $until::DATE - $days::INTEGER
        ORDER BY day, source
        """,
        {"source": choice.source, "until": choice.until, "days": choice.days},
    )
    checks = query(
        data, "SELECT expectation, severity, success, observed, meaning, checked_at FROM quality ORDER BY ALL"
    )
    differing = int(query(data, "SELECT count(DISTINCT message_key) AS n FROM rebuild_differences")["n"].iloc[0])
    dead = query(data, "SELECT reason, count(*) AS dead_letters FROM deadletters GROUP BY ALL ORDER BY ALL")
    fresh = query(data, "SELECT dataset, rows, newest_recorded_at FROM freshness ORDER BY dataset")
    return checks, choice, dead, differing, fresh, quality


@app.cell(hide_code=True)
def _(checks, choice, dead, differing, fresh, quality):
    _all, _dead = int(quality["webhooks"].sum()), int(dead["dead_letters"].sum())
    failed = checks[~checks["success"].astype(bool)]

    _checked = "`smspulse check` has judged nothing yet. "
    if not checks.empty:
        _checked = f"{len(checks) - len(failed)} of {len(checks)} expectations held when `smspulse check` looked last, "
        _checked += f"{checks['checked_at'].max():%d %b %H:%M} UTC. "
    verdict = f"No webhook in the {choice.time_span}. {_checked}"
    if _all:
        _counts = {_name: quality[_name].sum() for _name in ("duplicates", "unreadable", "flawed", "unknown")}
        _shares = ", ".join(f"{_count:,} {_name} ({_count / _all:.1%})" for _name, _count in _counts.items())
        verdict = f"**{_all:,} webhooks in the {choice.time_span}**: {_shares}. "
        verdict += f"{_dead:,} records are dead letters. {_checked}"
        verdict += (
            f"**{differing:,} messages differ** from the log: see `rebuild_differences`."
            if differing
            else "No message that `smspulse rebuild` has compared differs from the log."
        )

    _names = ["duplicates", "reordered", "late", "contradicted", "flawed", "unreadable", "unknown"]
    _sums = quality.groupby("day", as_index=False)[["webhooks", *_names]].sum()
    _long = _sums.melt(["day", "webhooks"], _names, "what", "count")
    _long["day"] = _long["day"].dt.strftime("%d %b")
    _long["share"] = _long["count"] / _long["webhooks"]
    _bars = (
        alt.Chart(_long)
        .mark_bar(color=common.COLOURS[0])
        .encode(
            x=alt.X("day:O", title=None, sort=None, axis=alt.Axis(labelAngle=0, labelOverlap=True)),
            y=alt.Y("share:Q", axis=alt.Axis(format="%", title=None, tickCount=3)),
            tooltip=["what:N", "count:Q", alt.Tooltip("share:Q", format=".2%")],
            facet=alt.Facet("what:N", columns=2, sort=_names, title="per webhook, by day (UTC)"),
        )
    )
    pieces = [
        verdict,
        *([] if _long.empty else [_bars.properties(width=270, height=70)]),
        *([] if failed.empty else ["What does not hold:", failed.drop(columns=["success", "checked_at"])]),
        "Newest record of each dataset, and dead letters by reason:",
        fresh,
        dead,
        """
**How to read it.** *Duplicates* were received before on that day and change nothing. *Reordered*, *late* and
*contradicted* count messages; the lifecycle copes with all three. *Flawed* webhooks have a field that could not be
read, *unknown* ones an undocumented status, *unreadable* ones are dead letters. `smspulse check` judges them.
""",
    ]
    common.show_pieces(pieces)
    return failed, pieces, verdict


if __name__ == "__main__":
    app.run()
