"""The report says what each figure is."""

from dataclasses import fields

from counterplay.jobs.report import Report, markdown


def test_every_figure_of_a_model_says_what_it_is():
    empty = {field.name: {} for field in fields(Report) if field.name in ("states", "budget", "improved", "solved", "notes", "failures")}
    figures = {"model_calls": 71, "tokens": 9, "usd": 0.5, "calls": 23, "lost": 2, "own_figure": 1}
    report = Report(
        "j-1", "j", "", **empty, reasons=[], used={"model_calls": 71}, models={"openai:m": figures}, searches=0, datasets=[],
        settled_before=0, live_calls=23, seconds=1.0,
    )  # fmt: skip
    rows = {cells[2]: cells[4] for line in markdown(report).splitlines() if len(cells := [cell.strip() for cell in line.split("|")]) == 6}
    assert "charged" in rows["model_calls"]
    assert "answered" in rows["calls"]
    assert "sent" in rows["lost"]
    assert rows["own_figure"] == ""
