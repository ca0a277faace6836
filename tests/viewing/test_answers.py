"""The answers of the viewer's API: each of the shape that the contract says, and right."""

import json
import re
import time
from dataclasses import replace

import pytest

from counterplay.core.errors import UserError
from counterplay.core.nouns import Message, Score, Step, ToolCall
from counterplay.core.store import Store
from counterplay.core.store.viewing import TraceIndex, Wanted, pattern_of
from counterplay.viewing.answers import Answers
from counterplay.viewing.asking import MissingError
from counterplay.viewing.conversation import matched
from counterplay.viewing.opening import answering
from counterplay.viewing.page import as_json
from tests.viewing.contract import complaint
from tests.viewing.made import HOSTILE, make_folders, make_store


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("viewed")
    make_folders(root, make_store(root / "s.duckdb"))
    return root


@pytest.fixture(scope="module")
def answers(place):
    with answering(place / "s.duckdb") as made:
        yield made


def ask(answers, path, **given):
    return json.loads(as_json(answers.answer(path, {name: str(value) for name, value in given.items()})))


QUESTIONS = {
    "meta": "Meta",
    "traces": "TraceList",
    "facets": "Facets",
    "traces/trace-0": "TraceDetail",
    "searches": "SearchList",
    "searches/search-trace-0": "Tree",
    "failures": "Failures",
    "datasets": "DatasetList",
    "datasets/sft": "DatasetDetail",
    "datasets/sft/drops": "DropList",
    "datasets/dpo/rows": "DatasetRows",
    "datasets/sft/rows/train/0": "RowDetail",
    "datasets/dpo/rows/train/0": "RowDetail",
    "verifiers": "VerifierReports",
    "training": "Training",
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_every_answer_is_of_its_type(answers, question):
    answer = ask(answers, question)
    if question == "verifiers":  # what is not shown is passed through
        for report in answer["reports"]:
            for evaluation in report["evaluations"]:
                del evaluation["ternary"]
    if question == "training":
        for evaluation in answer["evaluations"]:
            for policy in evaluation["policies"]:
                for name in ("successes", "pass_intervals", "steps_per_success"):
                    del policy[name]
            for comparison in evaluation["comparisons"]:
                del comparison["ends"], comparison["failures"]
    assert complaint(answer, QUESTIONS[question]) is None


def test_nodes_are_of_their_type(answers):
    assert complaint(ask(answers, "searches/search-trace-0/nodes", index="0,3"), "NodeDetails") is None


def test_the_check_of_types_can_fail():
    assert complaint({"value": "a", "count": "1"}, "Facet") == "$.count: got '1', wanted number"
    assert complaint({"value": "a"}, "Facet") == "$: got [] too many, ['count'] missing"
    assert complaint("somewhat", "Grade") is not None


def test_a_window_of_the_list_has_its_place_and_all_are_counted(answers):
    whole = ask(answers, "traces")
    assert (whole["total"], len(whole["rows"]), whole["text_search"]) == (12, 12, None)
    window = ask(answers, "traces", offset=4, limit=3)
    assert window["total"] == 12
    assert [row["id"] for row in window["rows"]] == ["trace-4", "trace-5", "trace-6"]
    assert ask(answers, "traces", offset=50)["rows"] == []


@pytest.mark.parametrize(
    ("filters", "ids"),
    [
        ({"outcome": "success"}, [2, 5, 8, 11]),
        ({"agent": "clerk"}, [0, 4, 8]),
        ({"task": "book-1", "outcome": "failed"}, [1, 9]),
        ({"tag": HOSTILE[2], "outcome": "success"}, [5, 11]),
        ({"tag": ""}, [0, 2, 4, 6, 8, 10]),
        ({"failing": "no"}, [2, 5, 8, 11]),
        ({"min_cost": 0.029, "max_cost": 0.031}, [9]),
        ({"min_cost": 3 * (0.001 * 10), "max_cost": 3 * (0.001 * 10)}, [9]),
        ({"id": "trace-1"}, [1, 10, 11]),
        ({"id": "s4"}, [8, 9]),
        ({"source": "other"}, []),
    ],
)
def test_filters(answers, filters, ids):
    assert [row["id"] for row in ask(answers, "traces", **filters)["rows"]] == [f"trace-{number}" for number in ids]


def test_order(answers):
    costly = ask(answers, "traces", sort="cost", order="desc", limit=2)["rows"]
    assert [row["id"] for row in costly] == ["trace-11", "trace-10"]
    failing = [row["failing_step"] for row in ask(answers, "traces", sort="failing", order="desc")["rows"]]
    assert failing == [1] * 8 + [None] * 4  # those without one are last either way
    with pytest.raises(UserError, match="sort"):
        answers.answer("traces", {"sort": "number; DROP TABLE trace"})


@pytest.mark.parametrize("text", ["as run 7", "AS RUN 7.", '{"balance": 3}', HOSTILE[3], "\u2028separator", "\\d", "(1200"])
def test_text_is_found_in_messages_as_it_reads(answers, text):
    deadline = time.monotonic() + 20
    while not (found := ask(answers, "traces", text=text))["text_search"]["done"] and time.monotonic() < deadline:
        time.sleep(0.01)
    wanted = {"as run 7": 1, "AS RUN 7.": 1, '{"balance": 3}': 12, HOSTILE[3]: 2, "\u2028separator": 1}
    assert found["total"] == wanted.get(text, 0)


def test_a_text_is_spelled_as_json_spells_it():
    assert pattern_of("a.b") == r"a\.b"
    for text in ('é"', "a\\b\n", "a|b(c)*", "\u2028"):
        for ascii_only in (True, False):
            once = json.dumps({"content": text}, ensure_ascii=ascii_only)
            assert re.search(pattern_of(text), once)
            assert re.search(pattern_of(text), json.dumps(once, ensure_ascii=False))
            assert not re.search(pattern_of(text + "x"), once)


def test_facets_are_counted_under_the_other_filters(answers):
    facets = ask(answers, "facets", outcome="failed", task="book-0")
    assert facets["total"] == 2
    assert {each["value"]: each["count"] for each in facets["outcome"]} == {"failed": 2, "success": 1}
    assert {each["value"]: each["count"] for each in facets["task"]} == {"book-0": 2, "book-1": 2, "book-2": 2, "book-3": 2}
    assert facets["cost"] == {"min": pytest.approx(0.003), "max": pytest.approx(0.036)}


def test_a_trace_has_calls_beside_results_and_what_was_said_of_each_step(answers):
    detail = ask(answers, "traces/trace-1")
    steps = detail["trajectories"][0]["steps"]
    assert [(step["calls"][0]["name"], step["calls"][0]["result"]["is_error"]) for step in steps[:2]] == [
        ("look_up", False),
        ("post", True),
    ]
    assert [step["failing"] for step in steps] == ["", "tool error of post", ""]
    assert (steps[1]["value"], steps[0]["call"]["input_tokens"]) == (0.2, 100)
    assert steps[1]["call"]["cost_usd"] == pytest.approx(0.002)
    assert detail["searches"][0]["best"] == 1.0
    assert [score["name"] for score in detail["scores"]] == ["helpful"]


def test_a_sub_agent_hangs_on_its_step_and_verifiers_opinions_on_states(answers):
    detail = ask(answers, "traces/trace-0")
    assert [(each["agent"], each["parent_step"]) for each in detail["trajectories"]] == [("clerk", None), ("checker", 1)]
    said = {(score["name"], score["value"]) for score in detail["trajectories"][0]["steps"][1]["scores"]}
    assert said == {("books", 0.25)}
    assert ("books", 0.0) in {(score["name"], score["value"]) for score in detail["trajectories"][0]["steps"][2]["scores"]}


def test_a_tree_in_columns_is_the_tree(answers):
    tree = ask(answers, "searches/search-trace-1")
    nodes = tree["nodes"]
    assert nodes["parent"] == [-1, 0, 1, 0, 3, 0, 5, 0]
    assert nodes["depth"] == [0, 1, 2, 1, 2, 1, 2, 1]
    assert nodes["best_below"] == [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    assert (tree["logged_tip"], tree["best"], tree["root_steps"]) == (2, 4, 1)
    assert [flags & 1 for flags in nodes["flags"]] == [0, 1, 1, 0, 0, 0, 0, 0]
    assert [bool(flags & 16) for flags in nodes["flags"]] == [True, False, False, True, True, False, False, False]
    assert [bool(flags & 4) for flags in nodes["flags"]][-1]
    assert nodes["action"][3] == "post(amount=3)"
    assert {len(column) for column in nodes.values()} == {8}
    assert tree["verifiers"] == ["books@2"]
    details = ask(answers, "searches/search-trace-1/nodes", index="0,4")["nodes"]
    assert [step["index"] for step in details[0]["root"]["steps"]] == [0]
    assert (details[1]["step"]["index"], details[1]["step"]["scores"][0]["comment"]) == (2, "balance 3")


def test_failures_are_where_a_better_way_left_the_log_else_where_a_score_fell_or_a_tool_failed(answers):
    found = ask(answers, "failures")
    assert (found["traces"], found["failed"], found["located"]) == (12, 8, 8)
    assert found["found_by"] == {"search": 2, "step score": 3, "tool error": 3}
    (post,) = found["by_tool"]
    assert (post["name"], post["count"], post["of"], post["high"]) == ("post", 8, 8, 1.0)
    assert post["low"] == pytest.approx(0.6756, abs=1e-3)
    assert post["examples"][0] == {
        "trace": "trace-0",
        "task": "book-0",
        "step": 1,
        "search": "search-trace-0",
        "why": "another way on from here ended with score 1.00",
    }
    assert {(group["name"], group["count"], group["of"]) for group in found["by_agent"]} == {("ledger", 6, 9), ("clerk", 2, 3)}
    assert [group["name"] for group in found["by_class"]] == ["wrong end state"]
    assert ask(answers, "failures", agent="clerk")["traces"] == 3


def test_of_several_ways_out_the_last_step_counts(tmp_path):
    from counterplay.search.tree import SearchTree
    from tests.viewing.made import act, search, trace

    logged = trace(1, good=False)
    late = SearchTree.start(logged.trajectory.prefix(0), "mcts")
    first = late.add(late.root, logged.trajectory.steps[0], logged=True)
    second = late.add(first, logged.trajectory.steps[1], logged=True)
    end = late.add(second, Step(Message.assistant("Corrected."), terminated=True))
    end.score = Score(0.8, "", "books")
    early = late.add(late.root, act("post", "x", {"amount": 3}, "done", terminated=True))
    early.score = Score(1.0, "", "books")
    for order in (("a", "z"), ("z", "a")):
        path = tmp_path / f"{order[0]}.duckdb"
        with Store.open(path) as store:
            store.ingest([logged])
            for name in order:
                tree = late.to_record(name, trace=logged.id) if name == "z" else replace(search(logged), id=name)
                store.put_search(tree)
        with Store.open(path, read_only=True) as store:
            index = TraceIndex(store)
            assert index.better_steps() == {logged.id: (2, "z", 0.8)}
            index.close()


def test_results_stand_beside_their_calls_by_id_else_by_order():
    def answered(ids, results):
        step = Step(Message.assistant(None, [ToolCall(each, "f", "{}") for each in ids]), tuple(Message.tool(r, i) for i, r in results))
        found, followed = matched(step)
        return [each and each["text"] for each in found], [each["text"] for each in followed]

    assert answered(["a", "b"], [("b", "2"), ("a", "1")]) == (["1", "2"], [])
    assert answered(["a", "a"], [("a", "1"), ("a", "2"), ("a", "3")]) == (["1", "2"], ["3"])
    assert answered(["a", "b"], [("", "1"), ("c", "3")]) == (["1", None], ["3"])


def test_rows_say_what_is_trained_and_lead_back_to_the_tree(answers):
    detail = ask(answers, "datasets/sft/rows/train/0")
    assert [message["role"] for message in detail["sides"][0]["messages"] if message["trained"]] == ["assistant"] * 3
    assert detail["lineage"]["traces"] == [{"id": "trace-0", "held": True}, {"id": "elsewhere", "held": False}]
    pair = ask(answers, "datasets/dpo/rows/train/0")
    assert [side["name"] for side in pair["sides"]] == ["chosen", "rejected"]
    assert [[m["trained"] for m in side["messages"]] for side in pair["sides"]] == [[False] * 4 + [True]] * 2
    assert [m["shared"] for m in pair["sides"][0]["messages"]] == [True] * 4 + [False]
    assert [node["index"] for node in pair["lineage"]["nodes"]] == [0, 3, 1]
    assert pair["lineage"]["search_held"]
    assert ask(answers, "datasets/sft")["dropped"] == {"the logged run did not succeed": 1}
    assert ask(answers, "datasets/sft/drops", reason="other")["total"] == 0
    assert ask(answers, "datasets/dpo/rows", text="AMOUNT")["total"] == 1
    assert ask(answers, "datasets/dpo/rows", trace="trace-9")["total"] == 0


def test_reports_beside_the_store_are_found_and_long_metrics_thinned(answers):
    told = ask(answers, "training")
    steps = told["trainings"][0]["metrics"]["step"]
    assert (len(steps), steps[-1], set(told["trainings"][0]["metrics"])) == (834, 2500, {"step", "total", "loss"})
    assert [one["success"] for one in told["improvements"][0]["rounds"]] == [0.5, 0.6]
    counts = ask(answers, "meta")["counts"]
    assert counts == {
        "traces": 12,
        "searches": 2,
        "datasets": 2,
        "verifiers": 1,
        "trainings": 1,
        "improvements": 1,
        "evaluations": 1,
        "scalings": 1,
    }


MISSING = """/nothing traces/none traces/trace-0/more searches/none searches/search-trace-0/nodes/1 datasets/none datasets/sft/rows/x/0
    datasets/sft/rows/train/9 datasets/sft/rows/train/-1 datasets/../s.duckdb meta/x"""


@pytest.mark.parametrize("path", ["", *MISSING.split()])
def test_what_is_not_there_is_missing(answers, path):
    with pytest.raises(MissingError):
        answers.answer(path)


@pytest.mark.parametrize(
    "given", [{"offset": "-1"}, {"limit": "x"}, {"outcome": "good"}, {"min_cost": "nan"}, {"order": "up"}, {"failing": "1"}]
)
def test_questions_that_make_no_sense_are_refused(answers, given):
    with pytest.raises(UserError, match="got"):
        answers.answer("traces", given)


def test_a_node_beyond_the_tree_is_missing(answers):
    with pytest.raises(MissingError, match="no node 99"):
        answers.answer("searches/search-trace-0/nodes", {"index": "99"})
    with pytest.raises(UserError):
        answers.answer("searches/search-trace-0/nodes", {"index": "1,x"})


def test_ids_with_signs_of_urls_are_found(tmp_path):
    from tests.viewing.made import trace

    with Store.open(tmp_path / "s.duckdb") as store:
        store.ingest([replace(trace(1, good=True), id="a/b?c#d é%")])
        answers = Answers(store)
        assert answers.answer("traces/a%2Fb%3Fc%23d%20%C3%A9%25")["summary"]["id"] == "a/b?c#d é%"
        answers.close()


def test_an_empty_store_has_empty_answers(tmp_path):
    with Store.open(tmp_path / "s.duckdb") as store:
        answers = Answers(store)
        assert answers.answer("traces", {"text": "x"})["total"] == 0
        for question in ("traces", "facets", "searches", "failures"):
            assert complaint(json.loads(as_json(answers.answer(question))), QUESTIONS[question]) is None
        answers.close()


def test_the_store_is_only_read(place, answers):
    before = (place / "s.duckdb").read_bytes()
    for question in QUESTIONS:
        ask(answers, question)
    assert (place / "s.duckdb").read_bytes() == before
    with pytest.raises(Exception, match="read-only"):
        answers.index._connection.execute("DELETE FROM trace")


def test_orders_are_kept_for_scrolling_and_not_for_ever(place):
    with Store.open(place / "s.duckdb", read_only=True) as store:
        index = TraceIndex(store)
        for number in range(40):
            index.page(Wanted(task=f"t{number}"), 0, 1)
        assert len(index._orders) == 16
        index.close()
