"""What tools gave, given again: in the prefix by step and occurrence, on a branch by effect."""

from dataclasses import replace

from counterplay.core.effects import Effect
from counterplay.core.nouns import Grade, Message, Source, Step, SubTrajectory, ToolCall, Trace, Trajectory
from counterplay.replay.agents.ambient import ToolAnswer, ToolRequest
from counterplay.replay.agents.tool_log import ToolLog, ToolRun, observed_runs, recorded_runs

EFFECTS = {"get": Effect.parse("read(item:{name})"), "put": Effect.parse("write(item:{name})")}


def run(name, arguments, value, where=None, **more):
    return ToolRun(name, arguments, ToolAnswer(value, **more), where=where)


def get(name="a"):
    return ToolRequest("get", {"name": name})


RUNS = [
    run("get", '{"name":"a"}', 1, (0, 0)),
    run("put", '{"name":"a"}', "done", (0, 1)),
    run("get", '{"name":"a"}', 2, (0, 2)),
    run("get", '{"name":"a"}', 3, (1, 0)),
]


def test_in_the_prefix_a_run_of_the_very_step_comes_first_and_each_once():
    log = ToolLog(RUNS, RUNS, EFFECTS)
    assert [log.repeat(get(), (1, 0)).answer.value, log.repeat(get(), (0, 2)).answer.value] == [3, 2]
    assert log.repeat(get(), (7, 7)).answer.value == 1
    assert log.repeat(get(), (0, 0)) is None


def test_without_a_step_runs_come_in_order():
    log = ToolLog(RUNS, RUNS, EFFECTS)
    assert [log.repeat(get(), None).answer.value for _ in range(3)] == [1, 2, 3]
    assert log.repeat(get(), None) is None
    assert log.repeat(ToolRequest("put", {"name": "b"}), None) is None


def test_strictly_there_is_only_the_very_step():
    log = ToolLog(RUNS, RUNS, EFFECTS)
    assert log.repeat(get(), (0, 1), strictly=True) is None
    assert log.repeat(get(), (0, 2), strictly=True).answer.value == 2


def test_on_a_branch_a_read_holds_until_a_differing_write():
    log = ToolLog(RUNS[:1], RUNS[:2], EFFECTS)
    assert log.repeat(get(), (0, 0)).answer.value == 1
    again = log.reuse(get())
    assert (again.answer.value, again.grade) == (1, Grade.REUSED)
    assert log.reuse(ToolRequest("put", {"name": "a"})).grade == Grade.EXACT
    log.add(run("put", '{"name":"b"}', "done"))
    assert log.reuse(get()).answer.value == 1
    log.add(run("put", '{"name":"a"}', "other"))
    assert "something that it depends on differs" in log.reuse(get())
    assert "never called with these arguments" in log.reuse(get("z"))


def test_an_effect_that_a_function_declares_counts():
    log = ToolLog([], RUNS[:1], {})
    log.add(run("put", '{"name":"b"}', "done"))
    assert isinstance(log.reuse(get()), str)
    log.declare(ToolRequest("put", {}, EFFECTS["put"]))
    log.declare(replace(get(), effect=EFFECTS["get"]))
    assert log.reuse(get()).answer.value == 1


def test_whole_answers_come_back():
    odd = [run("get", '{"name":"a"}', None, error="KeyError: 'a'"), run("get", '{"name":"b"}', {"x": [1, None]})]
    log = ToolLog([], odd, EFFECTS)
    assert log.reuse(get()).answer == ToolAnswer(None, "KeyError: 'a'")
    assert log.reuse(get("b")).answer == ToolAnswer({"x": [1, None]})


def test_texts_of_an_environment_become_data_where_the_tool_gives_data():
    assert ToolLog([], RUNS, EFFECTS).as_value("get", "17") == 17
    assert ToolLog([], RUNS, EFFECTS).as_value("get", "no json") == "no json"
    assert ToolLog([], RUNS, EFFECTS).as_value("put", "17") == "17"
    assert ToolLog([], [], EFFECTS).as_value("get", "17") == "17"


def test_arguments_are_mapped_before_they_are_compared():
    log = ToolLog(RUNS, RUNS, EFFECTS, comparable=str.lower)
    assert log.repeat(get("A"), (0, 2)).answer.value == 2
    assert log.reuse(get("A")).answer.value in (1, 2, 3)


def act(*names):
    return Message.assistant(None, [ToolCall(f"c{i}", name, '{"b": 2, "a": 1}') for i, name in enumerate(names)])


def test_a_log_without_tool_runs_is_read_by_its_observations():
    main = Trajectory((), (Message.user("x"),), (Step(act("f", "g"), (Message.tool("G", "c1"), Message.tool("F", "c0"))), Step(act("h"))))
    sub = Trajectory((), (Message.user("y"),), (Step(act("s"), (Message.tool("S", "c0"),)),))
    trace = Trace("t", main, Source("chatlog"), (SubTrajectory(sub, parent_step=0),))
    found = [(each.name, each.arguments, each.answer.value, each.where) for each in observed_runs(trace)]
    arguments = '{"a":1,"b":2}'
    assert found == [("f", arguments, "F", (0, 0)), ("g", arguments, "G", (0, 0)), ("s", arguments, "S", (1, 0))]
    assert recorded_runs(trace) == tuple(observed_runs(trace))


def test_tool_runs_of_a_tape_are_read_and_complete_what_they_lack():
    main = Trajectory((), (Message.user("x"),), (Step(act("f", "g"), (Message.tool("F", "c0"), Message.tool("G", "c1"))),))
    place = {"trajectory": 0, "step": 0, "observation": 0}
    seen = [
        {"name": "f", "arguments": {"b": 2, "a": 1}, "error": None, "replayable": True, **place},
        {
            "name": "f",
            "arguments": {},
            "value": 5,
            "error": None,
            "replayable": False,
            "trajectory": None,
            "step": None,
            "observation": None,
        },
    ]
    runs = recorded_runs(Trace("t", main, Source("tape"), metadata={"tool_runs": seen}))
    assert [(each.name, each.answer.value, each.answer.replayable, each.where) for each in runs] == [
        ("f", "F", True, (0, 0)),
        ("f", 5, False, None),
        ("g", "G", True, (0, 0)),
    ]
