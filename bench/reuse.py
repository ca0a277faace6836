"""How much of a log can be reused on branches, and how much of it is true: the rule against an oracle and against a look-up.

    python bench/reuse.py [--json] [--programs N]

Random programs are recorded in worlds of several shapes; branches fork from them and go on with calls of their own among the
recorded ones. The oracle allows a recorded answer wherever declared effects prove it; the look-up takes the first answer to an equal
call, as replay by tool name and arguments does. All shares are of the actions after the fork; `wrong` is found by executing them for real.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.programs.oracle import Oracle
from bench.programs.worlds import WORLDS, Shape
from counterplay.core.nouns import Grade, Message, State, Step, ToolCall, Trajectory
from counterplay.replay.live import execute
from counterplay.replay.recorded import RecordedEnvironment

PROGRAMS, LENGTH = 150, 14


def action(world: type[Shape], chance: Random) -> Message:
    """One to three calls; most actions have one."""
    calls = [world.draw(chance) for _ in range(chance.choices([1, 2, 3], [8, 2, 1])[0])]
    return Message.assistant(tool_calls=[ToolCall(f"c{i}", name, json.dumps(args)) for i, (name, args) in enumerate(calls)])


def executed(world: type[Shape], actions: list[Message]) -> Trajectory:
    live, state = world(), Trajectory(tuple(world.tools), world.prompt)
    for each in actions:
        state = state.extend(execute(live, each))
    return state


def continued(world: type[Shape], log: Trajectory, fork: int, others: list[Trajectory], chance: Random) -> list[Message]:
    """What a branch does after a fork: the log's own actions with some left out, swapped, put in or taken from other logs."""
    actions = [step.action for step in log.steps[fork:]]
    for _ in range(chance.randint(1, 3)):
        place = chance.randrange(len(actions) + 1)
        change = chance.randrange(4)
        if change == 0:
            actions.insert(place, action(world, chance))
        elif change == 1 and place < len(actions):
            del actions[place]
        elif change == 2 and place + 1 < len(actions):
            actions[place], actions[place + 1] = actions[place + 1], actions[place]
        elif others:
            actions.insert(place, chance.choice(chance.choice(others).steps).action)
    return actions


def grade(world: type[Shape], logs: list[Trajectory], fork: int, actions: list[Message], tally: Counter[str]) -> list[tuple[str, str]]:
    """Play a branch of the first log, ask rule, oracle and look-up for every action, and execute it. The wrong answers of the rule."""
    environment, oracle = RecordedEnvironment(logs), Oracle(world, logs)
    live, state, terms = world(), Trajectory(tuple(world.tools), world.prompt), oracle.branch()
    wrong = []
    for number, act in enumerate([*(step.action for step in logs[0].steps[:fork]), *actions]):
        got, true = asyncio.run(ask(environment, state, act)), execute(live, act)
        allowed, pairs = oracle.allows(terms, act), list(zip(got.observations, true.observations, strict=False))
        wrong += [(a.content_text, b.content_text) for a, b in pairs if got.grade >= Grade.REUSED and a.content_text != b.content_text]
        answered = not got.finished
        if number >= fork:
            held = [oracle.results.get((c.name, json.dumps(json.loads(c.arguments), sort_keys=True)), []) for c in act.tool_calls]
            looked_up = [next(iter(known), None) for known in held]
            same = looked_up == [message.content_text for message in true.observations]
            tally.update(asked=1, reused=answered, oracle=allowed, beyond=answered and not allowed)
            tally.update(known=all(held), lookup_wrong=all(held) and not same)
        state = state.extend(got if answered else true)
    tally.update(wrong=len(wrong))
    return wrong


async def ask(environment: RecordedEnvironment, state: State, act: Message) -> Step:
    return await environment.step(state, act)


def measure(programs: int = PROGRAMS, seed: int = 0) -> list[dict[str, Any]]:
    rows = []
    for world in WORLDS:
        chance, tally = Random(seed), Counter[str]()
        for _ in range(programs):
            logs = [executed(world, [action(world, chance) for _ in range(LENGTH)]) for _ in range(chance.randint(1, 3))]
            fork = chance.randrange(LENGTH - 2)
            grade(world, logs, fork, continued(world, logs[0], fork, logs[1:], chance), tally)
        rows.append({"world": world.__name__, **row_of(tally)})
    return rows


def row_of(tally: Counter[str]) -> dict[str, Any]:
    shares = {name: tally[name] / tally["asked"] for name in ("known", "oracle", "reused")}
    wrong = {"wrong": tally["wrong"], "beyond_oracle": tally["beyond"], "lookup_wrong": tally["lookup_wrong"] / max(1, tally["known"])}
    return {"actions": tally["asked"], **shares, "of_oracle": tally["reused"] / max(1, tally["oracle"]), **wrong}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print rows for machines")
    parser.add_argument("--programs", type=int, default=PROGRAMS, help="recorded tasks a world")
    given = parser.parse_args()
    found = measure(given.programs)
    if given.json:
        print(json.dumps(found))
    else:
        print(f"{'world':9}{'actions':>8}{'known':>8}{'oracle':>8}{'reused':>8}{'of oracle':>11}{'wrong':>7}{'look-up wrong':>15}")
        for row in found:
            shares = f"{row['known']:8.1%}{row['oracle']:8.1%}{row['reused']:8.1%}{row['of_oracle']:11.1%}"
            print(f"{row['world']:9}{row['actions']:8}{shares}{row['wrong']:7}{row['lookup_wrong']:15.1%}")
