"""An agent's own code as an environment: steps, searches over it, and what it never does."""

import asyncio
import json

import pytest

from counterplay.core.budget import Budget
from counterplay.core.errors import DivergenceError
from counterplay.core.nouns import Grade, Message, Proposal, Step, ToolCall
from counterplay.core.protocols import Environment, fingerprint_of
from counterplay.recording import record
from counterplay.reenact import agent_environment
from counterplay.replay.effects import tool
from counterplay.search.best_of_n import best_of_n
from counterplay.search.fork import fork_best_of_n
from tests.replay.agents import kinds
from tests.replay.agents.kinds import DEFINITIONS, EXECUTED, LAST, PROMPT, SCRIPT, TOOLS, Model, answered, client_of, fresh

END = Message.assistant("Enough.")


def call(name, **arguments):
    return Message.assistant(None, [ToolCall(f"x_{name}", name, json.dumps(arguments))])


@pytest.fixture
def server():
    fresh()
    with Model() as model:
        yield model


async def traced(server, agent, path):
    with record(path) as run:
        result = agent(server.base_url)
        if asyncio.iscoroutine(result):
            await result
    fresh()
    server.requests.clear()
    return run.trace()


@pytest.fixture
async def trace(server, tmp_path):
    return await traced(server, kinds.plain, tmp_path / "runs.jsonl")


def of(server, trace, agent=kinds.plain, **options):
    return agent_environment(agent, trace, arguments={"url": server.base_url}, timeout_s=20, **options)


@pytest.mark.parametrize("kind", kinds.KINDS)
async def test_each_logged_step_comes_back_as_it_was(kind, server, tmp_path):
    agent = kinds.KINDS[kind]
    trace = await traced(server, agent, tmp_path / "runs.jsonl")
    environment = of(server, trace, agent)
    assert isinstance(environment, Environment)
    for at, logged in enumerate(trace.trajectory.steps):
        step = await environment.step(trace.trajectory.prefix(at), logged.action)
        assert [message.content for message in step.observations] == [message.content for message in logged.observations]
        assert (step.terminated, step.truncated, step.error) == (at == LAST, False, None)
        assert step.grade == Grade.EXACT
    assert (server.requests, dict(EXECUTED)) == ([], {})


async def test_an_action_that_was_not_logged_is_played_by_the_agents_own_code(server, trace):
    environment = of(server, trace)
    state = trace.trajectory.prefix(2)
    step = await environment.step(state, call("look_up", order=2))
    assert step.observations == (Message.tool('{"paid": 8, "refunded": 0}', "x_look_up"),)
    assert (step.grades, step.finished) == ((Grade.REUSED,), False)
    after = await environment.step(state.extend(step), call("look_up", order=1))
    assert json.loads(after.observations[0].content_text) == {"paid": 20, "refunded": 5}
    mail = await environment.step(state.extend(step).extend(after), call("send_mail", to="all", text="Hi"))
    assert mail.truncated
    assert "send_mail was not executed" in mail.error
    said = await environment.step(state.extend(step), END)
    assert (said.terminated, said.observations, said.error) == (True, (), None)
    assert (server.requests, dict(EXECUTED)) == ([], {})


async def test_what_was_executed_on_a_branch_is_not_executed_again(server, trace):
    environment = of(server, trace, execute_tools=["refund"])
    state = trace.trajectory.prefix(1)
    for number in range(3):
        state = state.extend(await environment.step(state, call("refund", order=2, amount=number)))
        assert state.steps[-1].grades == (Grade.EXECUTED,)
        assert dict(EXECUTED) == {"refund": number + 1}
    read = await environment.step(state, call("look_up", order=2))
    assert "look_up was not executed" in read.error
    assert (await environment.step(state, call("look_up", order=1))).grades == (Grade.REUSED,)
    assert dict(EXECUTED) == {"refund": 3}


async def test_values_that_were_executed_come_back_as_they_were(server, trace):
    environment = of(server, trace, execute_tools=["look_up"])
    kinds.ORDERS[7] = {"paid": 70, "refunded": 0}
    state = trace.trajectory.prefix(1)
    state = state.extend(await environment.step(state, call("look_up", order=7)))
    kinds.ORDERS.clear()
    again = await environment.step(state, END)
    assert again.terminated
    assert dict(EXECUTED) == {"look_up": 1}


async def test_two_branches_see_nothing_of_each_other(server, trace):
    environment = of(server, trace, execute_tools=["refund"])
    state = trace.trajectory.prefix(1)

    async def line(amount):
        here = state
        for number in range(3):
            here = here.extend(await environment.step(here, call("refund", order=2, amount=amount + number)))
        return here

    lines = await asyncio.gather(*(line(10 * number) for number in range(8)))
    for number, line_state in enumerate(lines):
        results = [step.observations[0].content_text for step in line_state.steps[1:]]
        assert results == [f"refunded {10 * number + k}" for k in range(3)]
    assert EXECUTED["refund"] == 24
    assert server.requests == []


class Desk:
    def __init__(self):
        self.asked = []

    async def step(self, state, action):
        self.asked.append((state, action))
        return Step(action, (Message.tool('{"paid": 1, "refunded": 1}', action.tool_calls[0].id),), grades=(Grade.SIMULATED,))


async def test_the_environment_is_asked_for_what_the_recording_lacks(server, trace):
    environment = of(server, trace, environment=Desk())
    step = await environment.step(trace.trajectory.prefix(1), call("look_up", order=9))
    assert (step.observations[0].content_text, step.grades) == ('{"paid": 1, "refunded": 1}', (Grade.SIMULATED,))


async def test_what_the_agent_returns_is_rewarded(server, trace):
    environment = of(server, trace, reward=lambda said: float(said == "Enough."))
    assert (await environment.step(trace.trajectory.prefix(1), END)).reward == 1.0
    assert (await environment.step(trace.trajectory.prefix(1), Message.assistant("Never."))).reward == 0.0
    assert (await environment.step(trace.trajectory.prefix(1), trace.trajectory.steps[1].action)).reward is None


async def test_an_agent_that_fails_ends_its_branch_with_its_error(server, trace):
    environment = of(server, trace)
    step = await environment.step(trace.trajectory.prefix(1), call("no_such_tool"))
    assert step.error == "KeyError: 'no_such_tool'"
    assert not step.terminated


async def test_a_state_that_the_agent_does_not_come_to_is_a_divergence(server, trace):
    def other(url):
        return kinds.plain(url, prompt=[{"role": "system", "content": "You are another."}, PROMPT[1]])

    with pytest.raises(DivergenceError, match="prompt drift at step 0") as failure:
        await of(server, trace, other).step(trace.trajectory.prefix(1), END)
    assert (failure.value.step, failure.value.kind) == (0, "prompt_drift")
    with pytest.raises(DivergenceError, match="ended after 0 steps"):
        await of(server, trace, lambda url: None).step(trace.trajectory.prefix(1), END)
    step = await of(server, trace, other, on_divergence="warn").step(trace.trajectory.prefix(1), END)
    assert step.terminated


async def test_an_agent_that_swallows_everything_gets_no_further(server, tmp_path):
    trace = await traced(server, kinds.catcher, tmp_path / "runs.jsonl")
    step = await of(server, trace, kinds.catcher).step(trace.trajectory.prefix(1), call("send_mail", to="a", text="b"))
    assert "send_mail was not executed" in step.error
    assert (EXECUTED["send_mail"], server.requests) == (0, [])


async def test_without_a_trace_a_state_is_all_there_is(server, trace):
    environment = agent_environment(kinds.plain, arguments={"url": server.base_url, "tools": {**TOOLS, "look_up": untyped}})
    start = trace.trajectory.prefix(0)
    step = await environment.step(start, call("look_up", order=1))
    assert "never called" in step.error
    given = Step(call("look_up", order=1), (Message.tool("here", "x_look_up"),))
    assert (await environment.step(start.extend(given), END)).terminated


@tool(effect="read(order:{order})", name="look_up")
def untyped(order: int):
    """One order."""


class Scripted:
    """Proposes the logged action, an old call, or an end, by draw."""

    def __init__(self, trace):
        self.trace = trace

    async def propose(self, state, n):
        logged = self.trace.trajectory.steps[len(state)].action if len(state) < len(self.trace.trajectory) else END
        return [Proposal(action) for action in (logged, END, call("look_up", order=2))[:n]]


async def test_best_of_n_over_an_agents_own_code(server, trace):
    environment = of(server, trace, reward=lambda said: float(said == SCRIPT[-1]))
    tree = await best_of_n(trace.trajectory.prefix(1), Scripted(trace), environment, rewarded, Budget(), n=2, max_steps=10)
    assert sorted(node.score.value for node in tree.finished()) == [0.0, 1.0]
    assert tree.best().state.messages == trace.trajectory.messages
    assert (server.requests, dict(EXECUTED)) == ([], {})


async def test_forks_of_a_log_are_played_by_its_own_agent(server, trace):
    environment = of(server, trace, reward=lambda said: float(said == "Enough."))
    tree = await fork_best_of_n(trace.trajectory, Scripted(trace), environment, rewarded, Budget(), n=3, pivots=[0, 2], max_steps=8)
    ends = [node for node in tree.finished() if not node.logged]
    assert len(ends) >= 4
    assert {node.state.steps[-1].error for node in ends} == {None}
    assert tree.best().state.steps[-1].action == END
    assert min(node.state.grade for node in ends) >= Grade.REUSED
    assert (server.requests, dict(EXECUTED)) == ([], {})


def rewarded(trajectory):
    return trajectory.steps[-1].reward if trajectory.finished else None


def with_adviser(url):
    """Asks an adviser about every result before it goes on."""
    with client_of(url) as client:
        messages = [*PROMPT]
        while True:
            said = client.chat.completions.create(model="m", messages=messages, tools=DEFINITIONS).choices[0].message
            messages.append(said.model_dump(exclude_none=True))
            if not said.tool_calls:
                return said.content
            for asked in said.tool_calls:
                value = TOOLS[asked.function.name](**json.loads(asked.function.arguments))
                advice = [{"role": "user", "content": f"What of {value}?"}, {"role": "assistant", "content": "Hm."}] * 4
                advised = client.chat.completions.create(model="adviser", messages=advice).choices[0].message.content
                messages.append(answered(asked.id, f"{value} ({advised})"))


async def test_side_calls_are_recorded_ones_or_live_where_that_is_allowed(server, tmp_path):
    trace = await traced(server, with_adviser, tmp_path / "runs.jsonl")
    state = trace.trajectory.prefix(2)
    logged = await of(server, trace, with_adviser).step(state, trace.trajectory.steps[2].action)
    assert logged.observations == trace.trajectory.steps[2].observations
    assert server.requests == []
    options = {"execute_tools": ["refund"]}
    refund = call("refund", order=2, amount=3)
    refused = await of(server, trace, with_adviser, **options).step(state, refund)
    assert "may not ask it live" in refused.error
    assert server.requests == []
    environment = of(server, trace, with_adviser, live_side_calls=True, **options)
    step = await environment.step(state, refund)
    assert step.observations[0].content_text == f"refunded 3 ({SCRIPT[-1]})"
    assert len(server.requests) == 1
    assert (await environment.step(state.extend(step), END)).terminated
    assert len(server.requests) == 1
    assert EXECUTED["refund"] == 2


async def test_a_side_call_between_two_tools_does_not_hide_the_first_from_the_environment(server, tmp_path):
    trace = await traced(server, with_adviser, tmp_path / "runs.jsonl")
    desk = Desk()
    environment = of(server, trace, with_adviser, live_side_calls=True, environment=desk)
    two = Message.assistant(None, [ToolCall("a", "look_up", '{"order": 8}'), ToolCall("b", "look_up", '{"order": 9}')])
    step = await environment.step(trace.trajectory.prefix(1), two)
    assert step.grades == (Grade.SIMULATED, Grade.SIMULATED)
    states = [[each.action.signature for each in state.steps[1:]] for state, _ in desk.asked]
    assert states == [[], ['look_up({"order":8})']]


async def test_a_branch_need_not_start_the_sub_agents_of_the_log(server, tmp_path):
    def delegating(url):
        with client_of(url) as client:
            messages = [*PROMPT]
            while len(messages) < 8:
                said = client.chat.completions.create(model="m", messages=messages).choices[0].message
                if said.content == "Enough.":
                    return said.content
                helper = [{"role": "user", "content": f"Help with {said.tool_calls}"}] if said.tool_calls else None
                helped = client.chat.completions.create(model="m", messages=helper).choices[0].message if helper else "alone"
                messages += [{"role": "assistant", "content": said.content}, {"role": "user", "content": str(helped)}]
            return "over"

    trace = await traced(server, delegating, tmp_path / "runs.jsonl")
    assert trace.sub_trajectories
    environment = of(server, trace, delegating)
    state = trace.trajectory.prefix(0)
    state = state.extend(await environment.step(state, Message.assistant("By myself.")))
    assert [message.content for message in state.steps[0].observations] == ["alone"]
    assert (await environment.step(state, END)).terminated


async def test_the_prefix_of_a_branch_holds_what_the_log_gave_only_as_far_as_they_agree(server, trace):
    environment = of(server, trace)
    other = trace.trajectory.prefix(1).extend(Step(call("look_up", order=2), (Message.tool("x", "x_look_up"),)))
    runs = environment._before(other, END, 1)
    assert [(run.name, run.arguments, run.where) for run in runs] == [
        ("look_up", '{"order":1}', (0, 0)),
        ("look_up", '{"order":2}', (0, 0)),
        ("look_up", '{"order":2}', (0, 1)),
    ]
    logged = environment._before(trace.trajectory.prefix(1), trace.trajectory.steps[1].action, 1)
    assert [run.where for run in logged] == [(0, 0), (0, 0), (0, 1)]


async def test_the_fingerprint_names_what_decides_the_steps(server, trace):
    prints = {
        fingerprint_of(of(server, trace)),
        fingerprint_of(of(server, trace, kinds.catcher)),
        fingerprint_of(of(server, trace, execute_tools=["refund"])),
        fingerprint_of(of(server, trace, reward=float)),
        fingerprint_of(of(server, None)),
    }
    assert len(prints) == 5
    assert fingerprint_of(of(server, trace)) in prints
