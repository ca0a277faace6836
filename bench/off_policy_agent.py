"""Off-policy estimates of real models against playing: the example agent's logs, and what other models really do on the same tasks.

    python bench/off_policy_agent.py [--models DIR ...] [--tasks 150] [--json]

The example agent plays every task twice at temperature 1; that is the log. From it alone the same model at temperature 0.6 and every model
of `--models` (tuned from the example agent, such as a round of `counterplay improve`) is estimated; then each plays the tasks itself.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from counterplay.core.errors import UserError
from counterplay.core.nouns import Source, Trace
from counterplay.demo import EXAMPLE, MAX_STEPS, MAX_TOKENS, TASKS, WORLD
from counterplay.estimating import estimate
from counterplay.evaluation import Evaluation, evaluate, tasks_from_spec
from counterplay.played import Run
from counterplay.replay.recorder import outcome_of

ATTEMPTS = 2


def logged(run: Run) -> Trace:
    notes = {"logprobs": list(run.logprobs), "temperature": 1.0}
    return Trace(
        f"{run.task}/{run.attempt}", run.trajectory, Source("bench"), task=run.task, outcome=outcome_of(run.trajectory), metadata=notes
    )


def play(folder: Path, tasks: list[str], temperature: float) -> Evaluation:
    return asyncio.run(
        evaluate(
            {"agent": f"transformers:{folder}"},
            WORLD,
            tasks,
            attempts=ATTEMPTS,
            temperature=temperature,
            max_tokens=MAX_TOKENS,
            max_steps=MAX_STEPS,
        )
    )


def row(name: str, folder: Path, temperature: float, traces: list[Trace], tasks: list[str]) -> dict[str, Any]:
    told: dict[str, Any] = {"policy": name, "refused": None, "effective": None, "estimate": None, "interval": None}
    try:
        found = asyncio.run(estimate(traces, {"new": f"transformers:{folder}"}, temperature=temperature)).policies["new"]
        best = found["weighted doubly robust"]
        told |= {"effective": found.effective, "estimate": best.value, "interval": best.interval}
    except UserError as error:
        told["refused"] = error.got
    (played,) = play(folder, tasks, temperature).report.policies
    return {**told, "played": played.rate, "played_interval": played.interval}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", type=Path, nargs="*", default=[])
    parser.add_argument("--tasks", type=int, default=150)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    tasks = tasks_from_spec(TASKS.format(given.tasks))
    model = EXAMPLE / "model"
    traces = [logged(run) for run in play(model, tasks, 1.0).runs["agent"]]
    asked = [("the same at temperature 0.6", model, 0.6), *((str(folder), folder, 1.0) for folder in given.models)]
    rows = [row(name, folder, temperature, traces, tasks) for name, folder, temperature in asked]
    if given.json:
        print(json.dumps({"tasks": len(tasks), "rows": rows}))
        return
    print("| new policy | estimated from logs | effective tasks | played |")
    print("|---|---|---|---|")
    for told in rows:
        guess = f"refused: {told['refused']} |"
        if told["estimate"] is not None:
            guess = f"{_percent(told['estimate'], told['interval'])} | {told['effective']:.0f}"
        print(f"| {told['policy']} | {guess} | {_percent(told['played'], told['played_interval'])} |")


def _percent(value: float, interval: tuple[float, float]) -> str:
    return f"{100 * value:.1f} % ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"


if __name__ == "__main__":
    main()
