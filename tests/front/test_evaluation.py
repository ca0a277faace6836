"""Evaluation plays real worlds; what the machinery broke is never counted against an agent."""

import sys
from types import SimpleNamespace

import pytest

from counterplay.core.errors import PolicyError, UserError
from counterplay.core.nouns import Message, Proposal, ToolCall
from counterplay.evaluation import evaluate, named_policies, tables, tasks_from_spec
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


@pytest.fixture
def module(monkeypatch):
    held = SimpleNamespace(sound=Closer(), flaky=Closer(TASKS[3:4]), down=Closer(TASKS[:20]), odd=lambda _: None, broken=lambda _: 1 / 0)
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
    assert tasks_from_spec("counterplay.examples.ledger:tasks:heldout:2") == ["heldout-0001", "heldout-0002"]
    with pytest.raises(UserError, match="one task a line"):
        tasks_from_spec("nowhere.txt")
