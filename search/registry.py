"""The searches by name, and their options: what a front door needs to list, check and pass them."""

from __future__ import annotations

import inspect
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType, NoneType, UnionType
from typing import Any, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

from counterplay.core.errors import UserError
from counterplay.search.archive import archive
from counterplay.search.beam import beam
from counterplay.search.best_first import best_first
from counterplay.search.best_of_n import best_of_n
from counterplay.search.bounds import check_bounds
from counterplay.search.dvts import dvts
from counterplay.search.fork import fork_best_of_n
from counterplay.search.gumbel import gumbel
from counterplay.search.independent import independent
from counterplay.search.lats import lats
from counterplay.search.lookahead import lookahead
from counterplay.search.mcts import mcts
from counterplay.search.mcts_star import mcts_star
from counterplay.search.particles import particle_filter
from counterplay.search.rebase import rebase
from counterplay.search.receding import receding_horizon
from counterplay.search.repair import repair
from counterplay.search.rollout import greedy, rollout
from counterplay.search.tot import depth_first
from counterplay.search.tree import SearchTree
from counterplay.search.vote import self_consistency

SearchFunction: TypeAlias = Callable[..., Awaitable[SearchTree]]
"""async (state, policy, environment, verifier, budget, *, seed=0, concurrency=64, on_wave=None, ...) -> SearchTree"""

SEARCHES: Mapping[str, SearchFunction] = MappingProxyType(
    {
        "rollout": rollout,
        "greedy": greedy,
        "self_consistency": self_consistency,
        "best_of_n": best_of_n,
        "independent": independent,
        "lookahead": lookahead,
        "archive": archive,
        "beam": beam,
        "dvts": dvts,
        "rebase": rebase,
        "particle_filter": particle_filter,
        "best_first": best_first,
        "depth_first": depth_first,
        "mcts": mcts,
        "mcts_star": mcts_star,
        "gumbel": gumbel,
        "lats": lats,
        "receding_horizon": receding_horizon,
        "fork_best_of_n": fork_best_of_n,
        "repair": repair,
    }
)
"""Every search that plays. `stitch.stitch`, which merges logged runs, has another shape: many trajectories, no policy."""

_OBJECTS = frozenset({"on_wave", "reflect", "siblings", "world_model"})
"""Options that are no text: they can be given in Python alone."""

LOGGED = frozenset({"fork_best_of_n", "repair"})
"""The searches whose state is a whole logged run, not a prefix to go on from."""

UNSTOPPABLE = frozenset(
    {
        "rollout",
        "greedy",
        "self_consistency",
        "best_of_n",
        "independent",
        "lookahead",
        "receding_horizon",
        "fork_best_of_n",
    }
)
"""The searches that score no end before all their lines have ended, so that no condition of `stopping.py` can end them early."""


@dataclass(frozen=True, slots=True)
class Option:
    """One keyword of a search. `kind` is its type as people read it, such as `int` or `"puct" or "uct"`."""

    name: str
    kind: str
    default: Any
    hint: Any


def options(search: Callable[..., Any]) -> dict[str, Option]:
    """The keyword options of a search that can be written as text, in the order of its signature."""
    hints = get_type_hints(search)
    keywords = [p for p in inspect.signature(search).parameters.values() if p.kind is p.KEYWORD_ONLY and p.name not in _OBJECTS]
    return {p.name: Option(p.name, _kind(hints[p.name]), p.default, hints[p.name]) for p in keywords}


def find(name: str) -> SearchFunction:
    """The search of this name. Raises UserError where there is none."""
    if name not in SEARCHES:
        raise UserError(f"got search {name!r}", f"one of {', '.join(SEARCHES)}", meant(name, SEARCHES))
    return SEARCHES[name]


def parse_options(search: Callable[..., Any], given: Mapping[str, str]) -> dict[str, Any]:
    """Options written as text, such as {"n": "8", "pivots": "3,7"}, as values. Raises UserError where one can't be."""
    known = options(search)
    parsed = {}
    for name, text in given.items():
        if name not in known:
            raise UserError(f"got option {name!r}", f"one of {', '.join(known)}", meant(name, known))
        try:
            parsed[name] = _parse(known[name].hint, text.strip())
        except ValueError:
            raise UserError(f"got option {name}={text!r}", known[name].kind) from None
    check_bounds(parsed)
    return parsed


def meant(text: str, known: Iterable[str]) -> str:
    """`Did you mean ...?` where one of the `known` names is close to `text`; else empty."""
    from difflib import get_close_matches

    close = get_close_matches(text.lower(), list(known), n=1)
    return f"Did you mean {close[0]}?" if close else ""


def _kind(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " or ".join(json.dumps(value) for value in arguments)
    if origin in (Union, UnionType):
        return " or ".join(_kind(argument) for argument in arguments)
    if hint is NoneType:
        return "none"
    if origin is not None and issubclass(origin, Sequence):
        return f"{_kind(arguments[0])},{_kind(arguments[0])},..."
    return str(getattr(hint, "__name__", hint))


def _parse(hint: Any, text: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        if NoneType in arguments and text.lower() == "none":
            return None
        return _parse(next(argument for argument in arguments if argument is not NoneType), text)
    if origin is Literal:
        if text not in arguments:
            raise ValueError(text)
        return text
    if origin is not None and issubclass(origin, Sequence):
        return [_parse(arguments[0], part.strip()) for part in text.split(",") if part.strip()]
    if hint is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    if hint in (int, float, str):
        return hint(text)
    raise ValueError(text)
