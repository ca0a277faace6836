"""Evaluation plays real worlds; what the machinery broke is never counted against an agent."""

import asyncio
import json
import sys
from types import SimpleNamespace

import pytest

from counterplay import evaluation_kept, loop
from counterplay.core.errors import PolicyError, UserError
from counterplay.core.nouns import Message, Proposal, Score, ToolCall, Usage
from counterplay.core.protocols import first_draw
from counterplay.evaluation import evaluate, named_policies, play_tasks, tables, tasks_from_spec
from counterplay.evaluation_shown import markdown
from counterplay.examples.ledger import Ledger

TASKS = [f"heldout-{i:04d}" for i in range(1, 41)]


class Closer:
    """Closes at once, which is never right; fails on the tasks it is told to fail on."""

    def __init__(self, fails=()):
        self.fails = {Ledger(task).prompt[-1].wire for task in fails}

    async def propose(self, state, n):
        if state.prompt[-1].wire in self.fails:
            raise PolicyError("the server answered 500")
        return [Proposal(Message.assistant(None, [ToolCall("c", "close_period", "{}")]))] * n


class Sometimes:
    """In a `Door`: opens it on the draws it is told, else knocks until the step limit; each call costs a cent."""

    def __init__(self, *draws):
        self.draws = draws

    async def propose(self, state, n):
        assert n == 1
        draw = first_draw.get() if not state.steps else 99
        said = "open" if draw in self.draws else f"knock {draw if not state.steps else state.steps[0].action.content_text[-1]}"
        return [Proposal(Message.assistant(said), logprob=-0.5, usage=Usage(10, 1, cost_usd=0.01), model="door-1")]


class Door:
    """Ends when told to open; answers everything else."""

    tools = ()

    def __init__(self, task):
        self.prompt = (Message.user(f"open door {task}"),)
        self.done, self.reward = False, 0.0

    def reply(self, action):
        self.done = action.content_text == "open"
        self.reward = float(self.done)
        return [] if self.done else [Message.user("who is there?")]

    def call(self, name, arguments):
        raise AssertionError(name)


@pytest.fixture
def module(monkeypatch):
    held = SimpleNamespace(
        Door=Door,
        never=Sometimes(),
        first=Sometimes(0),
        later=Sometimes(1, 2),
        sound=Closer(),
        flaky=Closer(TASKS[3:4]),
        down=Closer(TASKS[:20]),
        odd=lambda _: None,
        broken=lambda _: 1 / 0,
    )
    held.bare = lambda _: SimpleNamespace(tools=None, prompt=(), call=lambda *_: "")
    monkeypatch.setitem(sys.modules, "evaluated", held)
    return held


async def test_a_task_that_could_not_be_played_is_left_out_for_all_and_named(module):
    done = await evaluate({"a": "evaluated:sound", "b": "evaluated:flaky"}, "counterplay.examples.ledger:Ledger", TASKS)
    assert dict(done.unplayed) == {TASKS[3]: "the server answered 500"}
    assert [policy.tasks for policy in done.report.policies] == [39, 39]
    assert done.report.comparisons[0].verdict == "no evidence of lift"
    assert any("not played" in str(line) for line in tables(done))


async def test_an_outage_is_an_error_and_no_result(module):
    with pytest.raises(PolicyError, match="20 of 40 tasks could not be played"):
        await evaluate({"a": "evaluated:down"}, "counterplay.examples.ledger:Ledger", TASKS)


@pytest.mark.parametrize(("factory", "text"), [("odd", "NoneType for task"), ("broken", "ZeroDivisionError"), ("bare", "are a NoneType")])
async def test_a_factory_that_makes_no_world_is_named(module, factory, text):
    with pytest.raises(UserError, match=text):
        await evaluate({"a": "evaluated:sound"}, f"evaluated:{factory}", TASKS)


def test_names_and_tasks(tmp_path):
    assert named_policies(["before=transformers:a", "openai:gpt", "logged"]) == {
        "before": "transformers:a",
        "openai:gpt": "openai:gpt",
        "logged": "logged",
    }
    with pytest.raises(UserError, match="twice"):
        named_policies(["x=logged", "x=logged"])
    (tmp_path / "tasks.txt").write_text("one\n\ntwo\n")
    assert tasks_from_spec(str(tmp_path / "tasks.txt")) == ["one", "two"]
    (tmp_path / "twice.txt").write_text("one\ntwo\none\n")
    assert tasks_from_spec(str(tmp_path / "twice.txt")) == ["one", "two"]
    assert tasks_from_spec("counterplay.examples.ledger:tasks:heldout:2") == ["heldout-0001", "heldout-0002"]
    with pytest.raises(UserError, match="one task a line"):
        tasks_from_spec("nowhere.txt")


DOORS = [f"d{i}" for i in range(6)]


async def test_attempts_are_drawn_apart_and_everything_is_counted(module):
    done = await evaluate({"never": "evaluated:never", "later": "evaluated:later"}, "evaluated:Door", DOORS, attempts=4, max_steps=5)
    never, later = done.report.policies
    assert (never.rate, later.rate, later.attempts, later.successes) == (0.0, 0.5, 4, 12)
    assert later.pass_at == pytest.approx({1: 0.5, 2: 5 / 6, 3: 1.0, 4: 1.0})
    assert later.mean_steps == pytest.approx((1 + 1 + 5 + 5) / 4)
    assert later.steps_per_success == pytest.approx(6.0)
    assert later.cost_per_success_usd == pytest.approx(0.06)
    assert never.cost_per_success_usd is None
    assert [(share.failure, share.share) for share in later.failures] == [("repeated actions", 0.5)]
    (comparison,) = done.report.comparisons
    assert comparison.ends["d0"] == ("repeated actions (4 attempts)", "of 4: 2 success, 2 repeated actions")
    assert done.settings["temperature"] == 1.0
    assert [run.attempt for run in done.runs["later"] if run.outcome] == [1, 2] * 6


async def test_a_task_that_is_there_twice_counts_once(module):
    done = await evaluate({"later": "evaluated:later"}, "evaluated:Door", [*DOORS, *DOORS[:3]], attempts=2, max_steps=5)
    once = await evaluate({"later": "evaluated:later"}, "evaluated:Door", DOORS, attempts=2, max_steps=5)
    assert done.report == once.report
    assert len(done.runs["later"]) == 12


async def test_progress_is_told_as_each_attempt_ends(module):
    """Half of them open at once; the others knock until the step limit, and have not ended then."""
    seen = []

    class Watching(Sometimes):
        async def propose(self, state, n):
            seen.append((len(state.steps), told.count("ended")))
            return await super().propose(state, n)

    told = []
    await play_tasks(Watching(0), Door, DOORS, attempts=2, max_steps=4, on_task=lambda: told.append("ended"))
    assert len(told) == 12
    assert {count for step, count in seen if step == 0} == {0}
    assert {count for step, count in seen if step > 0} == {6}


async def test_one_attempt_is_greedy_and_attempts_that_are_all_alike_are_refused(module):
    done = await evaluate({"first": "evaluated:first"}, "evaluated:Door", DOORS)
    assert done.settings["temperature"] == 0.0
    with pytest.raises(UserError, match="all alike"):
        await evaluate({"first": "evaluated:first"}, "evaluated:Door", DOORS, attempts=2, temperature=0.0)


async def test_the_user_names_classes_and_regressions_are_shown_with_their_ends(module):
    def classify(trajectory):
        return Score(0.2, f"knocked at {trajectory.prompt[0].content_text.split()[-1]} for too long")

    done = await evaluate({"first": "evaluated:first", "never": "evaluated:never"}, "evaluated:Door", DOORS, max_steps=3, classify=classify)
    (comparison,) = done.report.comparisons
    assert comparison.verdict == "worse"
    assert [change.failure for change in comparison.failures] == ["knocked at … for too long"]
    shown = [str(line) for line in tables(done)]
    assert any("d5 (success -> knocked at … for too long), " in line.replace("d0", "d5") for line in shown), shown
    assert any("and 2 more" in line for line in shown)
    text = markdown(done)
    assert "| d4 | success | knocked at … for too long |" in text
    assert "never is worse than first" in text


def test_what_was_played_is_kept_and_read_again(module, tmp_path):
    named = {"a/b": "evaluated:never", "a:b": "evaluated:later"}
    done = asyncio.run(evaluate(named, "evaluated:Door", DOORS, attempts=2, max_steps=3))
    evaluation_kept.prepare(tmp_path / "out")
    paths = evaluation_kept.keep(done, tmp_path / "out")
    assert [path.name for path in paths] == ["report.json", "report.md", "a-b.jsonl", "a-b-2.jsonl"]
    kept = json.loads(paths[0].read_text())
    assert [policy["rate"] for policy in kept["policies"]] == [0.0, 0.5]
    assert kept["comparisons"][0]["ends"]["d0"] == ["repeated actions (2 attempts)", "of 2: 1 success, 1 repeated actions"]
    with loop.opened(tmp_path / "s.duckdb") as store:
        assert loop.ingest(paths[2:], store).traces_added == 24
        (trace, *_) = [t for t in loop.select(store, which="succeeded") if t.task == "d3"]
    assert (trace.agent, trace.outcome.reward, trace.calls[0].usage.cost_usd) == ("a:b", 1.0, 0.01)
    assert trace.metadata["logprobs"] == [-0.5]
    assert (trace.metadata["end"], trace.metadata["temperature"], trace.metadata["attempt"]) == ("success", 1.0, 1)


async def test_a_folder_of_an_earlier_evaluation_is_replaced_and_a_foreign_one_left_alone(module, tmp_path):
    done = await evaluate({"first": "evaluated:first"}, "evaluated:Door", DOORS)
    for _ in range(2):
        evaluation_kept.prepare(tmp_path / "out")
        (path,) = evaluation_kept.keep(done, tmp_path / "out")[2:]
    assert len(path.read_text().splitlines()) == 6
    (tmp_path / "thesis.txt").write_text("three years of work")
    with pytest.raises(UserError, match="holds something else"):
        evaluation_kept.prepare(tmp_path)
    with pytest.raises(UserError, match="is a file"):
        evaluation_kept.prepare(tmp_path / "thesis.txt")
