"""Forks of LangGraph threads, written by LangGraph itself: what can be forked, what comes of it, and what is never touched."""

import asyncio
import json
import shutil
import sqlite3
from pathlib import Path

import pytest

pytest.importorskip("langchain", reason="langchain is not installed")

from langchain_core.messages import AIMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver

from counterplay.connectors.langgraph import CONNECTOR
from counterplay.core.errors import PolicyError, SourceError, UserError
from counterplay.core.nouns import Grade, Message
from counterplay.replay.langgraph import afork_graph, agraph_forks, fork_graph, graph_forks
from tests.replay.graph_agents import EFFECTS, STORY, Desk, Scripted, act, agent, does, fresh_story, play

DATA = Path(__file__).parents[3] / "shared" / "data" / "multiformat" / "langgraph"
FILES = sorted(DATA.glob("*.sqlite"))


@pytest.fixture
def story(tmp_path):
    return fresh_story(tmp_path)


def signatures(found):
    return [proposal.action.signature for proposal in found]


def contents(step):
    return [message.content_text for message in step.observations]


def bytes_of(folder):
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in sorted(folder.iterdir())}


# What can be forked


def test_points_say_where_the_model_was_asked(story):
    forks = graph_forks(story[0], "t")
    asked = [point for point in forks if point.next == ("model",)]
    assert [point.step for point in asked] == [0, 1, 2, 3, 4, 5]
    assert {point.next for point in forks} == {("__start__",), ("model",), ("tools",), ("tools", "tools")}
    assert forks.at(2) == asked[2]
    (ended,) = forks.refused
    assert ended.next == ()
    assert "nothing follows" in ended.refused
    with pytest.raises(UserError, match="nothing follows"):
        fork_graph(story[3], story[0], ended)


async def test_points_hold_the_messages_that_the_connector_reads(tmp_path):
    path = tmp_path / "agent.db"
    play(path, said=["Cancel order 1.", "Thanks!"])
    (trace,) = [item async for item in CONNECTOR.read(path)]
    forks = graph_forks(path, "t")
    steps = [forks.at(step) for step in range(len(trace.trajectory))]
    assert [point.state.messages for point in steps] == [trace.trajectory.prefix(i).messages for i in range(len(steps))]
    assert [point.state.key for point in steps] == [trace.trajectory.prefix(i).key for i in range(len(steps))]
    assert len(trace.trajectory) == 7


def test_a_thread_without_earlier_states_says_why(tmp_path):
    saver = InMemorySaver()
    graph = agent(Scripted(script=STORY), Desk().tools(), checkpointer=saver)
    graph.invoke({"messages": [("user", "go")]}, {"configurable": {"thread_id": "t"}}, durability="exit")
    forks = graph_forks(saver, "t")
    assert not len(forks)
    assert "durability='exit'" in forks.note
    with pytest.raises(UserError, match="durability='exit'"):
        forks.at(0)


def test_what_is_no_thread_is_refused_by_name(story, tmp_path):
    path, _, _, graph = story
    with pytest.raises(UserError, match="no checkpoints"):
        graph_forks(path, "another")
    with pytest.raises(UserError, match="messages_key=one of"):
        graph_forks(path, "t", messages_key="talk")
    with pytest.raises(UserError, match="one of thread t"):
        fork_graph(graph, path, "1ef", thread_id="t")
    with pytest.raises(UserError, match="without its thread"):
        fork_graph(graph, path, "1ef")
    (tmp_path / "x.db").write_text("hello")
    with pytest.raises(SourceError, match="no SQLite database"):
        graph_forks(tmp_path / "x.db", "t")
    with pytest.raises(UserError, match="as a source"):
        graph_forks(3, "t")
    with pytest.raises(UserError, match="compiled LangGraph graph"):
        fork_graph("graph", path, graph_forks(path, "t").at(1))


# What is never touched


async def test_the_file_and_its_folder_stay_as_they_are(story):
    path, desk, _, graph = story
    before = bytes_of(path.parent)
    fork = fork_graph(graph, path, graph_forks(path, "t").at(3), effects=EFFECTS)
    await fork.sample(2)
    await (await fork.answer(STORY[3])).go_on(max_steps=1)
    assert bytes_of(path.parent) == before
    assert not desk.executed


async def test_so_they_do_while_somebody_writes(tmp_path):
    """The checkpoints lie in a log beside the file, and a reader of SQLite's would change what stands beside it."""
    path = tmp_path / "agent.db"
    play(path)
    writer = sqlite3.connect(path, check_same_thread=False)
    saver = SqliteSaver(writer)
    graph = agent(Scripted(script=STORY), Desk().tools())
    graph.copy(update={"checkpointer": saver}).invoke({"messages": [("user", "again")]}, {"configurable": {"thread_id": "second"}})
    assert (tmp_path / "agent.db-wal").stat().st_size
    before = bytes_of(tmp_path)
    assert await fork_graph(graph, path, graph_forks(path, "second").at(2)).sample(1)
    assert bytes_of(tmp_path) == before
    writer.close()


class ReadOnly(InMemorySaver):
    """A customer's checkpointer on which only reading is allowed from now on."""

    sealed = False

    def put(self, *args, **kwargs):
        assert not self.sealed, "a checkpoint was written"
        return super().put(*args, **kwargs)

    def put_writes(self, *args, **kwargs):
        assert not self.sealed, "writes were written"
        return super().put_writes(*args, **kwargs)

    def delete_thread(self, *args):
        raise AssertionError("a thread was deleted")


async def test_a_live_checkpointer_is_only_read():
    saver, model = ReadOnly(), Scripted(script=STORY)
    graph = agent(model, Desk().tools(), checkpointer=saver)
    config = {"configurable": {"thread_id": "t"}}
    graph.invoke({"messages": [("user", "go")]}, config)
    saver.sealed = True
    nodes, before = dict(graph.nodes), list(saver.list(config))
    fork = fork_graph(graph, saver, graph_forks(saver, "t").at(1), effects=EFFECTS)
    assert len(await fork.sample(3)) == 3
    went = await fork.go_on()
    assert went.ended
    assert list(saver.list(config)) == before
    assert graph.checkpointer is saver
    assert graph.nodes == nodes


async def test_the_users_store_is_read_and_not_written(tmp_path):
    from langgraph.config import get_store
    from langgraph.store.memory import InMemoryStore

    store = InMemoryStore()
    store.put(("notes",), "tone", {"be": "kind"})

    def noting(messages, _):
        get_store().put(("notes",), "last", {"said": len(messages)})
        return AIMessage(f"I am {get_store().get(('notes',), 'tone').value['be']}.")

    path = tmp_path / "agent.db"
    _, _, graph = play(path, script=[*STORY[:2], noting], store=store)
    store.delete(("notes",), "last")
    fork = fork_graph(graph, path, graph_forks(path, "t").at(2))
    with pytest.raises(PolicyError, match="writes to its store"):
        await fork.sample()
    assert store.get(("notes",), "last") is None


# Sampling and answering


async def test_samples_are_drawn_one_by_one_and_not_followed(story):
    path, desk, model, graph = story
    fork = fork_graph(graph, path, graph_forks(path, "t").at(2))
    model.script = [lambda messages, count: does(("add", {"x": count, "y": 0}, f"s{count}"))]
    found = await fork.sample(4)
    assert sorted(signatures(found)) == [f'add({{"x":{i},"y":0}})' for i in (1, 2, 3, 4)]
    assert [[message.type for message in asked] for asked in model.asked] == [["system", "human", "ai", "tool", "ai", "tool", "tool"]] * 4
    assert not desk.executed
    assert (found[0].usage.input_tokens, found[0].usage.cached_tokens, found[0].model) == (12, 2, "scripted-1")
    assert fork.state == graph_forks(path, "t").at(2).state


async def test_another_model_can_be_asked(story):
    path, _, model, graph = story
    other = Scripted(script=[AIMessage("I give up.")])
    fork = fork_graph(graph, path, graph_forks(path, "t").at(2))
    assert signatures(await fork.sample(2, model=other)) == ["say(I give up.)"] * 2
    assert [len(asked) for asked in other.asked] == [7, 7]
    assert other.asked[0][0].content == "You keep orders."
    assert not model.asked
    assert signatures(await fork.sample()) == [act(("cancel", {"order_id": "1"}, "")).signature]


async def test_equal_samples_out_of_a_cache_are_refused(story):
    from langchain_core.caches import InMemoryCache
    from langchain_core.globals import set_llm_cache

    fork = fork_graph(story[3], story[0], graph_forks(story[0], "t").at(2))
    set_llm_cache(InMemoryCache())
    try:
        with pytest.raises(UserError, match="same answer"):
            await fork.sample(2)
    finally:
        set_llm_cache(None)


async def test_a_prefix_costs_no_model_call_and_no_tool_call(story):
    path, desk, model, graph = story
    forks = graph_forks(path, "t")
    for step in (0, 3, 5):
        fork = fork_graph(graph, path, forks.at(step), effects=EFFECTS)
        assert len(fork.state) == step
        said = await fork.answer(STORY[step])
        assert len(said.state) == step + 1
    assert not model.asked
    assert not desk.executed


async def test_the_logged_answer_goes_on_as_logged(story):
    path, desk, model, graph = story
    (trace,) = [item async for item in CONNECTOR.read(path)]
    went = await fork_graph(graph, path, graph_forks(path, "t").at(0), effects=EFFECTS).go_on()
    assert went.state.messages == trace.trajectory.messages
    assert went.state.grade is Grade.EXACT
    assert went.ended
    assert went.state.steps[-1].terminated
    assert len(model.asked) == 6
    assert not desk.executed


async def test_what_the_model_does_otherwise_is_answered_by_what_still_holds(story):
    path, desk, _, graph = story
    fork = fork_graph(graph, path, graph_forks(path, "t").at(1), effects=EFFECTS)

    async def answered(*calls):
        return (await (await fork.answer(act(*calls))).go_on(max_steps=0)).state.steps[-1]

    reused = await answered(("add", {"y": 2, "x": 1}, "n0"), ("get_order", {"order_id": "1"}, "n1"))
    assert contents(reused) == ["3", "1 is open"]
    assert reused.grades == (Grade.REUSED, Grade.REUSED)
    assert [message.tool_call_id for message in reused.observations] == ["n0", "n1"]
    unknown = await answered(("get_order", {"order_id": "3"}, "n0"))
    assert unknown.truncated
    assert "never called with these arguments" in unknown.error
    later = await answered(("cancel", {"order_id": "2"}, "n0"))
    assert later.truncated
    mail = await answered(("send_mail", {"text": "hello"}, "n0"))
    assert "not named in execute_tools, and nothing was executed" in mail.error
    assert not desk.executed


async def test_a_read_after_another_write_is_not_reused(story):
    path, desk, _, graph = story
    fork = fork_graph(graph, path, graph_forks(path, "t").at(1), effects=EFFECTS, execute_tools=["cancel"])
    other = await (await fork.answer(act(("cancel", {"order_id": "2"}, "n0")))).go_on(max_steps=0)
    assert other.state.steps[-1].grades == (Grade.EXECUTED,)
    assert desk.executed == {"cancel": 1}
    one = await (await other.answer(act(("get_order", {"order_id": "1"}, "n1")))).go_on(max_steps=0)
    assert (contents(one.state.steps[-1]), one.state.steps[-1].grades) == (["1 is open"], (Grade.REUSED,))
    two = await (await other.answer(act(("get_order", {"order_id": "2"}, "n1")))).go_on(max_steps=0)
    assert "something that it depends on differs" in two.stopped
    assert desk.executed == {"cancel": 1}


async def test_parallel_calls_are_answered_each_by_its_own_rule(story):
    path, desk, _, graph = story
    fork = fork_graph(graph, path, graph_forks(path, "t").at(1), effects=EFFECTS, execute_tools=["list_orders"])
    calls = [("list_orders", {}, "n0"), ("get_order", {"order_id": "2"}, "n1"), ("add", {"x": 1, "y": 2}, "n2")]
    went = await (await fork.answer(act(*calls))).go_on(max_steps=0)
    step = went.state.steps[-1]
    assert step.grades == (Grade.EXECUTED, Grade.REUSED, Grade.REUSED)
    assert contents(step) == [json.dumps(desk.orders), "2 is open", "3"]
    assert desk.executed == {"list_orders": 1}
    denied = await (await fork.answer(act(*calls, ("send_mail", {"text": "hello"}, "n3")))).go_on(max_steps=0)
    assert denied.state.steps[-1].truncated
    assert desk.executed == {"list_orders": 1}, "one call without an answer keeps all of them from being executed"


async def test_an_environment_answers_before_tools_are_executed(story):
    from counterplay.core.nouns import Step

    class World:
        async def step(self, state, action):
            return Step(action, tuple(Message.tool(f"world {call.name}", call.id) for call in action.tool_calls), grades=(Grade.SIMULATED,))

    path, desk, _, graph = story
    fork = fork_graph(graph, path, graph_forks(path, "t").at(1), effects=EFFECTS, environment=World(), execute_tools=["send_mail"])
    went = await (await fork.answer(act(("send_mail", {"text": "x"}, "n0")))).go_on(max_steps=0)
    assert contents(went.state.steps[-1]) == ["world send_mail"]
    assert went.state.steps[-1].grades == (Grade.SIMULATED,)
    assert not desk.executed


async def test_a_tool_that_is_not_there_is_answered_by_the_graph(story):
    path, _desk, _, graph = story
    fork = fork_graph(graph, path, graph_forks(path, "t").at(1), effects=EFFECTS)
    went = await (await fork.answer(act(("erase", {}, "n0")))).go_on(max_steps=0)
    (said,) = contents(went.state.steps[-1])
    assert "erase is not a valid tool" in said
    assert went.state.steps[-1].observations[0].fields["status"] == "error"


async def test_an_answer_says_whether_a_model_wrote_it(story):
    path, _, _, graph = story
    fork = fork_graph(graph, path, graph_forks(path, "t").at(5))
    for given in (AIMessage("Bye."), {"role": "assistant", "content": "Bye."}, Message.assistant("Bye.")):
        went = await fork.answer(given)
        assert went.ended
        assert (went.state.steps[-1].action.content, went.state.steps[-1].sampled) == ("Bye.", False)
    assert (await fork.answer(Message.assistant("Bye."), sampled=True)).state.steps[-1].sampled
    with pytest.raises(UserError, match="has ended"):
        await went.sample()
    with pytest.raises(UserError, match="has ended"):
        await went.go_on()
    with pytest.raises(UserError, match="assistant message"):
        await fork.answer(Message.user("Bye."))
    with pytest.raises(UserError, match="as a message"):
        await fork.answer(3)


async def test_branches_of_one_fork_do_not_see_each_other(story):
    path, _, model, graph = story
    fork = fork_graph(graph, path, graph_forks(path, "t").at(1), effects=EFFECTS)
    left, right = await asyncio.gather(fork.answer(Message.assistant("left")), fork.answer(Message.assistant("right")))
    assert [each.state.steps[-1].action.content for each in (left, right)] == ["left", "right"]
    assert len(fork.state) == 1
    went = await asyncio.gather(*(fork.go_on(max_steps=2) for _ in range(4)))
    assert {each.state.key for each in went} == {went[0].state.key}
    assert len(model.asked) == 8


async def test_until_and_max_steps_stop_before_the_next_model_call(story):
    path, _, model, graph = story
    fork = fork_graph(graph, path, graph_forks(path, "t").at(0), effects=EFFECTS)
    went = await fork.go_on(until=lambda state: len(state) == 2)
    assert (len(went.state), went.next, went.ended, went.stopped) == (2, ("model",), False, None)
    assert len((await went.go_on(max_steps=2)).state) == 4
    assert len(model.asked) == 4


async def test_a_failing_model_is_an_error_of_the_policy(story):
    def fails(messages, count):
        raise ConnectionError("no route")

    path, _, model, graph = story
    fork = fork_graph(graph, path, graph_forks(path, "t").at(1))
    model.script = [fails]
    with pytest.raises(PolicyError, match="no route"):
        await fork.sample(2)
    with pytest.raises(PolicyError, match="no route"):
        await fork.go_on()


# Edited results


async def test_a_result_is_edited_and_the_model_sees_it(story):
    path, _, model, graph = story
    fork = fork_graph(graph, path, graph_forks(path, "t").at(2), effects=EFFECTS)
    edited = fork.edit("c1", "2 is lost")
    assert contents(edited.state.steps[-1]) == ["2 is lost", "3"]
    assert edited.state.steps[-1].grades == (Grade.SIMULATED, Grade.EXACT)
    await edited.sample()
    assert [message.content for message in model.asked[-1] if message.type == "tool"] == ["1 is open", "2 is lost", "3"]
    await fork.sample()
    assert [message.content for message in model.asked[-1] if message.type == "tool"] == ["1 is open", "2 is open", "3"]
    with pytest.raises(UserError, match="fork the checkpoint that follows it"):
        fork.edit("c0", "earlier")


async def test_a_result_is_given_before_its_tool_answers(story):
    path, desk, _, graph = story
    (point,) = [point for point in graph_forks(path, "t") if point.next == ("tools", "tools")]
    fork = fork_graph(graph, path, point, effects=EFFECTS)
    assert len(fork.state) == 2
    went = await fork.edit("c2", "4").go_on(max_steps=0)
    assert contents(went.state.steps[-1]) == ["2 is open", "4"]
    assert went.state.steps[-1].grades == (Grade.REUSED, Grade.SIMULATED)
    assert not desk.executed
    with pytest.raises(UserError, match="in which tools are to answer"):
        await fork.sample()


# Files that are not to be trusted


async def test_nothing_that_a_file_names_comes_to_life(tmp_path):
    path = tmp_path / "agent.db"
    _, _, _graph = play(path)
    serde = SqliteSaver(sqlite3.connect(":memory:")).serde
    connection = sqlite3.connect(path)
    (blob,) = connection.execute("SELECT checkpoint FROM checkpoints ORDER BY checkpoint_id DESC LIMIT 1").fetchone()
    checkpoint = serde.loads_typed(("msgpack", blob))
    checkpoint["channel_values"]["jump_to"] = Foreign("x")
    connection.execute("UPDATE checkpoints SET checkpoint = ? WHERE checkpoint = ?", (serde.dumps_typed(checkpoint)[1], blob))
    connection.commit()
    Foreign.made = 0
    with pytest.raises(SourceError, match=r"objects of .*Foreign"):
        graph_forks(path, "t")
    assert not Foreign.made
    assert graph_forks(path, "t", allow_classes=[Foreign]).at(1)
    assert Foreign.made
    connection.execute("UPDATE checkpoints SET type = 'pickle'")
    connection.commit()
    connection.close()
    with pytest.raises(SourceError, match="pickle"):
        graph_forks(path, "t")


class Foreign:
    made = 0

    def __init__(self, text):
        Foreign.made += 1
        self.text = text

    def model_dump(self):
        return {"text": self.text}

    @classmethod
    def model_construct(cls, **kwargs):
        return cls(**kwargs)


# Checkpointers of an event loop


async def test_an_asynchronous_checkpointer_is_read_in_its_loop(tmp_path):
    from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

    desk, model = Desk(), Scripted(script=STORY)
    async with AsyncSqliteSaver.from_conn_string(str(tmp_path / "agent.db")) as saver:
        graph = agent(model, desk.tools(), checkpointer=saver)
        await graph.ainvoke({"messages": [("user", "go")]}, {"configurable": {"thread_id": "t"}})
        desk.executed.clear()
        with pytest.raises(UserError, match="Await agraph_forks"):
            graph_forks(saver, "t")
        forks = await agraph_forks(saver, "t")
        fork = await afork_graph(graph, saver, forks.at(2).checkpoint_id, thread_id="t", effects=EFFECTS)
        went = await fork.go_on()
        assert went.ended
        assert went.state.grade is Grade.EXACT
        assert not desk.executed


# Real threads


@pytest.mark.skipif(not FILES, reason="the shared real logs are not here")
@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name.partition(".")[0])
async def test_real_threads_are_forked_at_every_step(file, tmp_path):
    from langgraph.graph import END, START, MessagesState, StateGraph
    from langgraph.prebuilt import ToolNode, tools_condition

    path = Path(shutil.copy(file, tmp_path))
    before = bytes_of(tmp_path)
    (trace,) = [item async for item in CONNECTOR.read(path)]
    names = {call.name for step in trace.trajectory.steps for call in step.action.tool_calls}
    executed = []
    builder = StateGraph(MessagesState)
    model = Scripted(script=[AIMessage("enough")])
    builder.add_node("agent", lambda state: {"messages": [model.invoke(state["messages"])]})
    builder.add_node("tools", ToolNode([named(name, executed) for name in sorted(names)]))
    builder.add_edge(START, "agent")
    builder.add_conditional_edges("agent", tools_condition, {"tools": "tools", END: END})
    builder.add_edge("tools", "agent")
    graph = builder.compile()
    forks = graph_forks(path, trace.session)
    for number, step in enumerate(trace.trajectory.steps):
        fork = fork_graph(graph, path, forks.at(number))
        assert fork.state == trace.trajectory.prefix(number)
        assert signatures(await fork.sample()) == ["say(enough)"]
        went = await fork.answer(step.action)
        if not went.ended:
            went = await went.go_on(max_steps=0)
        assert (went.state.steps[-1].observations, went.state.grade) == (step.observations, Grade.EXACT)
        assert went.state.messages == trace.trajectory.prefix(number + 1).messages
    assert not executed
    assert bytes_of(tmp_path) == before


def named(name, executed):
    from langchain_core.tools import StructuredTool

    def run(**kwargs):
        executed.append(name)
        return "really"

    return StructuredTool.from_function(run, name=name, description=name, args_schema={"type": "object", "properties": {}})


async def test_steps_are_counted_anew_where_the_graph_rewrote_its_messages(tmp_path):
    from langchain.agents.middleware import AgentMiddleware
    from langchain_core.messages import RemoveMessage

    class Trim(AgentMiddleware):
        def before_model(self, state, runtime):
            said = state["messages"]
            return {"messages": [RemoveMessage(each.id) for each in said[1:3]]} if len(said) == 5 else None

    path = tmp_path / "agent.db"
    script = [does(("add", {"x": i, "y": i}, f"c{i}")) for i in range(3)]
    count = iter([*script, AIMessage("done")])
    _, model, graph = play(path, script=[lambda messages, _: next(count)], middleware=[Trim()])
    forks = graph_forks(path, "t")
    assert [message.content for message in forks.at(1, rewrites=0).messages] == ["Cancel order 1.", None, "0"]
    assert [message.content for message in forks.at(1, rewrites=1).messages] == ["Cancel order 1.", None, "2"]
    assert forks.at(1) == forks.at(1, rewrites=2)
    with pytest.raises(UserError, match="got step 7"):
        forks.at(7)
    (trace,) = [item async for item in CONNECTOR.read(path)]
    assert trace.sub_trajectories
    model.script = [AIMessage("enough")]
    for rewrites in (0, 1):
        await fork_graph(graph, path, forks.at(1, rewrites=rewrites)).sample()
    assert [[message.content for message in asked][1:] for asked in model.asked] == [
        ["Cancel order 1.", "", "0"],
        ["Cancel order 1.", "", "2"],
    ]
