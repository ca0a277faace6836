"""Writes the golden trees again: `python -m tests.search.regenerate_golden`. Read the difference before you keep it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from counterplay.core.budget import Budget
from counterplay.search.registry import SEARCHES
from counterplay.search.render import to_dict
from tests.search.game import Enumerator, Game, Sampler, action, random_game, start

FOLDER = Path(__file__).parent / "golden"
CASES: dict[str, dict[str, Any]] = {
    "best_of_n": {"search": "best_of_n", "policy": "sampler", "verifier": "outcome", "options": {"n": 6}},
    "greedy": {"search": "greedy", "policy": "sampler", "verifier": "outcome", "options": {"num_samples": 5}},
    "beam": {"search": "beam", "policy": "sampler", "verifier": "exact", "options": {"width": 2, "aggregation": "mean"}},
    "mcts_puct": {"search": "mcts", "policy": "enumerator", "verifier": "exact", "options": {"num_simulations": 24}},
    "mcts_uct": {"search": "mcts", "policy": "sampler", "verifier": "outcome", "options": {"num_simulations": 12, "selection": "uct"}},
    "mcts_random": {"search": "mcts", "policy": "sampler", "verifier": "exact", "game": 6, "options": {"num_simulations": 20, "seed": 3}},
    "mcts_budget": {"search": "mcts", "policy": "sampler", "verifier": "exact", "budget": {"model_calls": 18}, "options": {}},
    "rollout": {"search": "rollout", "policy": "sampler", "verifier": "outcome", "options": {}},
    "self_consistency": {"search": "self_consistency", "policy": "sampler", "verifier": "outcome", "options": {"vote_on": "signature"}},
    "independent": {"search": "independent", "policy": "sampler", "verifier": "outcome", "options": {"n": 5}},
    "lookahead": {"search": "lookahead", "policy": "sampler", "verifier": "exact", "options": {"num_actions": 3}},
    "archive": {"search": "archive", "policy": "sampler", "verifier": "outcome", "options": {"num_lines": 12, "seed": 2}},
    "dvts": {"search": "dvts", "policy": "sampler", "verifier": "exact", "options": {"num_subtrees": 3, "num_actions": 2}},
    "rebase": {"search": "rebase", "policy": "sampler", "verifier": "exact", "game": 6, "options": {"width": 8}},
    "particle_filter": {"search": "particle_filter", "policy": "sampler", "verifier": "exact", "options": {"num_particles": 6, "seed": 1}},
    "particle_entropic": {
        "search": "particle_filter",
        "policy": "sampler",
        "verifier": "exact",
        "game": 6,
        "options": {"num_particles": 6, "weighting": "absolute", "entropic": True, "max_steps": 8},
    },
    "particle_gibbs": {
        "search": "particle_filter",
        "policy": "sampler",
        "verifier": "exact",
        "options": {"num_particles": 4, "iterations": 3, "seed": 4},
    },
    "best_first": {"search": "best_first", "policy": "enumerator", "verifier": "exact", "game": 6, "options": {"num_actions": 3}},
    "depth_first": {"search": "depth_first", "policy": "enumerator", "verifier": "exact", "options": {"threshold": 0.25, "gate": 1.0}},
    "mcts_star": {"search": "mcts_star", "policy": "sampler", "verifier": "exact", "options": {"num_iterations": 6}},
    "gumbel": {"search": "gumbel", "policy": "enumerator", "verifier": "exact", "options": {"num_simulations": 24, "seed": 5}},
    "gumbel_random": {"search": "gumbel", "policy": "sampler", "verifier": "outcome", "game": 6, "options": {"num_simulations": 15}},
    "lats": {"search": "lats", "policy": "sampler", "verifier": "exact", "options": {"num_iterations": 4, "num_actions": 4}},
    "receding_horizon": {
        "search": "receding_horizon",
        "policy": "sampler",
        "verifier": "exact",
        "options": {"num_simulations": 6, "horizon": 3},
    },
    "fork": {
        "search": "fork_best_of_n",
        "policy": "sampler",
        "verifier": "outcome",
        "line": ["plan", "read", "skim"],
        "options": {"pivots": [0, 2], "rollouts_per_alternative": 2},
    },
    "repair": {
        "search": "repair",
        "policy": "sampler",
        "verifier": "exact",
        "line": ["plan", "read", "skim"],
        "options": {"n": 6, "lookback": 1, "rounds": 2, "rollouts_per_alternative": 2},
    },
}


async def grow(case: dict[str, Any]) -> dict[str, Any]:
    game = Game() if "game" not in case else Game(random_game(case["game"]))
    policy = Sampler(game) if case["policy"] == "sampler" else Enumerator(game)
    state = start()
    for move in case.get("line", []):
        state = state.extend(await game.step(state, action(move)))
    verifier = getattr(game, case["verifier"])
    tree = await SEARCHES[case["search"]](state, policy, game, verifier, Budget.of(**case.get("budget", {})), **case["options"])
    return to_dict(tree)


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, case in CASES.items():
        grown = asyncio.run(grow(case))
        (FOLDER / f"{name}.json").write_text(json.dumps({"case": case, "tree": grown}, indent=1) + "\n")


if __name__ == "__main__":
    main()
