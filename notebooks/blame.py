"""The phone, the SIM card or the network? Shown by `marimo run notebooks/blame.py`; `marimo edit` changes it."""

# marimo ends each cell with a return.

# /// script
# [tool.marimo.display]
# theme = "system"
# ///

import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="smspulse: what is to blame")

with app.setup(hide_code=True):
    import altair as alt
    import pandas as pd

    from notebooks import common
    from warehouse.reader import query


@app.cell(hide_code=True)
def _():
    question = "The phone, the SIM card or the network?"
    data, problem, picked = common.open_notebook(days=30, places=("source",))
    common.show_header(question, problem, picked)
    return data, picked, problem, question


@app.cell(hide_code=True)
def _(data, picked):
    choice = common.read_choice(picked)
    routes = query(
        data,
        """
        WITH outgoing AS (
            FROM routes_daily WHERE day <= $until::DATE AND ($source IS NULL OR source = $source)
        ),
        chosen AS (
            SELECT
                source, device_id, channel_id, country, network_prefix, carrier,
                sum(delivered)::BIGINT AS delivered,
                sum(failed)::BIGINT AS failed
            FROM outgoing
            WHERE day > (SELECT max(day) FROM outgoing) - $days::INTEGER
            GROUP BY ALL
        )
        SELECT
            *,
            concat('phone ', device_id) AS phone,
            concat('phone ', device_id, ', channel ', coalesce(channel_id::VARCHAR, '?')) AS card,
            concat(
                'network ', coalesce(nullif(concat_ws(' ', country, carrier, '+' || network_prefix), ''), 'unknown')
            ) AS network
        FROM blame_routes('chosen')
        ORDER BY failed DESC, source, device_id, channel_id, network
        """,
        {"until": choice.until, "days": choice.days, "source": choice.source},
    )
    return choice, routes


@app.cell(hide_code=True)
def _(routes):
    # A row for each phone, SIM card and network of a source: its name, its failures and its ratio.
    _parts = []
    for _kind, _ratio, _name in (
        ("phone", "phone_ratio", "phone"),
        ("SIM card", "sim_ratio", "card"),
        ("network", "network_ratio", "network"),
    ):
        _grouped = routes[routes[_ratio].notna()].groupby(["source", _name], as_index=False, dropna=False)
        _part = _grouped.agg(
            failed=("failed", "sum"),
            ended=("ended", "sum"),
            ratio=(_ratio, "first"),
            low=(f"{_ratio}_low", "first"),
            high=(f"{_ratio}_high", "first"),
            causes=("cause", lambda found: set(found.dropna())),
        )
        _part["name"] = _part[_name].astype(str) + " (" + _part["source"] + ")"
        _part["is_blamed"] = [
            _kind in causes or ("phone or SIM card" in causes and _kind == "phone") for causes in _part["causes"]
        ]
        _parts.append(_part.assign(kind=_kind).drop(columns=[_name, "causes"]))
    entities = pd.concat(_parts).sort_values(["is_blamed", "low"], ascending=False, ignore_index=True)
    return (entities,)


@app.cell(hide_code=True)
def _(choice, entities, routes):
    _blamed = entities[entities["is_blamed"]]
    _unclear = routes[routes["cause"] == "unclear"]

    def _describe(row):
        return (
            f"{row.name_}: {row.failed:,} of {row.ended:,} attempts failed, {row.ratio:.1f} times as "
            f"many as usual (at least {row.low:.1f})"
        )

    _lines = [_describe(_row) for _row in _blamed.rename(columns={"name": "name_"}).itertuples()]
    if routes.empty:
        verdict = f"No attempt was delivered or failed in the {choice.time_span}, so there is no result yet."
    elif _lines:
        verdict = "**To blame:**\n\n" + "\n".join(f"- {_line}" for _line in _lines)
    else:
        verdict = "**Nothing stands out.** No phone, SIM card or network fails more often than the others explain."
    if len(_unclear):
        verdict += f"\n\nOf {len(_unclear)} routes, the numbers cannot tell whether the phone or the network fails."
    return (verdict,)


@app.cell(hide_code=True)
def _(entities, routes, verdict):
    _shown = entities.head(25).assign(
        verdict=lambda frame: frame["is_blamed"].map({True: "to blame", False: "others"}),
    )
    _classes = ["to blame", "others"]
    _base = alt.Chart(_shown).encode(
        y=alt.Y("name:N", sort=None, title=None, axis=alt.Axis(labelLimit=330)),
        color=alt.Color(
            "verdict:N", scale=alt.Scale(domain=_classes, range=common.ALARM_COLOURS), legend=alt.Legend(title=None)
        ),
        tooltip=["name:N", "failed:Q", "ended:Q", alt.Tooltip("ratio:Q", format=".2f")],
    )
    _axis = alt.X(
        "low:Q", scale=alt.Scale(type="log"), title="failures over usual failures, with its interval (1 is usual)"
    )
    _chart = (
        alt.Chart(pd.DataFrame({"usual": [1]})).mark_rule(strokeDash=[5, 4], color="#808080").encode(x="usual:Q")
        + _base.mark_rule(strokeWidth=3).encode(x=_axis, x2="high:Q")
        + _base.mark_point(filled=True, size=90, opacity=1).encode(
            x="ratio:Q",
            shape=alt.Shape(
                "verdict:N", scale=alt.Scale(domain=_classes, range=["triangle-down", "circle"]), legend=None
            ),
        )
    ).properties(width=420, height=alt.Step(22))
    _table = routes[["source", "card", "network", "ended", "failed", "cause"]].head(200)
    _cut = f" The {len(_shown)} first of {len(entities)}." if len(entities) > len(_shown) else ""
    pieces = [
        verdict,
        *([_chart, f"Dashed: usual. Triangle, orange: to blame.{_cut}"] if len(entities) else []),
        _table,
        """
**How to read it.** Attempts that were delivered or failed. A phone is compared with the other phones on the
same networks, a SIM card with the other cards of its phone, a network with the other networks of the same cards. So a
broken phone does not accuse the network, nor a network its phones. The method is on the page *The phone, the SIM card
or the network?* of the documentation.
""",
    ]
    common.show_pieces(pieces)
    return (pieces,)


if __name__ == "__main__":
    app.run()
