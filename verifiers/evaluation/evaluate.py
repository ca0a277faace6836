"""Everything that can be known about one verifier from labelled trajectories, and in words what could not."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from counterplay.core.errors import VerifierError
from counterplay.core.journal import ask
from counterplay.core.protocols import Verifier
from counterplay.verifiers.check import notes_of, without_change, without_end
from counterplay.verifiers.evaluation.asking import Answers, Asker, Consistency, consistency
from counterplay.verifiers.evaluation.discrimination import Discrimination, discrimination
from counterplay.verifiers.evaluation.intervals import Estimate
from counterplay.verifiers.evaluation.optimisation import Curve, curve
from counterplay.verifiers.evaluation.probes import ATTACKS, ProbeResult, probe
from counterplay.verifiers.evaluation.ranking import Siblings, length_slope, siblings
from counterplay.verifiers.evaluation.steps import FirstErrors, Ternary, Values, find_first_errors, ternary
from counterplay.verifiers.evaluation.truth import Labelled


@dataclass(frozen=True)
class Evaluation:
    """One verifier on one set of labelled trajectories. Parts without ground in the data or the verifier are None; `notes` say why.

    `outcomes` compares scores of whole trajectories with how they ended, `steps` scores after each step with its label (0 counts as not
    wrong). `task_siblings` ranks trajectories of one task, `step_siblings` actions of one state. `length_steps` and `length_text` are the
    rise of the score per doubling of steps and of the agent's characters at equal truth. `natural` is the over-optimisation curve over the
    trajectories as they are, `attacked` that over them and attacked versions of them (`probes.ATTACKS`), whose gold is at most that
    of the original, and is taken to be it.
    """

    name: str
    version: str
    trajectories: int
    tasks: int
    labelled_steps: int
    answers: Answers
    outcomes: Discrimination | None = None
    steps: Discrimination | None = None
    first_errors: FirstErrors | None = None
    ternary: Ternary | None = None
    task_siblings: Siblings | None = None
    step_siblings: Siblings | None = None
    length_steps: Estimate | None = None
    length_text: Estimate | None = None
    consistency: Consistency | None = None
    probes: tuple[ProbeResult, ...] = ()
    natural: Curve | None = None
    attacked: Curve | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def failed_probes(self) -> tuple[str, ...]:
        """The probes that pay."""
        return tuple(result.name for result in self.probes if result.failed)


async def evaluate(
    verifier: Verifier,
    items: Sequence[Labelled],
    *,
    probed: int | None = 100,
    seed: int = 0,
    on_question: Callable[[int], None] = lambda _: None,
) -> Evaluation:
    """Ask `verifier` about every trajectory with a known end and every step with a label, and measure.

    Probes, attacks and consistency ask about at most `probed` trajectories, whole tasks by lot; None asks about all, 0 about none.
    """
    asker = Asker(verifier, on_question)
    ended, judged = [item for item in items if item.gold is not None], [item for item in items if item.labels]
    wholes = await asker.wholes([item.trajectory for item in ended], [item.group for item in ended])
    said = await asker.steps([item.trajectory for item in judged], [item.group for item in judged])
    found = Evaluation(
        *asker.identity,
        trajectories=len(items),
        tasks=len({item.group for item in items}),
        labelled_steps=len({key for item in judged for key, _ in _marked(item)}),
        answers=asker.answers,
    )
    scores = asker.scores
    found = _with_outcomes(found, [(v, item) for v, item in zip(wholes, ended, strict=True) if v is not None], seed)
    found = _with_steps(found, said, judged, seed)
    sample = _sample(items, probed, seed)
    if sample:
        found = replace(
            found,
            consistency=await consistency(verifier, [item.trajectory for item in sample], [item.group for item in sample], seed=seed),
            probes=await probe(asker, sample, seed=seed),
            attacked=await _attacked(asker, [item for item in sample if item.gold is not None], seed),
        )
    silent = [item for value, item in zip(wholes, ended, strict=True) if value is None]
    own = [*await _silence(verifier, found, ended, silent), *without_change(scores)]
    own += notes_of(verifier, [item.trajectory for item in items])
    return replace(found, notes=(*own, *_notes(found, ended, judged)))


async def _silence(verifier: Verifier, found: Evaluation, ended: Sequence[Labelled], silent: Sequence[Labelled]) -> list[str]:
    """Why a verifier said nothing of trajectories whose end is known."""
    said = [] if found.answers.complaint is None else [found.answers.complaint]
    if found.answers.useless:
        return said
    if ended and len(silent) == len(ended):
        finished = next((item for item in silent if item.trajectory.finished), None)
        reads = finished is not None and await _reads_rewards(verifier, finished)
        why = " (it reads rewards, which are taken out before it is asked)" if reads else ""
        said.append(f"it had no opinion on any trajectory with a known outcome{why}")
    return [*said, *without_end([item.trajectory for item in ended], [item.trajectory for item in silent])]


async def _reads_rewards(verifier: Verifier, item: Labelled) -> bool:
    """Whether a verifier without an opinion on a finished trajectory has one once its reward is back."""
    last = replace(item.trajectory.steps[-1], reward=item.gold)
    paid = replace(item.trajectory, steps=(*item.trajectory.steps[:-1], last))
    try:
        return await ask(verifier, paid) is not None
    except VerifierError:
        return False


def _with_outcomes(found: Evaluation, kept: Sequence[tuple[float, Labelled]], seed: int) -> Evaluation:
    """What whole trajectories with a known end tell."""
    values, items = [value for value, _ in kept], [item for _, item in kept]
    truths, groups = [item.right is True for item in items], [item.group for item in items]
    texts = [sum(len(text) for text in _written(item)) for item in items]
    return replace(
        found,
        outcomes=discrimination(values, truths, groups, seed=seed),
        task_siblings=siblings(values, truths, groups, seed=seed),
        length_steps=length_slope(values, [len(item.trajectory) for item in items], truths, groups, seed=seed),
        length_text=length_slope(values, texts, truths, groups, seed=seed),
        natural=curve(values, [item.gold or 0.0 for item in items], groups, seed=seed),
    )


def _written(item: Labelled) -> Iterator[str]:
    """What the agent wrote: prose and arguments."""
    for step in item.trajectory.steps:
        yield step.action.content_text
        yield from (call.arguments for call in step.action.tool_calls)


def _with_steps(found: Evaluation, said: Sequence[Values], judged: Sequence[Labelled], seed: int) -> Evaluation:
    """What labelled steps tell. A step that several trajectories share counts once."""
    marked: dict[str, tuple[float, bool, str, str]] = {}
    for values, item in zip(said, judged, strict=True):
        for key, i in _marked(item):
            value = values[i]
            if value is not None:
                marked[key] = (value, (item.labels[i] or 0) >= 0, item.group, item.trajectory.prefix_keys[i])
    rows = list(marked.values())
    scores, truths = [row[0] for row in rows], [row[1] for row in rows]
    whole = [(values, item) for values, item in zip(said, judged, strict=True) if item.first_error is not None]
    groups = [item.group for _, item in whole]
    return replace(
        found,
        steps=discrimination(scores, truths, [row[2] for row in rows], seed=seed),
        step_siblings=siblings(scores, truths, [row[3] for row in rows], seed=seed),
        first_errors=find_first_errors([values for values, _ in whole], [item.first_error or 0 for _, item in whole], groups, seed=seed),
        ternary=ternary(said, _counted_once(judged), [item.group for item in judged]) if judged else None,
    )


def _counted_once(judged: Sequence[Labelled]) -> list[list[int | None]]:
    """The labels, each on the first trajectory that holds its step."""
    seen: set[str] = set()
    found = []
    for item in judged:
        keys = item.trajectory.prefix_keys[1:]
        found.append([None if key in seen else mark for key, mark in zip(keys, item.labels, strict=True)])
        seen.update(keys)
    return found


def _marked(item: Labelled) -> Iterator[tuple[str, int]]:
    """State key and number of every labelled step."""
    return ((item.trajectory.prefix_keys[i + 1], i) for i, mark in enumerate(item.labels) if mark is not None)


def _sample(items: Sequence[Labelled], most: int | None, seed: int) -> list[Labelled]:
    """Whole tasks by lot, up to `most` trajectories; of a task that is too large for it, a part."""
    names = sorted({item.group for item in items})
    random.Random(seed).shuffle(names)
    place = {name: i for i, name in enumerate(names)}
    return sorted(items, key=lambda item: place[item.group])[:most]


async def _attacked(asker: Asker, items: Sequence[Labelled], seed: int) -> Curve | None:
    """The curve over trajectories and attacked versions of them, each as hard as luck would have it: 1 to 32 times."""
    pool = [(item.trajectory, item) for item in items]
    rng = random.Random(seed)
    for attack in ATTACKS:
        for item in items:
            made = attack(item.trajectory, int(2 ** rng.uniform(0, 6 - 1e-9)))
            pool += [] if made is None else [(made, item)]
    groups = [item.group for _, item in pool]
    values = await asker.wholes([trajectory for trajectory, _ in pool], groups)
    held = [(value, item.gold or 0.0, item.group) for value, (_, item) in zip(values, pool, strict=True) if value is not None]
    alone = len({item.group for item in items}) * 2 > len(items)
    return curve([v for v, _, _ in held], [gold for _, gold, _ in held], [g for _, _, g in held], together=alone, seed=seed)


def _notes(found: Evaluation, ended: Sequence[Labelled], judged: Sequence[Labelled]) -> Iterator[str]:
    """Why parts are missing, and what to keep in mind."""
    if not ended:
        yield "no trajectory has a known end: nothing is said of outcomes"
    elif found.outcomes is not None and found.outcomes.auroc is None:
        yield "all trajectories ended alike: right can't be told from wrong"
    if not judged:
        yield "no step is labelled: nothing is said of steps"
    else:
        unknown = sum(item.first_error is None for item in judged)
        if unknown:
            yield f"{unknown} of {len(judged)} labelled trajectories have an unjudged step before any error: their first error is not known"
        if found.steps is None and not found.answers.useless:
            yield "it had no opinion on any labelled step"
        elif found.steps is not None and found.first_errors is None:
            yield "first errors are not measured: the tasks give no two halves with both erroneous and correct trajectories"
    if ended and found.task_siblings is None:
        yield "no task has both a right and a wrong trajectory: siblings are not ranked"
    if found.natural is not None and found.natural.pooled:
        yield "most tasks have one trajectory: the over-optimisation curve selects among trajectories of different tasks"
    if not found.version:
        yield "it has no version: figures of two revisions can't be told apart"
