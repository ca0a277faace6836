"""Policies that need no model, and the names by which policies are asked for."""

import sys
from collections import Counter

import pytest

from counterplay.core.errors import UserError
from counterplay.core.nouns import Message, Step, ToolCall, ToolSpec, Trajectory
from counterplay.core.protocols import Policy, fingerprint_of, first_draw
from counterplay.replay.logged_policy import LoggedPolicy, situation_key
from counterplay.replay.openai_policy import OpenAIPolicy
from counterplay.replay.policies import policy_from_spec
from counterplay.replay.scripted_policy import ScriptedPolicy
from counterplay.replay.transformers_policy import TransformersPolicy
from tests.replay.tiny_model import make_folder

TOOLS = (ToolSpec.function("look", "Looks.", {}),)
PROMPT = (Message.user("go"),)


def look(where, call_id="a", spaces=""):
    return Message.assistant(None, [ToolCall(call_id, "look", f'{{"where":{spaces}"{where}"}}')])


def saw(what, call_id="a"):
    return Message.tool(what, call_id)


def log(*steps):
    return Trajectory(TOOLS, PROMPT, tuple(steps))


async def test_logged_proposes_what_others_did_by_frequency():
    others = [log(Step(look("north"), (saw("ice"),))) for _ in range(3)] + [log(Step(look("south", "b"), (saw("sand", "b"),)))]
    policy = LoggedPolicy(others)
    proposals = await policy.propose(log(), 5)
    assert [(p.action.tool_calls[0].args["where"], p.prior) for p in proposals] == [("north", 0.75), ("south", 0.25)]
    assert len(await policy.propose(log(), 1)) == 1
    assert await policy.propose(log(Step(look("west"), (saw("sea"),))), 1) == []


async def test_logged_looks_past_ids_and_spacing_but_not_past_results():
    first = Step(look("north", "a1"), (saw("ice", "a1"),))
    policy = LoggedPolicy([log(first, Step(look("east", "a2"), (saw("x", "a2"),)))])
    alike = log(Step(look("north", "zz", " "), (saw("ice", "zz"),)))
    assert (await policy.propose(alike, 1))[0].action == look("east", "a2")
    assert await policy.propose(log(Step(look("north", "zz"), (saw("fog", "zz"),))), 1) == []
    other_tools = Trajectory((), PROMPT, alike.steps)
    assert await policy.propose(other_tools, 1) == []


async def test_logged_prefers_runs_that_stood_in_the_exact_state():
    def other(call_id, then):
        return log(Step(look("north", call_id), (saw("ice", call_id),)), Step(look(then, "n"), (saw("x", "n"),)))

    policy = LoggedPolicy([other("a", "east"), other("b", "west"), other("b", "west")])
    assert [p.action.tool_calls[0].args["where"] for p in await policy.propose(other("a", "east").prefix(1), 5)] == ["east"]
    assert [p.action.tool_calls[0].args["where"] for p in await policy.propose(other("c", "east").prefix(1), 5)] == ["west", "east"]


async def test_logged_does_not_propose_what_was_put_in_the_agent_s_mouth():
    policy = LoggedPolicy([log(Step(look("north"), (saw("ice"),), sampled=False), Step(look("east"), (saw("x"),)))])
    assert await policy.propose(log(), 1) == []
    assert len(await policy.propose(log(Step(look("north"), (saw("ice"),))), 1)) == 1


def test_observations_that_change_places_are_another_situation():
    both = Message.assistant(None, [ToolCall("a", "look", "{}"), ToolCall("b", "look", '{"x":1}')])
    assert situation_key(log(Step(both, (saw("1", "a"), saw("2", "b"))))) != situation_key(log(Step(both, (saw("1", "b"), saw("2", "a")))))


def test_the_fingerprint_of_logged_follows_the_logs_not_their_order():
    north, south = log(Step(look("north"), (saw("ice"),))), log(Step(look("south"), (saw("sand"),)))
    assert fingerprint_of(LoggedPolicy([north, south])) == fingerprint_of(LoggedPolicy([south, north]))
    assert fingerprint_of(LoggedPolicy([north])) != fingerprint_of(LoggedPolicy([south]))


async def test_scripted_plays_its_list_and_its_alternatives():
    policy = ScriptedPolicy([look("north"), [look("east"), look("west")]])
    assert [p.action for p in await policy.propose(log(), 2)] == [look("north")] * 2
    later = log(Step(look("north"), (saw("ice"),)))
    assert [p.action for p in await policy.propose(later, 3)] == [look("east"), look("west"), look("east")]
    token = first_draw.set(1)
    assert [p.action for p in await policy.propose(later, 1)] == [look("west")]
    first_draw.reset(token)
    assert await policy.propose(later.extend(Step(look("east"))), 2) == []


async def test_scripted_asks_a_function_sync_or_async():
    async def script(state, draw):
        return None if draw == 2 else look(f"{len(state)}/{draw}")

    for policy in (ScriptedPolicy(script), ScriptedPolicy(lambda state, draw: None if draw == 2 else look(f"{len(state)}/{draw}"))):
        proposals = await policy.propose(log(), 3)
        assert Counter(p.action.tool_calls[0].args["where"] for p in proposals) == Counter(["0/0", "0/1"])


def test_names_become_policies(tmp_path, monkeypatch):
    served = policy_from_spec("openai:org/model:free", base_url="http://127.0.0.1:1/v1", temperature=0.3, max_tokens=7)
    assert isinstance(served, OpenAIPolicy)
    assert (served.model, served.max_tokens) == ("org/model:free", 7)
    local = policy_from_spec(f"transformers:{make_folder(tmp_path / 'm')}", temperature=0, seed=3, max_tokens=9)
    assert isinstance(local, TransformersPolicy)
    assert (local.seed, local.max_new_tokens) == (3, 9)
    assert isinstance(policy_from_spec("logged", trajectories=[log(Step(look("north")))]), LoggedPolicy)
    (tmp_path / "my_policies.py").write_text(
        "class Mine:\n    async def propose(self, state, n):\n        return []\n\n"
        "ready = Mine()\nnumber = 7\n\ndef make():\n    return Mine()\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("Mine", "ready", "make"):
        assert isinstance(policy_from_spec(f"my_policies:{name}"), Policy)
    with pytest.raises(UserError, match="without propose"):
        policy_from_spec("my_policies:number")


@pytest.mark.parametrize(
    "spec", ["", "openai", "openai:", "nowhere_at_all:thing", "json:nothing", "logged:x", "transformers:/no/such/folder"]
)
def test_names_that_mean_nothing_are_refused(spec):
    with pytest.raises(UserError):
        policy_from_spec(spec)
