"""A LangGraph agent with checkpoints: go back to one, in memory, and see what its model would say four more times.

python examples/langgraph_agent.py
"""

import asyncio
import random

from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

from counterplay import Message
from counterplay.core.effects import Effect
from counterplay.core.nouns import ToolCall
from counterplay.replay.langgraph import fork_graph, graph_forks


@tool
def look_up(order_id: str) -> str:
    """The status of an order."""
    return f"order {order_id} is open"


def model(state):  # stands in for yours
    if state["messages"][-1].type == "tool":
        return {"messages": [AIMessage(random.choice(["It is open.", "It was shipped."]))]}
    return {"messages": [AIMessage("", tool_calls=[{"name": "look_up", "args": {"order_id": "17"}, "id": "c0"}])]}


builder = StateGraph(MessagesState)
builder.add_node("model", model)
builder.add_node("tools", ToolNode([look_up]))
builder.add_edge(START, "model")
builder.add_conditional_edges("model", tools_condition, {"tools": "tools", END: END})
builder.add_edge("tools", "model")
saver = InMemorySaver()  # or the file of a SqliteSaver, or a Postgres saver
graph = builder.compile(checkpointer=saver)
graph.invoke({"messages": [("user", "What about order 17?")]}, {"configurable": {"thread_id": "t"}})


async def main() -> None:
    effects = {"look_up": Effect.parse("read(order:{order_id})")}
    fork = fork_graph(graph, saver, graph_forks(saver, "t").at(1), effects=effects)  # after the order was looked up
    print("it might say:", sorted({proposal.action.content_text for proposal in await fork.sample(4)}))

    again = Message.assistant(tool_calls=[ToolCall("n0", "look_up", '{"order_id": "17"}')])
    went = await (await fork.answer(again)).go_on()  # the tool is answered from the log, then the graph goes on
    print("looking again, then:", [f"{step.action.signature} ({step.grade.name.lower()})" for step in went.state.steps])


asyncio.run(main())
