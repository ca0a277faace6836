"""What is to be improved, and how: all that decides the result of the rounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from counterplay import loop
from counterplay.core.budget import KINDS, Budget
from counterplay.core.canonical import content_key
from counterplay.core.errors import UserError
from counterplay.core.nouns import Trace
from counterplay.core.protocols import Verifier
from counterplay.improve.kept import files_hash
from counterplay.parts import Asked, world_factory
from counterplay.plan import Plan

if TYPE_CHECKING:
    from counterplay.core.store import Store

OURS = "improve/round-"
MAX_STEPS = 100
MAX_LENGTH = 8192
METERED = ("model_calls", "tokens", "seconds")
UNNAMED = Plan(named=False, forked=False, split="even", concurrency=128)


@dataclass(frozen=True)
class Improvement:
    """`model` is the agent, a local model folder; `asked` says in which environment it works, who verifies and how actions are sampled
    (its policy is set by the rounds). `tasks` are to train on, `tasks_per_round` of them in each round, in their order and from the start
    again at their end (None: all in every round). `logs` are what the first round searches in place of playing; `held_out` is what every
    round is examined on.

    `plan` says how failed runs are searched; where no search is named one is chosen (`passes.settled`). Its budget is for each round, for
    work and search together, in kinds of `METERED`. `temperature` is the agent's at work, None: that of `asked`. `start` says what each
    round trains: the `base` on all data so far, or the `previous` round's model on that of the round. `prm` is a learned verifier that
    guides the searches from the second round on, trained on all searches so far. `dpo` adds preference pairs after SFT. `training`,
    `dpo_training` and `prm_training` are settings of the recipes; what is not named there is left to them.
    """

    model: Path
    asked: Asked
    held_out: tuple[str, ...]
    tasks: tuple[str, ...] = ()
    tasks_per_round: int | None = None
    logs: tuple[Path, ...] = ()
    plan: Plan = UNNAMED
    temperature: float | None = None
    start: str = "base"
    prm: str = "none"
    dpo: bool = False
    training: Mapping[str, Any] = field(default_factory=dict)
    dpo_training: Mapping[str, Any] = field(default_factory=dict)
    prm_training: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises UserError on what can't be carried out."""
        if not (self.model / "config.json").is_file():
            do = "For a served model do the rounds by hand: search, export, tune at its provider, evaluate."
            raise UserError(f"got model {str(self.model)!r}", "a local model folder, because every round trains it", do)
        world_factory(self.asked.environment)  # refuses recorded: tasks are played live
        if not self.held_out:
            raise UserError("got no held-out tasks", "at least one, on which every round is examined")
        if not (self.tasks or self.logs):
            raise UserError("got neither tasks nor logs to learn from", "--tasks, --logs or both")
        for name, wanted in (("start", ("base", "previous")), ("prm", ("none", "prm", "implicit"))):
            if getattr(self, name) not in wanted:
                raise UserError(f"got {name} {getattr(self, name)!r}", f"one of {', '.join(wanted)}")
        if self.plan.algorithm == "stitch":
            raise UserError("got search 'stitch', which plays nothing", "a search that finds what the agent could have done better")
        limits = Budget.parse(self.plan.budget).limits
        unmetered = [kind for kind in KINDS if getattr(limits, kind) is not None and kind not in METERED]
        if unmetered:
            raise UserError(f"got a budget of {', '.join(unmetered)}, which work does not count", f"one of {', '.join(METERED)}")
        both = sorted(set(self.tasks) & set(self.held_out))
        if both:
            got = f"got {len(both)} tasks both to train on and held out: {', '.join(both[:5])}"
            raise UserError(got, "held-out tasks that nothing is trained on")

    @property
    def max_length(self) -> int:
        """Tokens of the longest row that is exported and trained on."""
        return self.training.get("max_length") or MAX_LENGTH

    def plays(self, number: int) -> bool:
        """Whether the agent works in round `number`; else its runs are the logs'."""
        return number > 1 or not self.logs

    def tasks_of(self, number: int) -> list[str]:
        """The training tasks of round `number`, counted from 1. With logs, the first that are played are those of round 2."""
        if self.tasks_per_round is None or self.tasks_per_round >= len(self.tasks):
            return list(self.tasks)
        first = (number - 1 - bool(self.logs)) * self.tasks_per_round
        return [self.tasks[i % len(self.tasks)] for i in range(first, first + self.tasks_per_round)]

    def asked_by(self, model: Path, **changes: Any) -> Asked:
        """The parts with this model as the policy."""
        return replace(self.asked, policy=f"transformers:{model}", **changes)

    def identity(self) -> dict[str, Any]:
        """All that decides the result, as plain JSON: content in place of paths."""
        from counterplay.replay.transformers_policy import folder_hash

        plan, asked = self.plan, self.asked
        return {
            "model": folder_hash(self.model),
            "environment": asked.environment,
            "verifiers": list(asked.verifiers),
            "held_out": [len(self.held_out), content_key(*self.held_out)],
            "tasks": [len(self.tasks), content_key(*self.tasks)],
            "tasks_per_round": self.tasks_per_round,
            "logs": files_hash(self.logs) if self.logs else None,
            "search": plan.algorithm if plan.named else None,
            "options": dict(plan.options),
            "fork": plan.fork if plan.forked else None,
            "budget": plan.budget,
            "trace_budget": plan.trace_budget,
            "stop_when": plan.stop_when,
            "temperature": asked.temperature,
            "work_temperature": self.temperature,
            "max_tokens": asked.max_tokens,
            "max_steps": asked.max_steps,
            "allow_external": sorted(asked.allow_external),
            "seed": asked.seed,
            "start": self.start,
            "prm": self.prm,
            "dpo": self.dpo,
            "training": {name: value for name, value in self.training.items() if (name, value) != ("max_length", MAX_LENGTH)},
            "dpo_training": dict(self.dpo_training),
            "prm_training": dict(self.prm_training),
        }


@dataclass(frozen=True)
class Guided(Asked):
    """Parts whose verifier also hears a learned one, `prm`, about unfinished runs: the lower of the two opinions counts.

    About ends the user's own has the word alone.
    """

    prm: str = ""

    def make_verifier(self) -> Verifier:
        from counterplay.verifiers.combine import first_of, minimum, on_finished, on_prefix
        from counterplay.verifiers.registry import load

        own = super().make_verifier()
        return first_of(on_finished(own), minimum(on_prefix(own), on_prefix(load(self.prm)))) if self.prm else own


def agent_of(number: int) -> str:
    """The name under which the agent's runs of a round are in the store."""
    return f"{OURS}{number:02d}"


def traces_of(store: Store, number: int, which: str = "all") -> list[Trace]:
    """The runs of a round; those that came from logs are of the first."""
    found = loop.select(store, which=which, agent=agent_of(number))
    if number == 1:
        found += [trace for trace in loop.select(store, which=which) if not (trace.agent or "").startswith(OURS)]
    return found
