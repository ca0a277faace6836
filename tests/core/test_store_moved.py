"""A log that was moved holds nothing new; one that says more is a revision, wherever it lies."""

from dataclasses import replace
from itertools import permutations

import pytest

from counterplay.core.nouns import Message, Outcome, Source, Step, Trace, Trajectory
from counterplay.core.store import Store


def logged(uri, line=1, *, steps=2, dialect="", **changes):
    taken = tuple(Step(Message.assistant(f"{i}"), (Message.user("on"),)) for i in range(steps))
    return replace(Trace("a", Trajectory((), (Message.user("go"),), taken), Source("chatlog", uri, line, dialect)), **changes)


def counted(report):
    return report.traces_added, report.traces_known, report.traces_updated


PLACES = [("logs/today.jsonl", 1), ("logs/2026-11-21.jsonl", 7), ("other/\udcff.jsonl", None)]


@pytest.mark.parametrize("order", list(permutations(PLACES)))
def test_a_trace_that_is_read_elsewhere_is_known_and_of_the_first_place_by_name(order):
    with Store.open(":memory:") as store, Store.open(":memory:") as alone:
        alone.ingest([logged(*PLACES[1])])
        store.ingest([logged(*order[0])])
        for place in (*order[1:], *order):
            assert counted(store.ingest([logged(*place)])) == (0, 1, 0)
        assert store.content_digest() == alone.content_digest()
        assert (store.stats().revisions, store.traces()[0].uri) == (1, PLACES[1][0])
        assert store.verify() == []


def test_a_place_whose_name_is_no_text_is_known_too():
    with Store.open(":memory:") as store:
        store.ingest([logged("other/\udcff.jsonl", line=None)])
        assert counted(store.ingest([logged("json:here")])) == (0, 1, 0)


def test_what_says_more_elsewhere_is_a_revision_and_each_is_known_again():
    with Store.open(":memory:") as store:
        store.ingest([logged("a")])
        assert counted(store.ingest([logged("b", steps=3)])) == (0, 0, 1)
        judged = logged("b", outcome=Outcome(1.0, True, "harness"), steps=3)
        assert counted(store.ingest([judged])) == (0, 0, 1)
        for again in (logged("c"), logged("c", steps=3), replace(judged, source=Source("chatlog", "c", 2))):
            assert counted(store.ingest([again])) == (0, 1, 0)
        assert store.stats().revisions == 3
        assert next(iter(store.load())).outcome.success


def test_another_dialect_is_no_other_place():
    with Store.open(":memory:") as store:
        store.ingest([logged("a")])
        assert counted(store.ingest([logged("a", dialect="calls")])) == (0, 0, 1)
