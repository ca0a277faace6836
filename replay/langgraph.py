"""Counterfactual replay of LangGraph agents from their checkpoints.

A checkpoint is re-homed in memory under a copy of the user's graph: her thread, her database, her graph, her store and her caches
stay as they are. `graph_forks` lists what can be forked, `fork_graph` forks it, and `GraphEnvironment` with `GraphPolicy` lets
every search run over the agent.
"""

from counterplay.replay.graphs.answers import ToolAnswers
from counterplay.replay.graphs.binding import GraphOptions
from counterplay.replay.graphs.environment import GraphEnvironment, GraphPolicy
from counterplay.replay.graphs.forks import GraphFork, afork_graph, fork_graph
from counterplay.replay.graphs.points import GraphForks, GraphPoint
from counterplay.replay.graphs.threads import agraph_forks, graph_forks

__all__ = [
    "GraphEnvironment",
    "GraphFork",
    "GraphForks",
    "GraphOptions",
    "GraphPoint",
    "GraphPolicy",
    "ToolAnswers",
    "afork_graph",
    "agraph_forks",
    "fork_graph",
    "graph_forks",
]
