"""A judge: a language model asked how good a trajectory, its last step, or the state it reached is, by named criteria.

Zheng et al. 2023, "Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena". The reasons come before the numbers and are kept. A
judge that can't be read raises VerifierError: it is never a number.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal, Protocol, Self, TypeAlias

from counterplay.core.canonical import canonical, content_key
from counterplay.core.errors import UserError
from counterplay.core.nouns import Message, Score, ToolSpec, Trajectory
from counterplay.verifiers.judges import prompts, reading
from counterplay.verifiers.judges.asking import NO_TOOLS, Toolbox, ask_model, check_tools, seed_of
from counterplay.verifiers.judges.criteria import OUTCOME, PROGRESS, STEP, Criteria
from counterplay.verifiers.judges.material import LEAST_CHARS, Material, Renderer, quoted
from counterplay.verifiers.judges.model import Complete, Model, Tally, as_model
from counterplay.verifiers.judges.reading import Form, schema_of

Mode: TypeAlias = Literal["outcome", "step", "progress"]
_CRITERIA = {"outcome": OUTCOME, "step": STEP, "progress": PROGRESS}


@dataclass(frozen=True, slots=True)
class Verdict:
    """One reading of one answer: the scores by criterion in [0, 1], and the reasons. `answers` are those to the critical questions."""

    scores: Mapping[str, float]
    reason: str
    answers: tuple[str, ...] = ()

    def value(self, criteria: Criteria) -> float:
        """The weighted mean sum w_i s_i / sum w_i."""
        return sum(each.weight * self.scores[each.name] for each in criteria) / sum(each.weight for each in criteria)


class Source(Protocol):
    """Whoever a judge asks: a name for scores, an identity that covers model and settings but no address, and what it used."""

    @property
    def name(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def tally(self) -> Tally: ...


class Asking:
    """What all judges share: whom they ask, how material is shown to it, and an identity that covers everything that shapes an answer."""

    def __init__(self, kind: str, source: Source, renderer: Renderer, *settings: str) -> None:
        if renderer.max_chars < LEAST_CHARS:
            raise UserError(f"got max_chars {renderer.max_chars}", f"at least {LEAST_CHARS}")
        self.source, self.renderer = source, renderer
        self.name = f"{kind}({source.name})"
        key = content_key(kind, prompts.GROUND, prompts.FORM, source.fingerprint, repr(renderer), *settings)
        self.version = key[:8]
        self.fingerprint = f"{kind}:{key}"

    @property
    def tally(self) -> Tally:
        """What the model has used so far. Judges that were given one model object share it."""
        return self.source.tally

    async def aclose(self) -> None:
        """Close the connections to the server."""
        close: Callable[[], Awaitable[None]] | None = getattr(self.source, "aclose", None)
        if close is not None:
            await close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class Judge(Asking):
    """Scores by `criteria` (None: those of the mode) in [0, 1]; the reason holds the judge's own and what it was not shown.

    `model` is a model's name on the server of OPENAI_BASE_URL, a `ChatModel`, or a function from messages and schema to text. `mode`
    "outcome" has an opinion on finished trajectories alone; "step" on the last step; "progress" on how well a state stands; the
    latter two have none on bare prompts. `samples` independent calls with seeds of their own are averaged (give the model a temperature
    above 0 then); each must be readable. `questions` are answered before the numbers (`prompts.TOULMIN`: Castagna et al. 2024,
    "Critical-Questions-of-Thought"). `reference` is an answer to work back from (AURORA's reverse verification), or a mapping to it from
    the key of the bare prompt (`trajectory.prefix(0).key`) or the text of its last user message; no opinion where it lacks one. `tools`
    are pairs of definition and function that the judge may call, at most `max_tool_calls` times a sample (Themis). `formal` and
    `max_chars` are the `Renderer`'s. Raises UserError where `model` can't call tools and is to.
    """

    def __init__(
        self,
        model: str | Model | Complete,
        *,
        criteria: Criteria | None = None,
        mode: Mode = "outcome",
        samples: int = 1,
        questions: Sequence[str] = (),
        reference: str | Mapping[str, str] | None = None,
        tools: Sequence[tuple[ToolSpec, Callable[..., Any]]] = (),
        max_tool_calls: int = 8,
        formal: bool = False,
        max_chars: int = 60_000,
        seed: int = 0,
    ) -> None:
        if mode not in _CRITERIA or samples < 1 or max_tool_calls < 1:
            raise UserError(f"got {mode=}, {samples=}, {max_tool_calls=}", f"one of {', '.join(_CRITERIA)}, and at least 1 of each")
        self.criteria, self.mode, self.samples, self.seed = criteria or _CRITERIA[mode], mode, samples, seed
        self.questions, self.reference = tuple(questions), reference
        self.toolbox = Toolbox(tuple(tools), max_tool_calls) if tools else NO_TOOLS
        self.form = verdict_form(self.criteria, self.questions)
        settings = canonical([self.criteria.fingerprint, self.questions, samples, seed, reference, self.toolbox.fingerprint])
        told = (prompts.WHAT[mode], prompts.CRITERIA, prompts.CHECKLIST, prompts.REFERENCE)
        self.model = as_model(model)
        super().__init__("judge" if mode == "outcome" else f"{mode}_judge", self.model, Renderer(max_chars, formal, seed), settings, *told)
        check_tools(self.model, self.toolbox)

    async def __call__(self, trajectory: Trajectory, /) -> Score | None:
        reference = self._reference(trajectory)
        if not self._applies(trajectory) or (self.reference is not None and reference is None):
            return None
        material = self.renderer.whole(trajectory)
        messages = self.messages(trajectory, material, reference)
        seeds = [seed_of(self.seed, trajectory.key, str(sample)) for sample in range(self.samples)]
        asked = [ask_model(self.model, messages, self.form, seed=seed, toolbox=self.toolbox) for seed in seeds]
        verdicts = await gathered(asked)
        values = [verdict.value(self.criteria) for verdict in verdicts]
        return Score(fmean(values), self._reason(verdicts, values, material), self.name, self.version)

    def messages(self, trajectory: Trajectory, material: Material, reference: str | None = None) -> list[dict[str, Any]]:
        """What the model is sent: rules, material, question, in this order; prefixes of one trajectory share all up to the question."""
        asked = [prompts.WHAT[self.mode].format(last=len(trajectory) - 1)]
        if reference is not None:
            asked.append(prompts.REFERENCE.format(reference=quoted(self.renderer.tag(trajectory), "reference", reference)))
        asked.append(prompts.CRITERIA.format(criteria=self.criteria.text))
        if self.questions:
            listed = "\n".join(f"{name}: {question}" for name, question in _named(self.questions).items())
            asked.append(prompts.CHECKLIST.format(questions=listed))
        return conversation(self.renderer.tag(trajectory), material.text, [*asked, prompts.form(self.form.schema)])

    def _applies(self, trajectory: Trajectory) -> bool:
        return trajectory.finished if self.mode == "outcome" else bool(trajectory.steps)

    def _reference(self, trajectory: Trajectory) -> str | None:
        if not isinstance(self.reference, Mapping):
            return self.reference
        known = self.reference.get(trajectory.prefix(0).key)
        last_said = next((message.content_text for message in reversed(trajectory.prompt) if message.role == "user"), None)
        return self.reference.get(last_said) if known is None and last_said is not None else known

    def _reason(self, verdicts: Sequence[Verdict], values: Sequence[float], material: Material) -> str:
        parts = [verdicts[0].reason]
        if len(verdicts) > 1:
            middle = fmean(values)
            nearest = min(range(len(values)), key=lambda i: abs(values[i] - middle))
            parts = [f"{len(values)} samples, spread {max(values) - min(values):.2f}", verdicts[nearest].reason]
        if len(self.criteria) > 1:
            means = {each.name: fmean(verdict.scores[each.name] for verdict in verdicts) for each in self.criteria}
            parts.append(", ".join(f"{name} {mean:.2f}" for name, mean in means.items()))
        if material.left_out:
            parts.append(f"judged with {material.left_out}")
        return "; ".join(parts)


def verdict_form(criteria: Criteria, questions: Sequence[str] = ()) -> Form[Verdict]:
    """Answers to the questions, then the reason, then a number a criterion."""
    fields: dict[str, Any] = {}
    named = _named(questions)
    if questions:
        fields["answers"] = schema_of({name: {"type": "string"} for name in named})
    fields["reason"] = {"type": "string"}
    fields["scores"] = schema_of({each.name: {"type": "number"} for each in criteria})

    def read(found: Mapping[str, Any]) -> Verdict:
        answers = tuple(reading.text(reading.part(found, "answers"), name) for name in named)
        scores = reading.part(found, "scores")
        return Verdict({each.name: reading.number(scores, each.name) for each in criteria}, reading.text(found, "reason"), answers)

    return Form(schema_of(fields), read)


def conversation(tag: str, material: str, asked: Sequence[str]) -> list[dict[str, Any]]:
    """The rules, then one user message: what all questions about this material share, and last the question itself."""
    shared = f"The tag is {tag}.\n\n{material}\n"
    return [Message.system(prompts.GROUND).to_openai(), Message.user(shared + "\n\n".join(asked)).to_openai()]


async def gathered(asked: Sequence[Awaitable[Any]]) -> list[Any]:
    """All answers; where one fails the others are not waited for."""
    tasks = [asyncio.ensure_future(each) for each in asked]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


def _named(questions: Sequence[str]) -> dict[str, str]:
    return {f"q{number}": question for number, question in enumerate(questions, 1)}
