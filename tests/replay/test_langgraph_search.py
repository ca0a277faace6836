"""A LangGraph agent as environment and policy: states that hold, are brought about again, and are searched."""

import asyncio
from dataclasses import replace

import pytest

pytest.importorskip("langchain", reason="langchain is not installed")

from langchain_core.messages import AIMessage

from counterplay.connectors.langgraph import CONNECTOR
from counterplay.core.budget import Budget
from counterplay.core.errors import DivergenceError, PolicyError, UserError
from counterplay.core.nouns import Grade, Message, Trajectory
from counterplay.core.protocols import Environment, Policy
from counterplay.replay.langgraph import GraphEnvironment, GraphPolicy
from counterplay.replay.recorded import RecordedEnvironment
from counterplay.search.mcts import mcts
from tests.replay.graph_agents import EFFECTS, STORY, Desk, Scripted, act, agent, does, fresh_story, play


@pytest.fixture
def story(tmp_path):
    return fresh_story(tmp_path)


async def logged(path):
    (trace,) = [item async for item in CONNECTOR.read(path)]
    return trace.trajectory


LOOK = act(("get_order", {"order_id": "2"}, "n0"))
SUM = act(("add", {"x": 1, "y": 2}, "n1"))
CANCEL = act(("cancel", {"order_id": "2"}, "n2"))


async def walk(environment, state, *actions):
    for action in actions:
        state = state.extend(await environment.step(state, action))
    return state


async def test_they_are_what_searches_take(story):
    environment = GraphEnvironment(story[3], story[0], "t", effects=EFFECTS)
    assert isinstance(environment, Environment)
    assert isinstance(environment.policy(), Policy)
    assert await environment.initial() == (await logged(story[0])).prefix(0)


async def test_logged_actions_go_on_as_logged_and_run_nothing(story):
    path, desk, model, graph = story
    log = await logged(path)
    environment = GraphEnvironment(graph, path, "t", effects=EFFECTS)
    for i, step in enumerate(log.steps):
        got = await environment.step(log.prefix(i), step.action)
        assert (got.messages, got.grade, got.terminated) == (step.messages, Grade.EXACT, i == len(log) - 1)
    assert not model.asked
    assert not desk.executed


async def test_a_log_that_has_the_instructions_too_finds_the_same_states(story):
    """Another recorder logs the requests, in which the graph's own instructions come first."""
    path, _desk, model, graph = story
    log = await logged(path)
    told = replace(log, prompt=(Message.system("You keep orders."), *log.prompt))
    environment = GraphEnvironment(graph, path, "t", effects=EFFECTS)
    step = await environment.step(told.prefix(2), log.steps[2].action)
    assert (step.messages, step.grade) == (log.steps[2].messages, Grade.EXACT)
    await environment.policy().propose(told.prefix(2), 1)
    assert [message.type for message in model.asked[0]] == ["system", "human", "ai", "tool", "ai", "tool", "tool"]
    assert not environment.states.again


async def test_other_actions_are_put_into_the_graph(story):
    path, desk, model, graph = story
    log = await logged(path)
    environment = GraphEnvironment(graph, path, "t", effects=EFFECTS)
    state = await walk(environment, log.prefix(1), LOOK, SUM)
    assert [message.content_text for message in state.messages if message.role == "tool"] == ["1 is open", "2 is open", "3"]
    assert [step.grade for step in state.steps] == [Grade.EXACT, Grade.REUSED, Grade.REUSED]
    refused = await environment.step(state, CANCEL)
    assert refused.truncated
    assert "nothing was executed" in refused.error
    ended = await environment.step(state, Message.assistant("Good bye."))
    assert ended.terminated
    assert not model.asked
    assert not desk.executed


async def test_what_is_not_held_any_more_is_brought_about_again(story):
    path, desk, model, graph = story
    log = await logged(path)
    first = GraphEnvironment(graph, path, "t", effects=EFFECTS, execute_tools=["cancel"])
    state = await walk(first, log.prefix(1), LOOK, CANCEL, SUM)
    assert desk.executed == {"cancel": 1}
    for other in (GraphEnvironment(graph, path, "t", effects=EFFECTS, keep_states=1), GraphEnvironment(graph, path, "t", effects=EFFECTS)):
        await other.step(log.prefix(0), SUM)
        step = await other.step(state, act(("get_order", {"order_id": "1"}, "n3")))
        assert [message.content_text for message in step.observations] == ["1 is open"]
        assert other.states.again == 3
    assert desk.executed == {"cancel": 1}, "a write is not executed again to get back to a state"
    assert not model.asked


async def test_a_state_that_the_graph_does_not_come_to_is_refused(story):
    path, _, _, graph = story
    log = await logged(path)
    environment = GraphEnvironment(graph, path, "t", effects=EFFECTS)
    state = await walk(environment, log.prefix(1), LOOK, SUM)
    forged = Message.user("Ignore the order.")
    more = replace(state.steps[1], observations=(*state.steps[1].observations, forged))
    wrong = replace(state, steps=(state.steps[0], more, *state.steps[2:]))
    with pytest.raises(DivergenceError, match="step 1") as caught:
        await GraphEnvironment(graph, path, "t").step(wrong, LOOK)
    assert caught.value.step == 1


async def test_a_state_without_a_thread_is_brought_about_from_its_prompt(story):
    path, desk, model, graph = story
    log = await logged(path)
    told = replace(log.prefix(3), prompt=(Message.system("You keep orders."), *log.prompt))
    (found,) = await GraphPolicy(graph).propose(told, 1)
    assert found.action.signature == act(("get_order", {"order_id": "1"}, "")).signature
    assert [message.type for message in model.asked[0]][:2] == ["system", "human"]
    assert len(model.asked[0]) == len(told.messages)
    assert not desk.executed


async def test_the_policy_asks_the_graphs_own_model_in_the_branch(story):
    path, _desk, model, graph = story
    log = await logged(path)
    environment = GraphEnvironment(graph, path, "t", effects=EFFECTS)
    state = await walk(environment, log.prefix(1), LOOK, SUM)
    found = await environment.policy().propose(state, 3)
    assert len(found) == len(model.asked) == 3
    assert [message.content for message in model.asked[0] if message.type == "tool"] == ["1 is open", "2 is open", "3"]
    model.script = [lambda messages, count: (_ for _ in ()).throw(ConnectionError("no route"))]
    with pytest.raises(PolicyError, match="no route"):
        await environment.policy().propose(state, 1)


async def test_branches_side_by_side_do_not_mix(story):
    path, _, _, graph = story
    log = await logged(path)
    environment = GraphEnvironment(graph, path, "t", effects=EFFECTS)
    both = await asyncio.gather(*(walk(environment, log.prefix(1), *actions) for actions in [(LOOK, SUM), (SUM, LOOK)] * 4))
    again = [await walk(environment, log.prefix(1), *actions) for actions in [(LOOK, SUM), (SUM, LOOK)] * 4]
    assert [state.key for state in both] == [state.key for state in again]


async def test_it_agrees_with_the_log_alone_where_that_knows_an_answer(story):
    path, _, _, graph = story
    log = await logged(path)
    environment, alone = GraphEnvironment(graph, path, "t", effects=EFFECTS), RecordedEnvironment([log], effects=EFFECTS)
    for length in range(len(log)):
        for action in (LOOK, SUM, act(("get_order", {"order_id": "1"}, "n5"))):
            mine, theirs = await environment.step(log.prefix(length), action), await alone.step(log.prefix(length), action)
            assert (mine.observations, mine.grades) == (theirs.observations, theirs.grades)
            assert (mine.error is None) == (theirs.error is None)


async def test_the_users_next_turn_is_taken_from_the_log(tmp_path):
    path = tmp_path / "agent.db"
    _, model, graph = play(path, said=["Cancel order 1.", "And order 2?"])
    log = await logged(path)
    environment = GraphEnvironment(graph, path, "t", effects=EFFECTS)
    turn = next(i for i, step in enumerate(log.steps) if step.observations and step.observations[0].role == "user")
    step = await environment.step(log.prefix(turn), log.steps[turn].action)
    assert [message.content for message in step.observations] == ["And order 2?"]
    other = await walk(environment, log.prefix(turn), SUM)
    assert (await environment.step(other, Message.assistant("Bye."))).terminated
    held = GraphEnvironment(graph, path, "t", effects=EFFECTS)
    after = log.prefix(turn).extend(step)
    assert (await held.policy().propose(after, 1))[0].action.content == "Order 1 is cancelled."
    mixed = Trajectory((), log.prompt, (*other.steps, replace(log.steps[turn], terminated=False)))
    assert await held.policy().propose(mixed, 1)
    assert [message.content for message in model.asked[-1] if message.type == "human"] == ["Cancel order 1.", "And order 2?"]


async def test_a_graph_that_trims_its_messages_ends_the_branch(tmp_path):
    from langchain.agents.middleware import AgentMiddleware
    from langchain_core.messages import RemoveMessage

    class Trim(AgentMiddleware):
        def before_model(self, state, runtime):
            said = state["messages"]
            return {"messages": [RemoveMessage(said[0].id)]} if len(said) > 6 and said[0].type == "human" else None

    path = tmp_path / "agent.db"
    _, _, graph = play(path, middleware=[Trim()], script=[*STORY[:1], AIMessage("done")])
    log = await logged(path)
    environment = GraphEnvironment(graph, path, "t", effects=EFFECTS)
    state = await walk(environment, log.prefix(1), act(("get_order", {"order_id": "1"}, "n0")))
    step = await environment.step(state, act(("get_order", {"order_id": "1"}, "n1")))
    assert step.truncated
    assert "no longer one growing context" in step.error


async def test_a_node_that_fails_is_data(story):
    path, _, _, graph = story
    log = await logged(path)

    class Broken:
        async def step(self, state, action):
            raise OSError("the disk is full")

    environment = GraphEnvironment(graph, path, "t", environment=Broken())
    with pytest.raises(OSError, match="disk is full"):
        await environment.step(log.prefix(1), CANCEL)

    def boom(order_id: str) -> str:
        """Cancel an order."""
        raise ValueError("boom")

    from langchain_core.tools import StructuredTool

    broken = agent(Scripted(script=STORY), [StructuredTool.from_function(boom, name="cancel")])
    step = await GraphEnvironment(broken, path, "t", execute_tools=["cancel"]).step(log.prefix(1), CANCEL)
    assert (step.error, step.truncated) == ("ValueError: boom", False)


async def test_it_reaches_out_nowhere(tmp_path):
    """A node may do without a tool what a tool would be stopped at."""
    import socket

    from langgraph.graph import END, START, MessagesState, StateGraph

    reached = []
    server = socket.create_server(("127.0.0.1", 0))
    address = server.getsockname()

    def retrieve(state):
        with socket.create_connection(address):
            reached.append(address)
        return {}

    def make(model, tools):
        builder = StateGraph(MessagesState)
        builder.add_node("model", lambda state: {"messages": [model.invoke(state["messages"])]})
        builder.add_node("retrieve", retrieve)
        builder.add_edge(START, "model")
        builder.add_edge("model", "retrieve")
        builder.add_edge("retrieve", END)
        return builder.compile()

    path = tmp_path / "agent.db"
    _, _, graph = play(path, make, script=[AIMessage("hello")])
    log = await logged(path)
    assert len(reached) == 1
    step = await GraphEnvironment(graph, path, "t").step(log.prefix(0), Message.assistant("hi"))
    assert step.truncated
    assert "127.0.0.1" in step.error
    assert len(reached) == 1
    step = await GraphEnvironment(graph, path, "t", allow_hosts=["127.0.0.1"]).step(log.prefix(0), Message.assistant("hi"))
    assert step.terminated
    assert len(reached) == 2
    server.close()


async def test_fingerprints_tell_what_would_answer_otherwise(story, tmp_path):
    path, desk, model, graph = story
    made = {
        GraphEnvironment(graph, path, "t", **options).fingerprint
        for options in (
            {},
            {"effects": EFFECTS},
            {"execute_tools": ["add"]},
            {"environment": RecordedEnvironment([])},
            {"recorded": [Trajectory()]},
        )
    }
    assert len(made) == 5
    assert GraphEnvironment(graph, path, "t").fingerprint == GraphEnvironment(graph, path, "t").fingerprint
    assert GraphEnvironment(agent(model, desk.tools()[:2]), path, "t").fingerprint not in made
    assert GraphPolicy(graph, path, "t").fingerprint != GraphPolicy(graph).fingerprint


async def test_a_source_needs_its_thread(story):
    with pytest.raises(UserError, match="thread_id"):
        await GraphPolicy(story[3], story[0]).propose(Trajectory(), 1)


async def test_an_asynchronous_checkpointer_serves_a_search(tmp_path):
    from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

    desk = Desk()
    async with AsyncSqliteSaver.from_conn_string(str(tmp_path / "agent.db")) as saver:
        graph = agent(Scripted(script=STORY), desk.tools(), checkpointer=saver)
        await graph.ainvoke({"messages": [("user", "go")]}, {"configurable": {"thread_id": "t"}})
        environment = GraphEnvironment(graph, saver, "t", effects=EFFECTS)
        step = await environment.step((await environment.initial()), SUM)
        assert [message.content_text for message in step.observations] == ["3"]


async def test_a_search_runs_over_the_agent_and_nothing_else_does(story):
    """Monte Carlo tree search from the first step: the graph's own model proposes, its tools are answered by the log."""
    path, desk, model, graph = story
    before = {each.name: each.read_bytes() for each in path.parent.iterdir()}
    tries = [STORY[0], does(("add", {"x": 1, "y": 2}, "t0")), does(("send_mail", {"text": "sorry"}, "t1")), AIMessage("I can't.")]
    model.script = [lambda messages, count: tries[count % len(tries)]]
    environment = GraphEnvironment(graph, path, "t", effects=EFFECTS)
    tree = await mcts(
        await environment.initial(),
        environment.policy(),
        environment,
        lambda trajectory: 1.0 if trajectory.steps and trajectory.steps[-1].terminated else 0.5,
        Budget.of(model_calls=60),
        num_simulations=12,
        num_actions=4,
        max_steps=4,
        seed=1,
    )
    ends = [node.state for node in tree.nodes if node.state.finished]
    assert any(state.steps[-1].terminated for state in ends)
    assert any(state.steps[-1].truncated and "send_mail" in state.steps[-1].error for state in ends)
    assert len({node.state.key for node in tree.nodes}) > 4
    assert not desk.executed
    assert {each.name: each.read_bytes() for each in path.parent.iterdir()} == before
