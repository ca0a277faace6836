"""What stats says of completeness, scores and the quarantine."""

from dataclasses import replace

from counterplay.core.nouns import Call, Completeness, LoggedScore, Message, Outcome, Source, Step, Trace, Trajectory
from counterplay.core.records import Rejected
from counterplay.core.store import Store


def logged(name, *, source="otlp", dialect="", whole=Completeness(), calls=(), scores=()):  # noqa: B008
    steps = tuple(Step(Message.assistant(f"{i}"), (Message.user("on"),)) for i in range(3))
    trajectory = Trajectory((), (Message.user(name),), steps)
    return Trace(name, trajectory, Source(source, dialect=dialect), completeness=whole, calls=calls, scores=scores)


WORST = Completeness("none", False, False, 7, True, True, "partial", 2, ("cut",))


def test_completeness_by_format_of_traces_and_calls():
    calls = (Call(0), Call(1, completeness=Completeness("stitched")), Call(2, completeness=WORST))
    with Store.open(":memory:") as store:
        store.ingest([logged("a", dialect="x", whole=WORST, calls=calls), logged("b", dialect="x"), logged("c", source="chat")])
        store.ingest([logged("c", source="chat", whole=Completeness(notes=("cut",)))])
        stats = store.stats()
    held = {(row.of, row.format, row.dialect): row for row in stats.completeness}
    assert set(held) == {("traces", "otlp", "x"), ("traces", "chat", ""), ("calls", "otlp", "x")}
    traces, calls_ = held["traces", "otlp", "x"], held["calls", "otlp", "x"]
    assert (traces.count, traces.inputs, traces.outputs) == (
        2,
        {"full": 1, "stitched": 0, "partial": 0, "none": 1},
        {"full": 1, "stitched": 0, "partial": 1, "none": 0},
    )
    assert (calls_.count, calls_.inputs["stitched"], calls_.inputs["none"], calls_.outputs["full"]) == (3, 1, 1, 2)
    for row in (traces, calls_):
        lost = (row.count - row.tools_known, row.count - row.system_prompt_known, row.dropped_attributes, row.truncated)
        assert (*lost, row.redacted, row.open_spans) == (1, 1, 7, 1, 1, 2)
    assert held["traces", "chat", ""].count == 1, "a superseded revision does not count"
    assert stats.notes == {"cut": 2}


def test_scores_by_name_and_source():
    scores = (
        LoggedScore.of("good", True, source="human"),
        LoggedScore.of("good", 0.5, source="human", step=1),
        LoggedScore("good", "fine", source="judge"),
    )
    with Store.open(":memory:") as store:
        store.ingest([logged("a", scores=scores), logged("b", scores=scores[:1])])
        found = [(s.name, s.source, s.traces, s.steps, s.scaled, s.mean) for s in store.stats().logged_scores]
    assert found == [("good", "human", 2, 1, 3, 2.5 / 3), ("good", "judge", 1, 0, 0, None)]


def test_reasons_that_differ_in_a_place_only_are_one():
    reasons = [
        "got 'a.json' of 12 bytes; wanted JSON",
        "got 'b c.json' of 9,000 bytes; wanted JSON",
        "can't read /data/x/y.jsonl at line 7",
        "can't read C:\\logs\\z.jsonl at line 19",
        "span 00f067aa0ba902b7 has no end",
        "span 00f067aa0ba902b8 has no end",
        "no role",
        "it isn't what 'x' can't be",
    ]
    with Store.open(":memory:") as store:
        store.ingest([Rejected(f"f\udc80{i}", reason, i or None) for i, reason in enumerate(reasons)])
        stats = store.stats()
    assert stats.quarantine == {
        "can't read … at line N": 2,
        "got … of N bytes; wanted JSON": 2,
        "span N has no end": 2,
        "it isn't what … can't be": 1,
        "no role": 1,
    }
    assert {group.where for group in stats.quarantined} == {"f\udc800", "f\udc802:2", "f\udc804:4", "f\udc806:6", "f\udc807:7"}


def test_a_run_that_was_only_paid_has_succeeded_where_it_was_paid_in_full():
    outcomes = {"paid": Outcome(1.0), "half": Outcome(0.5), "said": Outcome(0.2, success=True), "denied": Outcome(1.0, success=False)}
    with Store.open(":memory:") as store:
        report = store.ingest([replace(logged(name), outcome=outcome) for name, outcome in {**outcomes, "silent": Outcome()}.items()])
        assert (report.succeeded, report.failed, report.unknown) == (2, 2, 1)
        assert store.stats().outcomes == {"success": 2, "failed": 2, "unknown": 1}
        held = {success: [row.id for row in store.traces(success=success)] for success in (True, False, None)}
    assert held == {True: ["paid", "said"], False: ["half", "denied"], None: ["silent"]}


def test_of_a_trace_that_comes_in_several_revisions_the_current_one_counts():
    early, late = logged("t"), replace(logged("t"), outcome=Outcome(1.0))
    other = replace(logged("u"), outcome=Outcome(0.0))
    for batch in (1, 256):
        with Store.open(":memory:") as store:
            report = store.ingest([early, other, late, late], batch=batch)
            assert (report.succeeded, report.failed, report.unknown) == (1, 1, 0)
            assert store.stats().outcomes == {"success": 1, "failed": 1, "unknown": 0}
            again = store.ingest([early, other, late], batch=batch)
            assert (again.traces_known, again.succeeded, again.failed, again.unknown) == (3, 1, 1, 0)
            denied = [replace(late, outcome=Outcome(1.0, success=bool(seen % 2)), metadata={"seen": seen}) for seen in range(3)]
            report = store.ingest(denied, batch=batch)
            assert (report.traces_updated, report.succeeded, report.failed, report.unknown) == (3, 0, 1, 0)


def test_a_beginning_of_what_is_held_does_not_count():
    end = Step(Message.assistant("bye"), terminated=True)
    whole = replace(logged("t"), outcome=Outcome(1.0))
    longer = replace(whole, trajectory=replace(whole.trajectory, steps=(*whole.trajectory.steps, end)))
    with Store.open(":memory:") as store:
        report = store.ingest([longer, replace(logged("t"), outcome=Outcome(0.0))])
        assert (report.traces_added, report.traces_updated) == (1, 1)
        assert (report.succeeded, report.failed, report.unknown) == (1, 0, 0)
        assert store.trace("t") == longer
