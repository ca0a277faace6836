"""From the name of a simulation to the simulation: `nearest`, `openai:MODEL`, `module:attr`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from counterplay.core.effects import Effect
from counterplay.core.errors import UserError
from counterplay.core.loading import resolve
from counterplay.core.nouns import Trajectory
from counterplay.replay.simulated import NearestRecorded, Simulation
from counterplay.replay.world_model import WorldModel

SPELLINGS = "nearest, openai:MODEL or module:attr"


def simulation_from_spec(
    spec: str,
    trajectories: Sequence[Trajectory],
    *,
    effects: Mapping[str, Effect] | None = None,
    base_url: str | None = None,
    min_likeness: float | None = None,
    simulate_writes: bool = False,
    fidelity: Mapping[str, float] | None = None,
    min_fidelity: float | None = None,
) -> Simulation:
    """The simulation that `spec` names, out of the results in `trajectories`.

    `base_url` is for `openai:`, `min_likeness` for `nearest`. `module:attr` is a function or class that takes the trajectories and
    `effects`, `simulate_writes`, `fidelity`, `min_fidelity` by name. Raises UserError where the name means nothing.
    """
    kind, colon, rest = spec.partition(":")
    rules: dict[str, Any] = {
        "effects": effects, "simulate_writes": simulate_writes, "fidelity": fidelity, "min_fidelity": min_fidelity,
    }  # fmt: skip
    if kind == "nearest" and not colon:
        likeness: dict[str, Any] = {} if min_likeness is None else {"min_likeness": min_likeness}
        return NearestRecorded(trajectories, **likeness, **rules)
    if not colon or not rest:
        raise UserError(f"got simulation {spec!r}", SPELLINGS)
    if kind == "openai":
        return WorldModel(trajectories, rest, base_url=base_url, **rules)
    made = cast("Callable[..., object]", resolve(spec, "simulation"))(trajectories, **rules)
    if not isinstance(made, Simulation):
        raise UserError(f"got simulation {spec!r}, which made a {type(made).__name__}", "a counterplay.replay.simulated.Simulation")
    return made
