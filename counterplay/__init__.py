"""counterplay: counterfactual replay for multi-call agents.

Logged traces in, a search for what else the agent could have done, training data out. Names are imported on first use
(PEP 562), so that `import counterplay` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from counterplay.version import __version__

_HOMES = {
    "core.nouns": "Call Completeness Grade Message Outcome Proposal Score Source State Step ToolCall ToolSpec Trace Trajectory Usage",
    "core.effects": "Effect",
    "core.budget": "Budget",
    "core.protocols": "Environment Policy Verifier",
    "core.errors": "CounterplayError UserError",
    "core.store": "Store",
    "recording": "record",
    "reenact": "agent_environment replay_agent",
    "replay.effects": "tool",
    "search.tree": "Node SearchTree",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = ["__version__", *sorted(_HOME_OF)]  # noqa: PLE0604  names are resolved by __getattr__

if TYPE_CHECKING:
    from counterplay.core.budget import Budget as Budget
    from counterplay.core.effects import Effect as Effect
    from counterplay.core.errors import CounterplayError as CounterplayError
    from counterplay.core.errors import UserError as UserError
    from counterplay.core.nouns import Call as Call
    from counterplay.core.nouns import Completeness as Completeness
    from counterplay.core.nouns import Grade as Grade
    from counterplay.core.nouns import Message as Message
    from counterplay.core.nouns import Outcome as Outcome
    from counterplay.core.nouns import Proposal as Proposal
    from counterplay.core.nouns import Score as Score
    from counterplay.core.nouns import Source as Source
    from counterplay.core.nouns import State as State
    from counterplay.core.nouns import Step as Step
    from counterplay.core.nouns import ToolCall as ToolCall
    from counterplay.core.nouns import ToolSpec as ToolSpec
    from counterplay.core.nouns import Trace as Trace
    from counterplay.core.nouns import Trajectory as Trajectory
    from counterplay.core.nouns import Usage as Usage
    from counterplay.core.protocols import Environment as Environment
    from counterplay.core.protocols import Policy as Policy
    from counterplay.core.protocols import Verifier as Verifier
    from counterplay.core.store import Store as Store
    from counterplay.recording import record as record
    from counterplay.reenact import agent_environment as agent_environment
    from counterplay.reenact import replay_agent as replay_agent
    from counterplay.replay.effects import tool as tool
    from counterplay.search.tree import Node as Node
    from counterplay.search.tree import SearchTree as SearchTree


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        msg = f"module 'counterplay' has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(f"counterplay.{home}"), name)


def __dir__() -> list[str]:
    return list(__all__)
