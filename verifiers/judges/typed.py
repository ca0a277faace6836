"""Typed questions: the probability of each of a few answers, read from the model's own next-token probabilities.

Liu et al. 2023, "G-Eval: NLG Evaluation using GPT-4 with Better Human Alignment": the expectation over the scale, sum_o P(o) v_o,
tells apart what a bare answer can't. Needs no training and hardly any output tokens.
"""

from __future__ import annotations

import math
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self, runtime_checkable

from counterplay.core.canonical import canonical
from counterplay.core.errors import UserError, VerifierError
from counterplay.core.nouns import Message, Score, Trajectory
from counterplay.verifiers.judges import prompts
from counterplay.verifiers.judges.asking import seed_of
from counterplay.verifiers.judges.judge import Asking, Mode, conversation, gathered
from counterplay.verifiers.judges.material import Renderer
from counterplay.verifiers.judges.model import Complete, Messages, Model, Tally, as_model
from counterplay.verifiers.judges.reading import UnreadableError
from counterplay.verifiers.judges.replies import Reply, Token

_MIN_MASS = 0.5
_AROUND = string.whitespace + string.punctuation + "\u2581\u0120"  # the last two stand for a space in tokens


def _plain(text: str) -> str:
    return text.strip(_AROUND).casefold()


@dataclass(frozen=True)
class Question:
    """A question with a closed answer. `values` in [0, 1] are worth the `options`; `meanings` explain them where they are letters."""

    text: str
    options: tuple[str, ...] = ("yes", "no")
    values: tuple[float, ...] = (1.0, 0.0)
    meanings: tuple[str, ...] = ()
    weight: float = 1.0

    def __post_init__(self) -> None:
        sizes = {len(self.options), len(self.values), len(self.meanings) or len(self.options)}
        plain = {_plain(option) for option in self.options} - {""}
        if len(sizes) > 1 or len(plain) < max(2, len(self.options)) or not all(0 <= value <= 1 for value in self.values):
            raise UserError(f"got options {self.options} and values {self.values}", "at least two that differ, each with a value in [0, 1]")
        if not self.text.strip() or not 0 < self.weight < math.inf:
            raise UserError(f"got question {self.text!r} with weight {self.weight}", "a question and a weight above 0")

    @classmethod
    def scale(cls, text: str, levels: Sequence[str], *, weight: float = 1.0) -> Self:
        """Answered A, B, C ... for `levels`, worst first, at most 26, which are worth 0 to 1 in even distances."""
        letters = tuple(string.ascii_uppercase[: len(levels)])
        values = tuple(at / max(1, len(levels) - 1) for at in range(len(letters)))
        return cls(text, letters, values, tuple(levels), weight)

    @property
    def shown(self) -> str:
        listed = "".join(f"\n{option}: {meaning}" for option, meaning in zip(self.options, self.meanings, strict=False))
        return prompts.QUESTION.format(question=self.text + listed, options=", ".join(self.options))

    def expectation(self, probabilities: Mapping[str, float]) -> float:
        """The value expected, sum_o P(o) v_o / sum_o P(o)."""
        total = math.fsum(probabilities[option] for option in self.options)
        return min(1.0, math.fsum(probabilities[o] * v for o, v in zip(self.options, self.values, strict=True)) / total)


SUCCESS = Question("Has the agent done the task as it was set, completely and correctly?")
SOUND = Question("Is the last step right, given what was known before it?")
PROMISING = Question("Can the task still end well from the state that was reached?")
_QUESTIONS: Mapping[Mode, Question] = {"outcome": SUCCESS, "step": SOUND, "progress": PROMISING}


@dataclass(frozen=True, slots=True)
class Distribution:
    """P by option. `bare` where there were no log-probabilities and the answer itself has all of it."""

    probabilities: Mapping[str, float]
    bare: bool = False


@runtime_checkable
class Decider(Protocol):
    """What answers typed questions behind a conversation by a distribution over the options of each, in order. See also `deciding`."""

    name: str
    fingerprint: str
    tally: Tally

    async def decide(self, messages: Messages, questions: Sequence[Question], *, seed: int) -> Sequence[Distribution]: ...


class TypedJudge(Asking):
    """The weighted mean of the expected values of `questions` (None: whether the mode's criterion is met), in [0, 1].

    `model` as with `Judge` is asked each question by itself, behind the same material, for one word with `top_logprobs` alternatives.
    Where the server gives no log-probabilities its bare answer counts, the reason says so, and the score goes under the name
    `...:answer`, so that the two are never mixed up. Or `model` is a `Decider`. `mode`, `formal` and `max_chars` are as with
    `Judge`. Raises VerifierError where the options have less than half of the probability, or no bare answer is one of them after one
    more question.
    """

    def __init__(
        self,
        model: str | Model | Complete | Decider,
        *,
        questions: Sequence[Question] | None = None,
        mode: Mode = "outcome",
        top_logprobs: int = 20,
        formal: bool = False,
        max_chars: int = 60_000,
        seed: int = 0,
    ) -> None:
        if mode not in _QUESTIONS or not 1 <= top_logprobs <= 20 or (questions is not None and not questions):
            raise UserError(f"got {mode=}, {top_logprobs=}, {questions=}", f"one of {', '.join(_QUESTIONS)}, 1 to 20, and a question")
        self.mode, self.seed = mode, seed
        self.questions = (_QUESTIONS[mode],) if questions is None else tuple(questions)
        self.decider = model if isinstance(model, Decider) else NextToken(as_model(model), top_logprobs)
        asked = canonical([[q.text, q.options, q.values, q.meanings, q.weight] for q in self.questions])
        renderer = Renderer(max_chars, formal, seed)
        super().__init__("typed_judge", self.decider, renderer, asked, mode, str(seed), prompts.QUESTION)

    async def __call__(self, trajectory: Trajectory, /) -> Score | None:
        if not (trajectory.finished if self.mode == "outcome" else trajectory.steps):
            return None
        material = self.renderer.whole(trajectory)
        messages = conversation(self.renderer.tag(trajectory), material.text, [])
        found = await self.decider.decide(messages, self.questions, seed=seed_of(self.seed, trajectory.key))
        values = [question.expectation(each.probabilities) for question, each in zip(self.questions, found, strict=True)]
        weights = [question.weight for question in self.questions]
        value = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
        bare = any(each.bare for each in found)
        told = [*map(_told, self.questions, found)]
        told += [f"judged with {material.left_out}"] if material.left_out else []
        told += [f"{self.decider.name} gives no log-probabilities, so its bare answer counts"] if bare else []
        return Score(value, "; ".join(told), f"{self.name}:answer" if bare else self.name, self.version)


class NextToken:
    """A model as a decider: P of the options among the likeliest first tokens of its answer; the answer alone where it gives none."""

    def __init__(self, model: Model, top_logprobs: int) -> None:
        self.model, self.top_logprobs, self.tally = model, top_logprobs, model.tally
        self.name, self.fingerprint = model.name, f"{model.fingerprint}:{top_logprobs}"

    async def decide(self, messages: Messages, questions: Sequence[Question], *, seed: int) -> Sequence[Distribution]:
        """One request a question."""
        return await gathered([self._asked(messages, question, seed) for question in questions])

    async def aclose(self) -> None:
        if hasattr(self.model, "aclose"):
            await self.model.aclose()

    async def _asked(self, messages: Messages, question: Question, seed: int) -> Distribution:
        *before, last = messages
        said: Messages = [*before, {**last, "content": last["content"] + question.shown}]
        reply = await self.model.complete(said, None, seed=seed, top_logprobs=self.top_logprobs)
        try:
            return read_distribution(reply, question)
        except UnreadableError as error:
            problem = str(error)
        self.tally.repairs += 1
        told = f"That can't be used: {problem}. Answer with exactly one of: {', '.join(question.options)}."
        again = [*said, Message.assistant(reply.text or "(no answer)").to_openai(), Message.user(told).to_openai()]
        reply = await self.model.complete(again, None, seed=seed, top_logprobs=self.top_logprobs)
        try:
            return read_distribution(reply, question)
        except UnreadableError as error:
            got = f"{self.name} gave no answer that can be read: {problem}; asked again: {error}"
            raise VerifierError(got, f"one of {', '.join(question.options)}") from error


def read_distribution(reply: Reply, question: Question) -> Distribution:
    """P of the options at the first token that is more than space and punctuation; without log-probabilities the answer itself.

    Raises UnreadableError where that token is something else: where the options have less than half of its probability.
    """
    if reply.tokens is None:
        said = _plain(reply.text.rpartition("</think>")[2])
        chosen = [option for option in question.options if _plain(option) == said]
        if not chosen:
            raise UnreadableError(f"{(reply.text or reply.refusal)[:80]!r} is none of {', '.join(question.options)}")
        return Distribution({option: float(option in chosen) for option in question.options}, bare=True)
    token = next((token for token in reply.tokens if _plain(token.text)), None)
    shares = {} if token is None else _shares(token, question)
    mass = math.fsum(shares.values())
    if mass < _MIN_MASS:
        raise UnreadableError(f"{reply.text[:80]!r} does not begin with one of {', '.join(question.options)} (they have {mass:.2f} of it)")
    return Distribution({option: share / mass for option, share in shares.items()})


def _shares(token: Token, question: Question) -> dict[str, float]:
    shares = dict.fromkeys(question.options, 0.0)
    by_plain = {_plain(option): option for option in question.options}
    for text, logprob in token.top.items():
        option = by_plain.get(_plain(text))
        if option is not None:
            shares[option] += math.exp(logprob)
    return shares


def _told(question: Question, found: Distribution) -> str:
    return f"{question.text} {', '.join(f'{option} {share:.2f}' for option, share in found.probabilities.items())}"
