"""Deciders: models made for typed questions, which give the probabilities of all answers in one forward pass and write no text."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from counterplay.core.errors import VerifierError
from counterplay.core.nouns import Usage
from counterplay.core.protocols import fingerprint_of
from counterplay.verifiers.judges.model import Messages, Tally
from counterplay.verifiers.judges.typed import Distribution, Question

if TYPE_CHECKING:
    import openai


class PipelineDecider:
    """transformers' decision pipeline (`transformers.pipeline("decision", model=FOLDER)`), or anything that is called like it.

    It is called in a thread, once at a time. The fingerprint is that of the model's folder or name.
    """

    def __init__(self, pipeline: Callable[[Mapping[str, Any]], Any]) -> None:
        self._pipeline, self._one_at_a_time = pipeline, threading.Lock()
        self.name = str(getattr(getattr(pipeline, "model", None), "name_or_path", "") or fingerprint_of(pipeline))
        self.fingerprint = f"pipeline:{self.name}"
        self.tally = Tally()

    async def decide(self, messages: Messages, questions: Sequence[Question], *, seed: int) -> Sequence[Distribution]:  # noqa: ARG002  nothing is drawn
        named = {f"q{at}": question for at, question in enumerate(questions)}
        asked = {
            name: {"type": "choice", "instructions": question.text, "criteria": _described(question)} for name, question in named.items()
        }
        answers = await asyncio.to_thread(self._called, {"state": _text(messages), "questions": asked})
        self.tally.add(None)
        return [_checked(self.name, question, answers[name]["probabilities"]) for name, question in named.items()]

    def _called(self, request: Mapping[str, Any]) -> Any:
        with self._one_at_a_time:
            return self._pipeline(request)


class DecisionsEndpoint:
    """OpenAI's `/decisions`: `model` answers all questions in one request. `client` is an `openai.AsyncOpenAI`, for one event loop."""

    def __init__(self, model: str, client: openai.AsyncOpenAI) -> None:
        self._client, self.name, self.fingerprint = client, model, f"decisions:{model}"
        self.tally = Tally()

    async def decide(self, messages: Messages, questions: Sequence[Question], *, seed: int) -> Sequence[Distribution]:  # noqa: ARG002  nothing is drawn
        """Raises VerifierError where the model refuses a question, or the server does not answer."""
        import openai

        asked: Any = [
            {
                "type": "choice",
                "instructions": question.text,
                "choices": [{"value": option, "description": meaning} for option, meaning in _described(question).items()],
            }
            for question in questions
        ]
        try:
            decision = await self._client.decisions.create(model=self.name, input=_text(messages), questions=asked)
        except openai.APIError as error:
            self.tally.failures += 1
            raise VerifierError(f"{self.name} did not decide: {error}"[:500], "an answer of /decisions") from error
        self.tally.add(Usage(decision.usage.input_tokens, decision.usage.output_tokens, decision.usage.input_tokens_details.cached_tokens))
        if len(decision.answers) != len(questions):
            raise VerifierError(f"{self.name} gave {len(decision.answers)} answers to {len(questions)} questions", "one each, in order")
        found = []
        for question, answer in zip(questions, decision.answers, strict=True):
            if answer.type != "choice":
                raise VerifierError(f"{self.name} answered {question.text!r} by a {answer.type}", "probabilities of the choices")
            found.append(_checked(self.name, question, {str(each.value): each.probability for each in answer.probabilities}))
        return found


def _described(question: Question) -> dict[str, str]:
    return dict(zip(question.options, question.meanings or question.options, strict=True))


def _text(messages: Messages) -> str:
    return "\n\n".join(str(message["content"]) for message in messages)


def _checked(name: str, question: Question, shares: Mapping[str, float]) -> Distribution:
    if set(shares) != set(question.options) or not sum(shares.values()) > 0:
        raise VerifierError(f"{name} gave probabilities of {', '.join(shares) or 'nothing'}", f"those of {', '.join(question.options)}")
    return Distribution({option: float(shares[option]) for option in question.options})
