"""Which phone is failing? Shown by `marimo run notebooks/device_health.py`; `marimo edit` changes it."""

# marimo ends each cell with a return.

# /// script
# [tool.marimo.display]
# theme = "system"
# ///

import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="smspulse: device health")

with app.setup(hide_code=True):
    from dataclasses import replace

    import altair as alt

    from notebooks import common


@app.cell(hide_code=True)
def _():
    question = "Which phone is failing?"
    data, problem, picked = common.open_notebook()
    common.show_header(question, problem, picked)
    return data, picked, problem, question


@app.cell(hide_code=True)
def _(data, picked):
    choice = common.read_choice(picked)
    # A row a phone, of one that was chosen a row a channel. Failing ones come first, then those whose interval ends
    # lowest.
    devices = common.query_chosen_attempts(
        data,
        """
        , counted AS (
            SELECT
                source,
                device_id,
                if($phone IS NULL, NULL, channel_id) AS channel_id,
                count(*) AS attempted,
                count(*) FILTER (is_ended) AS ended,
                count(*) FILTER (NOT is_ended) AS open,
                count(*) FILTER (outcome = 'delivered') AS delivered,
                max(last_seen_at) AS last_seen_at,
                mode(CASE WHEN outcome = 'expired' THEN outcome ELSE failure_class END ORDER BY failure_class)
                    AS top_failure,
                rates(attempted, ended, delivered, open) AS rates
            FROM chosen
            GROUP BY ALL
        ),
        named AS (
            SELECT source, device_id, channel_id, ended, delivered FROM counted WHERE device_id IS NOT NULL
        )
        SELECT
            counted.source, counted.device_id, counted.channel_id, attempted, ended, delivered, rates.open_share,
            last_seen_at, top_failure,
            sum(delivered) OVER () / nullif(sum(ended) OVER (), 0) AS fleet_rate,
            rates.delivered_per_ended AS rate,
            rates.delivered_per_ended_low AS low,
            rates.delivered_per_ended_high AS high,
            chance,
            coalesce(is_failing, false) AS is_failing,
            concat(
                coalesce('phone ' || counted.device_id, 'no phone named'), ', channel ' || counted.channel_id,
                ' (', counted.source, ')'
            ) AS phone
        FROM counted
        LEFT JOIN (
            SELECT source, device_id, channel_id, chance, is_failing FROM judge_devices('named')
        ) AS judged
            ON judged.source = counted.source AND judged.device_id = counted.device_id
            AND judged.channel_id IS NOT DISTINCT FROM counted.channel_id
        QUALIFY $phone IS NULL OR counted.device_id = $phone
        ORDER BY is_failing DESC, high NULLS LAST, counted.source, counted.device_id, counted.channel_id
        """,
        replace(choice, device=None),
        phone=choice.device,
    )
    return choice, devices


@app.cell(hide_code=True)
def _(choice, devices):
    failing = devices[devices["is_failing"]]
    phones = devices[devices["device_id"].notna() & (devices["ended"] > 0)]

    def _describe_phone(row):
        cause = f", failures mostly `{row.top_failure}`" if isinstance(row.top_failure, str) else ""
        return (
            f"of its {row.ended:,} ended attempts {row.rate:.1%} delivered the message "
            f"(95 % interval {row.low:.1%} to {row.high:.1%}){cause}; last seen {row.last_seen_at:%d %b %H:%M} UTC."
        )

    if phones.empty:
        verdict = f"No attempt of a phone has ended in the {choice.time_span}, so there is no result yet."
    elif len(failing):
        _worst, _more = failing.iloc[0], len(failing) - 1
        verdict = f"**Failing: {_worst.phone}**: {_describe_phone(_worst)} "
        verdict += f"The fleet delivered {_worst.fleet_rate:.1%} in the {choice.time_span}."
        verdict += f" {_more} more are failing, {failing.iloc[1].phone} next to it." if _more else ""
    elif len(phones) == 1 and choice.device is None:
        _worst = phones.iloc[0]
        verdict = f"There is one phone, and none to compare it with. **{_worst.phone}**: {_describe_phone(_worst)}"
    else:
        _worst = phones.iloc[0]
        verdict = (
            f"**No phone stands out.** Of the fleet's attempts that ended in the {choice.time_span}, "
            f"{_worst.fleet_rate:.1%} delivered the message. Lowest: {_worst.phone}: {_describe_phone(_worst)}"
        )
    return failing, verdict


@app.cell(hide_code=True)
def _(devices, verdict):
    _ended = devices[devices["ended"] > 0]
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
    # Distinguished by colour and by shape.
    _classes = ["failing", "others"]
    _color = alt.Scale(domain=_classes, range=common.ALARM_COLOURS)
    _shape = alt.Scale(domain=_classes, range=["triangle-down", "circle"])
    _base = alt.Chart(_frame).encode(
        color=alt.Color("verdict:N", scale=_color, legend=None),
        tooltip=[
            *("phone:N", "attempted:Q", "ended:Q", "delivered:Q"),
            alt.Tooltip("rate:Q", title="delivered / ended", format=".1%"),
            alt.Tooltip("low:Q", format=".1%"),
            alt.Tooltip("high:Q", format=".1%"),
            alt.Tooltip("open_share:Q", title="open share", format=".1%"),
        ],
    )
    _axis = alt.Axis(format=".0%", tickCount=5, gridOpacity=0.4, title="delivered / ended, with its 95 % interval")
    _intervals = _base.mark_rule(strokeWidth=3).encode(
        x=alt.X("low:Q", scale=alt.Scale(zero=False, domainMax=1), axis=_axis),
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
    )
    _cut = f" The {len(_shown)} lowest of {len(_ended)}." if len(_ended) > len(_shown) else ""
    _note = f"Dashed: the fleet. Triangle, orange: failing.{_cut} Times are UTC."
    _table = devices[["phone", "attempted", "rate", "open_share", "last_seen_at", "top_failure"]].set_axis(
        ["phone", "attempts", "delivered / ended", "open share", "last seen (UTC)", "mostly failed by"], axis=1
    )
    pieces = [
        verdict,
        *([_chart, _note] if len(_ended) else []),
        _table,
        """
**How to read it.** The rows count attempts: a message that one phone failed to send and another one delivered is a
failure of the first and a delivery of the second. A phone is called failing when it fails more often than the other
phones of its source, beyond chance: of all phones called so, at most 5 % are expected to be well (Fisher's exact test,
Benjamini-Hochberg). Attempts under way are in no share: a phone that died shows by *open share* and *last seen*. Choose
a device to see its channels, the SIM cards, next to the fleet.
""",
    ]
    common.show_pieces(pieces)
    return (pieces,)


if __name__ == "__main__":
    app.run()
