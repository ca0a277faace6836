"""What a new policy would achieve, from logged runs alone: log-probabilities of the logged actions under both policies, and no call."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from counterplay import console
from counterplay.core.errors import UserError
from counterplay.core.journal import ask_all
from counterplay.core.nouns import Trace, Trajectory
from counterplay.core.protocols import Verifier
from counterplay.evaluation_shown import interval

if TYPE_CHECKING:
    from counterplay.finetune.off_policy import OffPolicy

Logprobs = Sequence[float | None]

_PRIOR_RUNS = 2  # what is known of other tasks counts as so many runs of this one


@dataclass(frozen=True)
class Estimated:
    """The estimates for each new policy. `left_out` counts logged runs that could not be used, by reason; `behaviour` says where the
    log-probabilities of the logging policy come from.
    """

    behaviour: str
    policies: Mapping[str, OffPolicy]
    left_out: Mapping[str, int] = field(default_factory=dict)


async def estimate(
    traces: Sequence[Trace],
    policies: Mapping[str, str],
    *,
    temperature: float | None = None,
    verifier: Verifier | None = None,
    seed: int = 0,
) -> Estimated:
    """How each policy (`transformers:DIR` by name) would do on the tasks of `traces`, were it sampled at `temperature`, above 0.

    None is the temperature of the logs. Where all runs were recorded with log-probabilities (`metadata["logprobs"]`, sampled at
    temperature 1, as `evaluate --out` writes them) every policy is a new one; else the first is the one that made the logs, at the
    temperature that they name (else at `temperature`, or 1), and scores them itself. `verifier` has opinions on prefixes that serve as
    the model of doubly robust estimates; None takes the mean outcome of the task's other runs, drawn towards that of the other tasks.

    Raises UserError where that is not enough to go by, or a policy does something else than the logs too often.
    """
    from counterplay.finetune.action_logprobs import ActionScorer
    from counterplay.finetune.off_policy import estimate as weigh

    usable, left_out = _usable(traces)
    if not usable:
        why = ", ".join(f"{count} {reason}" for reason, count in left_out.items()) or "no runs at all"
        raise UserError(f"got no logged run to estimate from ({why})", "runs with a task and an outcome")
    made_at = _logged_temperature(usable, 1.0 if temperature is None else temperature)
    heat = made_at if temperature is None else temperature
    folders = {name: _folder(name, spec) for name, spec in policies.items()}
    recorded = [_recorded(trace) if made_at == 1 else None for trace in usable]
    trajectories = [trace.trajectory for trace in usable]
    if all(one is not None for one in recorded):
        behaviour, said = [one for one in recorded if one is not None], "recorded with the runs"
    elif len(folders) > 1:
        first, *_ = folders
        behaviour, said = list(ActionScorer(folders.pop(first), temperature=made_at)(trajectories)), f"scored by {first}"
    else:
        missing = sum(one is None for one in recorded)
        raise UserError(
            f"got {missing} of {len(usable)} runs without log-probabilities at temperature 1, and no policy that made them",
            "recorded ones, or the logging policy as the first --policy",
            "Give it as: --policy before=transformers:DIR --policy after=transformers:DIR.",
        )
    values = await _values(usable, verifier)
    found = {}
    for name, folder in folders.items():
        target = ActionScorer(folder, temperature=heat)(trajectories)
        runs = [_run(*parts) for parts in zip(usable, behaviour, target, values, strict=True)]
        found[name] = weigh(runs, seed=seed)
    return Estimated(f"{said}, sampled at temperature {made_at:g}; the new policies at {heat:g}", found, left_out)


def _usable(traces: Sequence[Trace]) -> tuple[list[Trace], dict[str, int]]:
    left_out: Counter[str] = Counter()
    usable = []
    for trace in traces:
        if trace.task is None:
            left_out["without a task"] += 1
        elif _outcome(trace) is None:
            left_out["without an outcome"] += 1
        elif not any(step.sampled for step in trace.trajectory.steps):
            left_out["without a sampled action"] += 1
        elif trace.sub_trajectories:
            compacted = any(part.continues is not None for part in trace.sub_trajectories)
            left_out["with a compaction" if compacted else "with sub-agents"] += 1
        elif cut := _cut(trace):
            left_out[f"sampled with {cut}"] += 1
        elif trace.completeness.inputs not in ("full", "stitched"):
            left_out["whose prompts are not all known"] += 1
        else:
            usable.append(trace)
    return usable, dict(left_out)


def _logged_temperature(traces: Sequence[Trace], unless_said: float) -> float:
    """The temperature that the logs were sampled at. Raises UserError where it was 0, or not the same everywhere."""
    told = {float(heat) for trace in traces for heat in (trace.metadata.get("temperature"), *_asked(trace)) if _is_number(heat)}
    if len(told) > 1:
        given = ", ".join(f"{heat:g}" for heat in sorted(told))
        raise UserError(f"got logs sampled at temperatures {given}", "one of them", "Ingest those of each into a store of their own.")
    (made_at,) = told or {unless_said}
    if made_at == 0:
        raise UserError("got greedy logs (temperature 0)", "sampled ones", "Greedy runs show nothing of what else a policy would do.")
    return made_at


def _cut(trace: Trace) -> str:
    """What kept unlikely tokens from being drawn, which makes log-probabilities not those that a run was sampled with; else empty."""
    whole: dict[str, Callable[[float], bool]] = {"top_p": lambda p: p >= 1, "top_k": lambda k: k <= 0, "min_p": lambda p: p <= 0}
    params = (trace.metadata, *(call.params for call in trace.calls))
    found = [name for name, off in whole.items() if any(_is_number(each.get(name)) and not off(each[name]) for each in params)]
    return " and ".join(found)


def _asked(trace: Trace) -> list[Any]:
    return [call.params.get("temperature") for call in trace.calls]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _outcome(trace: Trace) -> float | None:
    reward, success = trace.outcome.reward, trace.outcome.succeeded
    return min(1.0, max(0.0, reward)) if reward is not None else None if success is None else float(success)


def _folder(name: str, spec: str) -> str:
    if not spec.startswith("transformers:"):
        raise UserError(
            f"got policy {name}={spec}, which can't say how likely an action is that another took",
            "transformers:DIR",
            "Play held-out tasks instead.",
        )
    return spec.removeprefix("transformers:")


def _recorded(trace: Trace) -> Logprobs | None:
    """The log-probabilities that a run was recorded with, step by step; None where one is missing or they are of another temperature."""
    found = trace.metadata.get("logprobs")
    steps = trace.trajectory.steps
    if not isinstance(found, list) or len(found) != len(steps) or trace.metadata.get("temperature") != 1:
        return None
    known = all(isinstance(one, int | float) for one, step in zip(found, steps, strict=True) if step.sampled)
    return found if known else None


async def _values(traces: Sequence[Trace], verifier: Verifier | None) -> list[list[float]]:
    """The model V^ of every state that a decision was taken in."""
    usual = _others(traces)
    if verifier is None:
        return [[usual[i]] * len(trace.trajectory) for i, trace in enumerate(traces)]
    states: list[Trajectory] = [trace.trajectory.prefix(t) for trace in traces for t in range(len(trace.trajectory))]
    opinions = iter(await ask_all(verifier, states))
    found = []
    for i, trace in enumerate(traces):
        row = []
        for opinion in (next(opinions) for _ in range(len(trace.trajectory))):
            if isinstance(opinion, Exception):
                raise opinion
            row.append(usual[i] if opinion is None else opinion.value)
        found.append(row)
    return found


def _others(traces: Sequence[Trace]) -> list[float]:
    """For every run what its task's other runs earned on average, drawn towards the mean of the other tasks: it never knows its own."""
    by_task: defaultdict[str | None, list[float]] = defaultdict(list)
    outcomes = [_outcome(trace) or 0.0 for trace in traces]
    for trace, outcome in zip(traces, outcomes, strict=True):
        by_task[trace.task].append(outcome)
    means = []
    for trace, outcome in zip(traces, outcomes, strict=True):
        here = by_task[trace.task]
        elsewhere = len(outcomes) - len(here)
        usual = (sum(outcomes) - sum(here)) / elsewhere if elsewhere else 0.5
        means.append((sum(here) - outcome + _PRIOR_RUNS * usual) / (len(here) - 1 + _PRIOR_RUNS))
    return means


def _run(trace: Trace, behaviour: Logprobs, target: Logprobs, values: Sequence[float]) -> Any:
    """The decisions of a run; what it earned is paid for the last of them."""
    from counterplay.finetune.off_policy import Decision, LoggedRun

    sampled = [t for t, step in enumerate(trace.trajectory.steps) if step.sampled]
    decisions = tuple(
        Decision(behaviour[t] or 0.0, target[t] or 0.0, (_outcome(trace) or 0.0) if t == sampled[-1] else 0.0, values[t]) for t in sampled
    )
    return LoggedRun(trace.task or "", decisions)


def tables(found: Estimated) -> list[Any]:
    """Every estimate with its interval, the verdicts, and what was left out."""
    rows = []
    for name, one in found.policies.items():
        for each in one.estimates:
            low, high = (min(1.0, max(0.0, end)) for end in each.interval)
            success = f"{100 * min(1.0, max(0.0, each.value)):.1f} %\n{interval((low, high))}"
            rows.append([name, each.method, success, f"{100 * each.lift:+.1f}\n{interval(each.lift_interval, signed=True)}"])
    logged = next(iter(found.policies.values())).logged
    title = f"estimated from logs, whose policy succeeds in {100 * logged:.1f} %; its log-probabilities: {found.behaviour}"
    shown: list[Any] = [console.table(title, ["policy", "estimate", "success", "over the logs"], rows)]
    shown += [one.sentence(name) for name, one in found.policies.items()]
    return shown + [f"left out: {count} runs {reason}" for reason, count in found.left_out.items()]
