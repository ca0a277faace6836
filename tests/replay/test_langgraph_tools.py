"""Tools in forked LangGraph threads: whatever kind they are and wherever a graph calls them, none is executed that was not named."""

import json
from collections import Counter
from typing import Annotated, Any, TypedDict

import pytest

pytest.importorskip("langchain", reason="langchain is not installed")

from langchain.agents import AgentState, create_agent
from langchain.agents.middleware import AgentMiddleware, HumanInTheLoopMiddleware, wrap_model_call, wrap_tool_call
from langchain.tools import InjectedState, ToolRuntime
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import InjectedToolCallId, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.types import Command, interrupt

from counterplay.core.effects import Effect
from counterplay.core.errors import PolicyError, UserError
from counterplay.core.nouns import Grade, Message
from counterplay.replay.langgraph import fork_graph, graph_forks
from tests.replay.graph_agents import EFFECTS, STORY, Scripted, act, agent, does, play
from tests.replay.loopback import Loopback, completion

CONFIG = {"configurable": {"thread_id": "t"}}


def invoked(graph, said="go", config=CONFIG):
    """A checkpointer that holds what the graph did, written before the next node may change what it is given in place."""
    saver = InMemorySaver()
    recorder = graph.copy(update={"checkpointer": saver})
    recorder.invoke(said if isinstance(said, Command) else {"messages": [("user", said)]}, config, durability="sync")
    return saver, recorder


def contents(fork):
    return [message.content_text for message in fork.state.steps[-1].observations]


# Tools that are more than functions of their arguments


class Counted(AgentState):
    seen: int


def knowing(executed):
    @tool
    def look(what: str, state: Annotated[Any, InjectedState]) -> str:
        """Look at something."""
        executed["look"] += 1
        return f"{what} among {len(state['messages'])}"

    @tool
    def note(what: str, tool_call_id: Annotated[str, InjectedToolCallId]) -> Command:
        """Take a note."""
        executed["note"] += 1
        return Command(update={"seen": 1, "messages": [ToolMessage(f"noted {what}", tool_call_id=tool_call_id)]})

    return [look, note]


async def test_results_that_depend_on_the_state_hold_after_an_identical_prefix_alone():
    executed = Counter()
    script = [does(("look", {"what": "a"}, "c0")), does(("note", {"what": "b"}, "c1")), AIMessage("done")]
    graph = agent(Scripted(script=script), knowing(executed), state_schema=Counted)
    saver, _ = invoked(graph)
    executed.clear()
    declared = {"note": Effect("pure")}
    forks = graph_forks(saver, "t")
    exact = await fork_graph(graph, saver, forks.at(0), effects=declared).go_on(max_steps=1)
    assert (contents(exact), exact.state.grade) == (["a among 2"], Grade.EXACT)
    for action, reason in ((act(("look", {"what": "a"}, "n0")), "is given the graph's state"),
                           (act(("note", {"what": "b"}, "n0")), "decided seen beside its answer")):  # fmt: skip
        fork = fork_graph(graph, saver, forks.at(2), effects=declared)
        went = await (await fork.answer(action)).go_on(max_steps=0)
        assert reason in went.stopped
    vouched = fork_graph(graph, saver, forks.at(2), effects={"look": Effect("pure")})
    went = await (await vouched.answer(act(("look", {"what": "a"}, "n0")))).go_on(max_steps=0)
    assert (contents(went), went.state.steps[-1].grades) == (["a among 2"], (Grade.REUSED,))
    assert not executed
    named = fork_graph(graph, saver, forks.at(2), execute_tools=["look", "note"])
    went = await (await named.answer(act(("note", {"what": "c"}, "n0"), ("look", {"what": "c"}, "n1")))).go_on(max_steps=0)
    assert contents(went) == ["noted c", "c among 6"]
    assert executed == {"look": 1, "note": 1}


async def test_what_a_command_wrote_is_in_the_forked_state():
    executed = Counter()
    script = [does(("note", {"what": "b"}, "c1")), lambda messages, count: AIMessage("done")]
    graph = agent(Scripted(script=script), knowing(executed), state_schema=Counted)
    saver, _ = invoked(graph)
    fork = fork_graph(graph, saver, graph_forks(saver, "t").at(1))
    assert fork.home.found.checkpoint["channel_values"]["seen"] == 1


def test_tools_with_the_runtime_are_bound_to_the_state_too():
    @tool
    def peek(runtime: ToolRuntime) -> str:
        """Peek."""
        return str(runtime.state)

    graph = agent(Scripted(script=[does(("peek", {}, "c0")), AIMessage("done")]), [peek])
    saver, _ = invoked(graph)
    assert fork_graph(graph, saver, graph_forks(saver, "t").at(1)).answers.bound_to_state == {"peek": "is given the graph's state"}


async def test_effects_come_from_mcp_annotations_where_none_is_given():
    from langchain_core.tools import StructuredTool

    def read(name: str) -> str:
        """Read."""
        return name

    tools = [StructuredTool.from_function(read, metadata={"readOnlyHint": True}), StructuredTool.from_function(read, name="other")]
    graph = agent(Scripted(script=[does(("read", {"name": "x"}, "c0")), AIMessage("done")]), tools)
    saver, _ = invoked(graph)
    effects = fork_graph(graph, saver, graph_forks(saver, "t").at(1)).answers.effects
    assert {name: effect.kind for name, effect in effects.items()} == {"read": "read", "other": "external"}


# The user's own wrappers and the two sides of a graph


@pytest.mark.parametrize("blocking", [False, True])
async def test_the_users_wrapper_sees_what_is_executed_and_not_what_is_recorded(tmp_path, blocking):
    seen = []

    @wrap_tool_call
    def log(request, handler):
        seen.append(request.tool_call["name"])
        return handler(request)

    @wrap_tool_call
    async def alog(request, handler):
        seen.append(request.tool_call["name"])
        return await handler(request)

    path = tmp_path / "agent.db"
    play(path)
    desk, _, _ = play(tmp_path / "other.db")
    graph = agent(Scripted(script=STORY), desk.tools(), middleware=[log if blocking else alog])
    fork = fork_graph(graph, path, graph_forks(path, "t").at(1), effects=EFFECTS, execute_tools=["list_orders"], blocking=blocking)
    went = await (await fork.answer(act(("list_orders", {}, "n0"), ("add", {"x": 1, "y": 2}, "n1")))).go_on(max_steps=0)
    assert went.state.steps[-1].grades == (Grade.EXECUTED, Grade.REUSED)
    assert seen == ["list_orders"]


async def test_middleware_with_a_synchronous_side_alone_needs_blocking(tmp_path):
    @wrap_model_call
    def shout(request, handler):
        return handler(request)

    path = tmp_path / "agent.db"
    _desk, _model, graph = play(path, middleware=[shout])
    point = graph_forks(path, "t").at(2)
    with pytest.raises(PolicyError, match="blocking=True"):
        await fork_graph(graph, path, point).sample()
    assert (await fork_graph(graph, path, point, blocking=True).sample())[0].action.tool_calls[0].name == "cancel"


async def test_middleware_that_edits_an_action_is_noticed(tmp_path):
    class Censor(AgentMiddleware):
        def after_model(self, state, runtime):
            last = state["messages"][-1]
            return {"messages": [last.model_copy(update={"content": "***"})]} if last.content == "rude" else None

    path = tmp_path / "agent.db"
    _, _, graph = play(path, middleware=[Censor()])
    fork = fork_graph(graph, path, graph_forks(path, "t").at(2))
    went = await (await fork.answer(Message.assistant("rude"))).go_on(max_steps=0)
    assert "changed the action into say(***)" in went.stopped
    assert (await (await fork.answer(Message.assistant("kind"))).go_on(max_steps=0)).ended


# Interrupts


def asking(executed):
    @tool
    def pay(amount: int) -> str:
        """Pay, once somebody agrees."""
        agreed = interrupt({"pay": amount})
        executed["pay"] += 1
        return f"paid {amount}: {agreed}"

    return pay


async def test_a_tool_that_waits_for_a_human_is_not_executed_by_the_answer():
    executed = Counter()
    graph = agent(Scripted(script=[does(("pay", {"amount": 3}, "c0")), AIMessage("done")]), [asking(executed)])
    saver, _ = invoked(graph)
    (point,) = [point for point in graph_forks(saver, "t") if point.next == ("tools",)]
    fork = fork_graph(graph, saver, point)
    assert [each.value for each in fork.interrupts] == [{"pay": 3}]
    with pytest.raises(UserError, match=r"waits for an answer to .'pay': 3"):
        await fork.go_on()
    with pytest.raises(UserError, match="pay has no prepared answer, is not named in execute_tools"):
        await fork.go_on(resume="yes")
    assert not executed
    edited = await fork.edit("c0", "paid by hand").go_on()
    assert (edited.state.steps[0].observations[0].content, edited.ended) == ("paid by hand", True)
    named = await fork_graph(graph, saver, point, execute_tools=["pay"]).go_on(resume="yes")
    assert named.state.steps[0].observations[0].content == "paid 3: yes"
    assert named.state.steps[0].grades == (Grade.EXECUTED,)
    assert named.ended
    assert executed == {"pay": 1}


async def test_a_fork_stops_where_a_human_is_asked():
    executed = Counter()
    script = [does(("add", {"x": 1, "y": 1}, "c0")), does(("mail", {"text": "hello"}, "c1")), AIMessage("done")]

    @tool
    def add(x: int, y: int) -> str:
        """A sum."""
        return str(x + y)

    @tool
    def mail(text: str) -> str:
        """Send."""
        executed["mail"] += 1
        return "sent"

    graph = agent(Scripted(script=script), [add, mail], middleware=[HumanInTheLoopMiddleware(interrupt_on={"mail": True})])
    saver, _recorder = invoked(graph)
    fork = fork_graph(graph, saver, graph_forks(saver, "t").at(0), effects={"add": Effect("pure")})
    went = await fork.go_on()
    assert len(went.state) == 2
    assert went.state.steps[-1].truncated
    assert went.stopped is None
    (asked,) = went.interrupts
    assert asked.value["action_requests"][0]["name"] == "mail"
    rejected = await went.go_on(resume={"decisions": [{"type": "reject", "message": "no mail"}]})
    assert rejected.state.steps[1].observations[0].content_text.endswith("with reason: no mail")
    assert rejected.ended
    approved = await went.go_on(resume={"decisions": [{"type": "approve"}]})
    assert "mail is not named in execute_tools" in approved.stopped
    assert not executed


# Graphs in graphs, and nodes that call tools by themselves


def team(executed, script):
    @tool
    def inner(x: int) -> str:
        """Inside."""
        executed["inner"] += 1
        return f"inner {x}"

    def work(messages, count):
        return AIMessage("worked") if messages[-1].type == "tool" else does(("inner", {"x": 1}, "i0"))

    worker = create_agent(Scripted(script=[work]), [inner])
    builder = StateGraph(MessagesState)
    lead = Scripted(script=script)
    builder.add_node("lead", lambda state: {"messages": [lead.invoke(state["messages"])]})
    builder.add_node("worker", worker)
    builder.add_edge(START, "lead")
    builder.add_edge("lead", "worker")
    builder.add_edge("worker", END)
    return builder.compile()


async def test_checkpoints_of_sub_graphs_are_refused_and_their_tools_not_executed():
    executed = Counter()
    graph = team(executed, [AIMessage("Worker, go on.")])
    saver, _ = invoked(graph)
    executed.clear()
    forks = graph_forks(saver, "t")
    inner = [point for point in forks.refused if point.namespace]
    assert inner
    assert {point.refused for point in inner} == {inner[0].refused}
    with pytest.raises(UserError, match=r"sub-graph, which LangGraph runs again from its start.*fork the top-level checkpoint before"):
        fork_graph(graph, saver, inner[0])
    assert forks.at(0).next == ("lead",)
    fork = await fork_graph(graph, saver, forks.at(0)).answer(Message.assistant("Worker, hurry."))
    assert fork.next == ("worker",)
    went = await fork.go_on()
    assert "inner has no prepared answer" in went.stopped
    assert not executed
    named = await fork_graph(graph, saver, forks.at(0), execute_tools=["inner"]).answer(Message.assistant("Worker, hurry."))
    went = await named.go_on()
    assert executed == {"inner": 1}
    assert "another node of the graph spoke" in went.stopped


def homemade(executed, model):
    """A graph without any tool node: a function calls the tools."""

    @tool
    def send(text: str) -> str:
        """Send."""
        executed["send"] += 1
        return "sent"

    def act_out(state):
        calls = state["messages"][-1].tool_calls
        return {"messages": [ToolMessage(send.invoke(call["args"]), tool_call_id=call["id"], name="send") for call in calls]}

    builder = StateGraph(MessagesState)
    builder.add_node("think", lambda state: {"messages": [model.invoke(state["messages"])]})
    builder.add_node("do", act_out)
    builder.add_edge(START, "think")
    builder.add_conditional_edges("think", lambda state: "do" if state["messages"][-1].tool_calls else END)
    builder.add_edge("do", "think")
    return builder.compile()


async def test_a_tool_that_a_function_calls_is_not_executed_either():
    executed = Counter()
    model = Scripted(script=[does(("send", {"text": "a"}, "c0")), AIMessage("done")])
    graph = homemade(executed, model)
    saver, _ = invoked(graph)
    executed.clear()
    forks = graph_forks(saver, "t")
    fork = fork_graph(graph, saver, forks.at(0))
    assert [proposal.action.tool_calls[0].name for proposal in await fork.sample()] == ["send"]
    went = await (await fork.answer(act(("send", {"text": "b"}, "n0")))).go_on()
    assert "send was called by a node that is no tool node" in went.stopped
    assert not executed
    named = fork_graph(graph, saver, forks.at(0), execute_tools=["send"])
    went = await (await named.answer(act(("send", {"text": "b"}, "n0")))).go_on()
    assert went.ended
    assert executed == {"send": 1}


# Other makes of graphs


@pytest.mark.filterwarnings("ignore:create_react_agent has been moved")
async def test_create_react_agent_is_forked_alike(tmp_path):
    from langgraph.prebuilt import create_react_agent

    path = tmp_path / "agent.db"
    desk, _model, graph = play(path, lambda model, tools: create_react_agent(model, tools, prompt="You keep orders."))
    fork = fork_graph(graph, path, graph_forks(path, "t").at(1), effects=EFFECTS)
    assert (await fork.sample())[0].action.tool_calls[0].name == "get_order"
    went = await (await fork.answer(act(("add", {"x": 1, "y": 2}, "n0")))).go_on(max_steps=0)
    assert (contents(went), went.next) == (["3"], ("agent",))
    with pytest.raises(UserError, match="create_agent"):
        await fork.sample(model=Scripted(script=[AIMessage("x")]))
    assert not desk.executed


async def test_a_state_in_delta_channels_is_forked_whole():
    delta = pytest.importorskip("langgraph.channels.delta")
    from langgraph.graph.message import add_messages

    def added(state, writes):
        for write in writes:
            state = add_messages(state, write)
        return state

    class Talk(TypedDict):
        messages: Annotated[list, delta.DeltaChannel(added)]

    script = [does(("add", {"x": 1, "y": 2}, "c0")), does(("add", {"x": 2, "y": 2}, "c1")), AIMessage("done")]
    model = Scripted(script=script)

    @tool
    def add(x: int, y: int) -> str:
        """A sum."""
        return str(x + y)

    builder = StateGraph(Talk)
    builder.add_node("model", lambda state: {"messages": [model.invoke(state["messages"])]})
    builder.add_node("tools", ToolNode([add]))
    builder.add_edge(START, "model")
    builder.add_conditional_edges("model", tools_condition, {"tools": "tools", END: END})
    builder.add_edge("tools", "model")
    graph = builder.compile()
    saver, _recorder = invoked(graph)
    forks = graph_forks(saver, "t")
    assert forks.at(2).state.messages[-1].content == "4"
    assert "messages" not in forks.at(2).read.tuples[forks.at(2).checkpoint_id].checkpoint["channel_values"]
    fork = fork_graph(graph, saver, forks.at(2), effects={"add": Effect("pure")})
    model.asked.clear()
    await fork.sample()
    assert [message.content for message in model.asked[0]] == ["go", "", "3", "", "4"]
    edited = fork.edit("c1", "5")
    await edited.sample()
    assert [message.content for message in model.asked[1]] == ["go", "", "3", "", "5"]
    went = await (await edited.answer(act(("add", {"x": 1, "y": 2}, "n0")))).go_on()
    assert [message.content for message in went.state.messages if message.role == "tool"] == ["3", "5", "3"]


async def test_structured_output_is_read_by_the_model_node_itself(tmp_path):
    from langchain.agents.structured_output import ToolStrategy
    from pydantic import BaseModel

    class Verdict(BaseModel):
        right: bool

    path = tmp_path / "agent.db"
    script = [STORY[0], does(("Verdict", {"right": True}, "v0"))]
    _desk, model, graph = play(path, script=script, response_format=ToolStrategy(Verdict))
    fork = fork_graph(graph, path, graph_forks(path, "t", allow_classes=[Verdict]).at(1), effects=EFFECTS)
    went = await fork.answer(act(("Verdict", {"right": False}, "n0")))
    assert went.ended
    assert "right=False" in contents(went)[0]
    assert not model.asked


# A real client


async def test_the_request_of_a_sample_is_the_recorded_one_byte_for_byte(tmp_path):
    from langchain_openai import ChatOpenAI

    calls = [("c0", "get_order", '{"order_id": "1"}')], [("c1", "add", '{"x": 1, "y": 2}')]
    with Loopback(completion(None, calls=calls[0]), completion(None, calls=calls[1]), completion("Bye.")) as server:
        model = ChatOpenAI(model="m", base_url=server.base_url, api_key="none", max_retries=0, use_responses_api=False)
        path = tmp_path / "agent.db"

        def make(_, tools):
            return agent(model, tools)

        desk, _, graph = play(path, make)
        recorded = list(server.bodies)
        assert len(recorded) == 3
        for step in range(3):
            fork = fork_graph(graph, path, graph_forks(path, "t").at(step), effects=EFFECTS)
            (found,) = await fork.sample()
            assert server.bodies[-1] == recorded[step]
            assert (found.action.content, found.usage.input_tokens, found.model) == ("answer 0", 10, "scripted-1")
        assert json.loads(server.bodies[-1])["tools"]
        assert not desk.executed
        await model.root_async_client.close()


async def test_a_node_that_changes_a_message_in_place_changes_it_for_itself_alone():
    def marking(messages, count):
        messages[-1].content += "!"
        return AIMessage(f"{count}: {messages[-1].content}")

    graph = create_agent(Scripted(script=[marking]))
    saver, _ = invoked(graph)
    point = graph_forks(saver, "t").at(0)
    fork = fork_graph(graph, saver, point)
    for _ in range(3):
        (found,) = await fork.sample()
        assert found.action.content.endswith(": go!")
    assert (await fork.answer(Message.assistant("x"))).state.prompt[0].content == "go"
    assert point.state.prompt[0].content == "go"


async def test_a_call_that_the_log_made_one_step_later_is_reused_and_not_exact(tmp_path):
    path = tmp_path / "agent.db"
    script = [does(("add", {"x": 1, "y": 1}, "c0")), does(("add", {"x": 2, "y": 2}, "c1")), AIMessage("done")]
    _desk, _, graph = play(path, script=script)
    fork = fork_graph(graph, path, graph_forks(path, "t").at(0), effects=EFFECTS, execute_tools=["list_orders"])
    calls = [("add", {"x": 1, "y": 1}, "n0"), ("add", {"x": 2, "y": 2}, "n1"), ("list_orders", {}, "n2")]
    went = await (await fork.answer(act(*calls))).go_on(max_steps=0)
    assert went.state.steps[0].grades == (Grade.REUSED, Grade.REUSED, Grade.EXECUTED)
