"""Tables on narrow terminals: ids stay whole, nothing is cut off, nothing is wider than the terminal."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from counterplay import console, wrapping
from counterplay.commands.costs import _shown
from counterplay.core.store.ledger import Costs, Spent
from counterplay.core.store.rows import Stats
from counterplay.views import held

JOB, TRACE = "nightly-3e964aa0b1", "15362fd6435f68b5d26450e0ca222165"
TEXTS = st.text("abc-/_. é0表", max_size=70)


@pytest.fixture
def printed(monkeypatch):
    """What a terminal of some width shows, by line."""

    def of(make, width=80):
        monkeypatch.setattr(console, "out", Console(width=width, color_system=None))
        with console.out.capture() as seen:
            for part in make():
                console.out.print(part)
        return seen.get().splitlines()

    return of


def line(key):
    return Costs(key, Spent(5822, 1_032_792, 41_446, 0, 12.25), Spent(156, 115_988, 1_092, 0, 0.126908), Spent(156), {"lost": 3.0}, "usd=5")


@pytest.mark.parametrize("by", ["job", "trace", "model"])
def test_costs_fit_eighty_columns_with_whole_ids(printed, by):
    key = {"job": JOB, "trace": TRACE, "model": "claude-sonnet-4-5-20250929-FC"}[by]
    tables = [part for part in _shown(by, [line(key)], [line("all")]) if not isinstance(part, str)]
    shown = printed(lambda: [part for part in _shown(by, [line(key)], [line("all")]) if not isinstance(part, str)])
    assert max(map(len, shown)) <= 80
    assert sum(key in text for text in shown) == len(tables)
    words = {"115,988", "1,092", "0.1269", "5,822", "12.25", "paid", "tokens", "cached", "saved", "logged"}
    assert words <= {*re.findall(r"\S+", "\n".join(shown))}


def test_a_job_is_told_of_its_own_traces_and_the_store_of_all():
    job, model = (_shown(by, [line("k")], [line("all")]) for by in ("job", "model"))
    texts = [part for part in job if isinstance(part, str)]
    assert len(texts) == 1
    assert "whole store" in texts[0]
    assert not [part for part in model if isinstance(part, str)]


def test_columns_that_cannot_stand_side_by_side_are_listed(printed):
    columns, row = ["first", "second", "third"], [TRACE, TRACE[::-1], "x" * 30]
    shown = printed(lambda: [console.table("ids", columns, [row])], width=60)
    assert max(map(len, shown)) <= 60
    assert [text.split() for text in shown if text.strip()][1:] == [list(pair) for pair in zip(columns, row, strict=True)]


def test_a_long_path_is_broken_behind_a_mark(printed):
    path = "logs/mini-swe-agent/logs__run_evaluation__deepseek_bench_eval__deepseek__deepseek-chat__pylint__report.json"
    shown = printed(lambda: [console.table("", ["inputs", "reason", "for example"], [(8, "a report " * 20, path)])])
    pieces = [text[text.rindex("   ", 0, len(text.rstrip())) :].strip() for text in shown if "/" in text or "__" in text]
    assert "".join(pieces) == path
    assert all(piece[-1] in "/_-." for piece in pieces[:-1])


def test_brackets_are_no_markup(printed):
    assert any("[red]a[/red]" in text for text in printed(lambda: [console.table("", ["x"], [("[red]a[/red]",)])]))
    assert any("[red]a[/red]" in text for text in printed(lambda: [console.facts({"x": {"y": "[red]a[/red]"}})]))


@given(TEXTS, st.integers(1, 60))
def test_folding_loses_nothing_but_spaces(text, width):
    lines = wrapping.folded(text, width).split("\n")
    assert "".join("".join(lines).split()) == "".join(text.split())
    assert all(cell_len(line) <= max(width, wrapping.least(text)) for line in lines)


@given(st.lists(st.lists(TEXTS, min_size=1, max_size=4), min_size=1, max_size=5), st.integers(1, 120))
def test_columns_fit_or_are_told_not_to(columns, width):
    found = wrapping.widths(columns, width)
    low = [max(map(wrapping.least, column)) for column in columns]
    assert (found is None) == (sum(low) > width and sum(max(map(cell_len, column)) for column in columns) > width)
    if found is not None:
        assert sum(found) <= width
        assert all(given >= least for given, least in zip(found, low, strict=True))


def test_what_is_held_is_not_said_to_differ_where_more_is_held_than_there_is(printed):
    plain = printed(lambda: held(Stats(traces=1, revisions=1, messages=10, nodes=8), None))
    assert any("10, of which 8 differ" in text for text in plain)
    searched = printed(lambda: held(Stats(traces=1, revisions=2, messages=10, nodes=12, searches=3, search_nodes=20), None), width=200)
    (about,) = (text for text in searched if text.startswith("messages"))
    assert "differ" not in about.replace("different", "")
    assert "12 different ones held, those of older revisions and searches among them" in about
    assert any("0 finished branches that are in no log" in text for text in searched)
