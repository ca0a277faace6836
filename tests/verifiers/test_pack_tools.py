"""The tools pack on hand-worked trajectories and on 100 real runs."""

import pytest

from counterplay.core.effects import Effect
from counterplay.verifiers.packs.tools import ToolUse
from tests.verifiers.pack_shapes import airline_runs, auroc, call, ended, say, tool, trajectory, values

ORDER = {"type": "integer"}
TOOLS = (
    tool("look", Effect("read", "order:{order}"), order=ORDER),
    tool("change", Effect("write", "order:{order}"), order=ORDER),
    tool("add", Effect("pure"), a=ORDER, b=ORDER),
    tool("mail", Effect("external")),
)


def kinds(state, pack=None):
    return [(finding.step, finding.kind) for finding in (pack or ToolUse()).findings(state)]


@pytest.mark.parametrize(
    ("step", "kind", "reason"),
    [
        (call("look", "not json"), "invalid", "not a JSON object"),
        (call("look", {}), "invalid", "'order' is a required property"),
        (call("look", {"order": "x"}), "invalid", "order: 'x' is not of type 'integer'"),
        (call("seek", {"order": 1}), "unknown", "unknown tool 'seek', there are: look, change, add, mail"),
    ],
)
def test_broken_calls_are_named_by_step(step, kind, reason):
    state = trajectory(call("look", {"order": 9}), step, tools=TOOLS)
    assert kinds(state) == [(1, kind)]
    score = ToolUse()(state)
    assert score.value == 0.5
    assert score.reason.startswith("step 1: ")
    assert reason in score.reason


def test_an_error_costs_little_while_it_can_be_recovered_from_and_all_at_the_end():
    failing, fixed = call("look", {"order": 1}, "Error: no such order"), call("look", {"order": 2})
    stuck = trajectory(failing, say("sorry"), tools=TOOLS)
    assert values(ToolUse(), stuck) == [0.5**0.25, 0.5**0.25]
    assert ToolUse()(ended(stuck)).value == 0.5
    assert kinds(ended(stuck)) == [(0, "failed")]
    assert ToolUse()(ended(trajectory(failing, fixed, tools=TOOLS))).value == 0.5**0.25
    other = trajectory(failing, call("change", {"order": 2}), tools=TOOLS)
    assert ToolUse()(ended(other)).value == 0.5, "another tool's success is no recovery"
    unanswered = trajectory(failing, call("look", {"order": 2}, None), tools=TOOLS)
    assert ToolUse()(ended(unanswered)).value == 0.5, "a call without an answer is no recovery"


def test_repetition_is_told_by_what_came_between():
    look, again = call("look", {"order": 1}), call("look", '{ "order":1}')
    assert kinds(trajectory(look, again, tools=TOOLS)) == [(1, "repeated")]
    assert kinds(trajectory(look, say("hm"), again, tools=TOOLS)) == [(2, "repeated")]
    assert kinds(trajectory(look, call("look", {"order": 1}, "shipped"), tools=TOOLS)) == [], "it learnt something"
    assert kinds(trajectory(look, call("change", {"order": 1}), again, tools=TOOLS)) == [], "a change is checked"
    assert kinds(trajectory(look, call("change", {"order": 2}), again, tools=TOOLS)) == [(2, "repeated")], "another order"
    assert kinds(trajectory(look, call("mail"), again, tools=TOOLS)) == [], "who knows what mail does"
    assert kinds(trajectory(look, say("I looked.", "look again"), again, tools=TOOLS)) == [], "the user's turn"
    assert kinds(trajectory(call("add", {"a": 1, "b": 2}), call("mail"), call("add", {"a": 1, "b": 2}), tools=TOOLS)) == [(2, "repeated")]
    assert kinds(trajectory(look, again, tools=TOOLS), ToolUse(may_repeat=("lo*",))) == []


def test_the_third_time_is_a_loop_whatever_came_between():
    state = trajectory(*[each for _ in range(3) for each in (call("look", {"order": 1}), say("one moment", "and?"))], tools=TOOLS)
    assert kinds(state) == [(4, "repeated")]


def test_overuse_counts_by_pattern():
    pack = ToolUse(most=(("look", 2), ("*", 4)))
    looks = [call("look", {"order": order}) for order in range(3)]
    assert kinds(trajectory(*looks, tools=TOOLS), pack) == [(2, "overuse")]
    many = trajectory(*looks[:2], *(call("change", {"order": order}) for order in range(3)), tools=TOOLS)
    assert kinds(many, pack) == [(4, "overuse")]
    assert "call 5 of *, wanted at most 4" in pack(many).reason


def test_parallel_calls_are_paired_by_id():
    from counterplay.core.nouns import Message, Step, ToolCall

    action = Message.assistant(None, [ToolCall("a", "look", '{"order":1}'), ToolCall("b", "look", '{"order":2}')])
    crossed = Step(action, (Message.tool("Error: gone", "b"), Message.tool("ok", "a")))
    assert "step 0: look answered with an error" in ToolUse()(trajectory(crossed, tools=TOOLS)).reason
    recovered = trajectory(crossed, call("look", {"order": 2}), tools=TOOLS)
    assert ToolUse()(ended(recovered)).value == 0.5**0.25
    assert kinds(trajectory(crossed, call("look", {"order": 1}), tools=TOOLS))[-1] == (1, "repeated"), "order 1 answered ok before"


def test_tools_of_a_log_that_names_none():
    state = trajectory(call("look", {"order": 1}), call("seek"))
    assert ToolUse()(state).value == 1.0, "without tools only errors and repetitions can be seen"
    assert kinds(state, ToolUse(specs=TOOLS)) == [(1, "unknown")]


def test_effects_of_the_same_tools_are_not_confused():
    look = call("look", {"order": 1})
    steps = (look, call("change", {"order": 1}), look)
    pure = (tool("look", Effect("pure"), order=ORDER), *TOOLS[1:])
    pack = ToolUse()
    assert kinds(trajectory(*steps, tools=TOOLS), pack) == []
    assert kinds(trajectory(*steps, tools=pure), pack) == [(2, "repeated")], "same messages and keys, other effects"


def test_on_real_runs_few_calls_are_wrong_and_those_hardly_tell_failures():
    """Measured: 0.54. gpt-4o's calls are sound; what fails these runs is what was done, not how the tools were called."""
    scored = [(ToolUse()(state).value, success) for state, success in airline_runs()]
    assert 0.5 < auroc(scored) < 0.6
    assert sum(value < 1 for value, success in scored if success) < sum(value < 1 for value, success in scored if not success)
