"""First steps in SQL. Shown by `marimo run notebooks/first_steps.py`; `marimo edit` changes it."""

# marimo ends each cell with a return.
# ruff: noqa: PLR1711

# /// script
# [tool.marimo.display]
# theme = "system"
# ///

import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="smspulse: first steps")

with app.setup(hide_code=True):
    from textwrap import dedent

    import duckdb
    import marimo as mo

    from notebooks import common
    from warehouse.reader import query


@app.cell(hide_code=True)
def _():
    question = "First steps in SQL"
    data, problem, _ = common.open_notebook()
    common.show_header(question, problem)
    return data, problem, question


@app.cell(hide_code=True)
def _(data, problem):
    mo.stop(bool(problem))
    # Each a question and its SQL. None shows a number or a text of a person.
    _lessons = {
        "What became of the messages?": """
            SELECT outcome, count(*) AS messages
            FROM messages
            GROUP BY outcome
            ORDER BY messages DESC, outcome
        """,
        "Which phones deliver least?": """
            SELECT source, device_id, attempted, delivered_per_ended, delivered_per_ended_low, delivered_per_ended_high
            FROM delivery_by_device
            ORDER BY delivered_per_ended_high NULLS LAST, source, device_id
            LIMIT 10
        """,
        "How is it from day to day?": """
            SELECT source, day, attempted, delivered_per_ended, open_share
            FROM delivery_daily
            ORDER BY day, source
        """,
        "Why do attempts fail?": """
            SELECT failure_class, sum(attempts)::BIGINT AS attempts
            FROM failure_reasons
            GROUP BY ALL
            ORDER BY attempts DESC, failure_class
        """,
        "How far do they get?": """
            SELECT stage, sum(messages)::BIGINT AS messages
            FROM funnel
            GROUP BY place, stage
            ORDER BY place
        """,
        "What was reported of one message?": """
            SELECT message_key, status_id, status_message, received_at
            FROM status_events
            WHERE message_key = (SELECT max(message_key) FROM status_events)
            ORDER BY received_at, status_id
        """,
        "How fresh is it?": """
            SELECT dataset, rows, newest_recorded_at
            FROM freshness
            ORDER BY dataset
        """,
    }
    lessons = {_question: dedent(_sql).strip() for _question, _sql in _lessons.items()}
    answers = {_question: query(data, _sql) for _question, _sql in lessons.items()}
    verdict = f"The warehouse holds {answers['What became of the messages?']['messages'].sum():,} messages."
    pieces = [f"**{verdict}** Every view is in the data dictionary; any DuckDB opens `smspulse.duckdb`, too."]
    for _question, _frame in answers.items():
        pieces += [f"## {_question}\n```sql\n{lessons[_question]}\n```", _frame]
    common.show_pieces(pieces)
    return answers, lessons, pieces, verdict


@app.cell(hide_code=True)
def _(lessons):
    editor = mo.ui.code_editor(lessons["What became of the messages?"], language="sql", min_height=120)
    run_button = mo.ui.run_button(label="Run")
    mo.vstack([mo.md("## Your own"), editor, run_button])
    return editor, run_button


@app.cell(hide_code=True)
def _(data, editor, run_button):
    mo.stop(not run_button.value)
    try:
        _shown = mo.ui.table(query(data, editor.value), selection=None)
    except duckdb.Error as _error:
        _shown = mo.callout(mo.md(f"```\n{_error}\n```"), kind="warn")
    mo.vstack([_shown])
    return


if __name__ == "__main__":
    app.run()
