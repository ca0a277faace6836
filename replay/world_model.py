"""A language model as the world: it is shown the tool, the nearest recorded calls with their results, and the branch so far.

What it writes is taken as a result only if it has the form of the recorded ones: JSON where they are JSON, with their
fields. Otherwise it is asked again, and told what was wrong; then there is no result.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from counterplay.core.canonical import content_key, loads
from counterplay.core.effects import Effect
from counterplay.core.errors import PolicyError
from counterplay.core.nouns import Message, State, ToolCall, ToolSpec, Trajectory, Usage
from counterplay.core.protocols import Policy, fingerprint_of
from counterplay.replay.nearest import Found, Recollection
from counterplay.replay.recorded import call_answers
from counterplay.replay.simulated import Imagined, Simulation, effects_of

Complete: TypeAlias = Callable[[Sequence[Mapping[str, Any]]], str | Awaitable[str]]
"""A model as a function: OpenAI messages in, text out."""

_SYSTEM = """You stand in for the tools of a software system. You are shown a tool, calls of it that the real system answered, \
and what happened in this session before. Answer the last call exactly as the real system would.
Write the result alone, byte for byte in the form of the recorded results: no explanation, no code fence.
Keep to what the records and the session say. Where the real system would refuse the call, write the error as the records do."""


class WorldModel(Simulation):
    """Results imagined by `model`: the name of a model on the OpenAI-compatible server at `base_url`, any policy, or a function
    from messages to text.

    Each question holds the `examples` nearest recorded calls and at most `max_session_chars` of the calls on the branch so far, the
    latest. An answer of the wrong form is asked for again up to `retries` times. A model on a server is asked at `temperature`, with
    seeds derived from `seed` and the question, and `used` sums up what it used.
    The other arguments are those of `NearestRecorded`.
    """

    def __init__(
        self,
        trajectories: Iterable[Trajectory],
        model: str | Policy | Complete,
        *,
        base_url: str | None = None,
        effects: Mapping[str, Effect] | None = None,
        tools: Sequence[ToolSpec] = (),
        examples: int = 4,
        max_session_chars: int = 12_000,
        retries: int = 2,
        temperature: float = 0.0,
        max_tokens: int = 4096,
        seed: int = 0,
        simulate_writes: bool = False,
        fidelity: Mapping[str, float] | None = None,
        min_fidelity: float | None = None,
    ) -> None:
        logged = tuple(trajectories)
        known = effects_of(logged, tools, effects)
        specs = {tool.name: tool for trajectory in logged for tool in trajectory.tools} | {tool.name: tool for tool in tools}
        if isinstance(model, str):
            from counterplay.replay.openai_policy import OpenAIPolicy

            sampling: dict[str, Any] = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed}
            model = OpenAIPolicy(model, base_url=base_url, parse_text_calls=False, **sampling)
        limits = {"examples": examples, "max_session_chars": max_session_chars, "retries": retries}
        self.asker = Asker(model, Recollection(logged, known), specs, **limits)
        self.asker.fingerprint = f"{self.asker.fingerprint}:{content_key(*(trajectory.key for trajectory in logged))}"
        super().__init__(self.asker, known, simulate_writes=simulate_writes, fidelity=fidelity, min_fidelity=min_fidelity)

    @property
    def used(self) -> Usage:
        return self.asker.used

    async def aclose(self) -> None:
        """Close the connections to the server."""
        if hasattr(self.asker.model, "aclose"):
            await self.asker.model.aclose()


class Asker:
    """The simulator behind a world model: makes the question, asks, and checks the answer's form."""

    def __init__(
        self,
        model: Policy | Complete,
        recollection: Recollection,
        tools: Mapping[str, ToolSpec],
        *,
        examples: int,
        max_session_chars: int,
        retries: int,
    ) -> None:
        self.model, self.recollection, self.tools = model, recollection, tools
        self.examples, self.max_session_chars, self.retries, self.used = examples, max_session_chars, retries, Usage()
        options = (str(option) for option in (examples, max_session_chars, retries))
        self.fingerprint = f"world-model:{fingerprint_of(model)}:{content_key(_SYSTEM, *options)}"
        self._forms: dict[str, Form] = {}

    async def imagine(self, state: State, call: ToolCall) -> Imagined:
        found = self.recollection.nearest(state, call, k=self.examples)
        form = self._form(call.name)
        messages = [Message.system(_SYSTEM), Message.user(self._question(state, call, found))]
        likeness, complaint = (found[0].score if found else None), ""
        for _ in range(self.retries + 1):
            text = _unfenced(await self._ask(messages))
            complaint = form.complaint(text)
            if not complaint:
                return Imagined(Message.tool(text, call.id), "a language model", likeness)
            messages += [Message.assistant(text), Message.user(f"That can't be its result: {complaint}. Write the result alone.")]
        return Imagined(None, f"{call.name}: the model's answers had the wrong form, at last: {complaint}", likeness)

    def _form(self, tool: str) -> Form:
        if tool not in self._forms:
            self._forms[tool] = Form.of([message.content_text for message in self.recollection.results(tool)])
        return self._forms[tool]

    async def _ask(self, messages: Sequence[Message]) -> str:
        if not isinstance(self.model, Policy):
            answered = self.model([message.to_openai() for message in messages])
            return await answered if inspect.isawaitable(answered) else answered
        proposals = await self.model.propose(Trajectory(prompt=tuple(messages)), 1)
        if not proposals:
            raise PolicyError("the world model proposed nothing", "one answer")
        self.used += proposals[0].usage
        return proposals[0].action.content_text

    def _question(self, state: State, call: ToolCall, found: Sequence[Found]) -> str:
        spec = self.tools.get(call.name)
        parts = [f"# The tool\n{spec.wire if spec is not None else call.name}"]
        shown = [f"{one.call.form.signature}\n{one.call.result.content_text}" for one in reversed(found)]
        parts += ["# Calls that the real system answered\n" + "\n\n".join(shown)] if shown else []
        before = self._before(state)
        parts += [f"# This session so far\n{before}"] if before else []
        return "\n\n".join([*parts, f"# The call to answer\n{call.signature}"])

    def _before(self, state: State) -> str:
        """The calls of a branch with their results, the latest that fit."""
        found: list[str] = []
        left = self.max_session_chars
        for step in reversed(state.steps):
            for made, answer in reversed(list(zip(step.action.tool_calls, call_answers(step), strict=True))):
                text = f"{made.signature}\n{'(no result)' if answer is None else answer.content_text}"
                left -= len(text)
                if left < 0:
                    return "\n\n".join(reversed(found))
                found.append(text)
        return "\n\n".join(reversed(found))


@dataclass(frozen=True)
class Form:
    """The form of a tool's recorded results: their kinds (`object`, `array`, `value`, `text`), and the fields of objects.

    `shapes` are the sets of fields that recorded objects have, those of elements of arrays included; `openings` the first words of
    texts. A tool that was never recorded may answer anything.
    """

    kinds: frozenset[str] = frozenset()
    shapes: frozenset[frozenset[str]] = frozenset()
    openings: frozenset[str] = frozenset()

    @classmethod
    def of(cls, results: Sequence[str]) -> Form:
        values = [(text, _parsed(text)) for text in results]
        texts = [text.split() for text, value in values if value is _NOT_JSON]
        return cls(
            frozenset(_kind(value) for _, value in values),
            frozenset(frozenset(each) for _, value in values for each in _objects(value)),
            frozenset(words[0] for words in texts if words),
        )

    def complaint(self, text: str) -> str:
        """What is wrong with the form of a result; empty where nothing is."""
        value = _parsed(text)
        kind = _kind(value)
        if self.kinds and kind not in self.kinds:
            return f"it is {_WORDS[kind]}, the recorded results are {' or '.join(sorted(_WORDS[each] for each in self.kinds))}"
        if kind == "text" and self.kinds != {"text"} and self.openings and (text.split() or [""])[0] not in self.openings:
            return f"as a text it would begin with one of: {', '.join(sorted(self.openings))}"
        return next((wrong for each in _objects(value) if (wrong := self._misshapen(frozenset(each)))), "")

    def _misshapen(self, fields: frozenset[str]) -> str:
        """What is wrong with the fields of an object: they lie between those of all and of any recorded object that has most of them."""
        if not self.shapes or fields in self.shapes:
            return ""
        most = max(len(fields & shape) for shape in self.shapes)
        alike = [shape for shape in self.shapes if len(fields & shape) == most]
        missing, more = frozenset.intersection(*alike) - fields, fields - frozenset().union(*alike)
        lacks = [f"it lacks {', '.join(sorted(missing))}"] if missing else []
        return "; ".join([*lacks, *([f"it has {', '.join(sorted(more))} in addition"] if more else [])])


_NOT_JSON = object()
_WORDS = {"object": "a JSON object", "array": "a JSON array", "value": "a JSON value", "text": "text"}


def _parsed(text: str) -> Any:
    try:
        value = loads(text)
    except (ValueError, RecursionError):
        return _NOT_JSON
    return _NOT_JSON if isinstance(value, float) and not math.isfinite(value) else value


def _kind(value: Any) -> str:
    if value is _NOT_JSON:
        return "text"
    return "object" if isinstance(value, dict) else "array" if isinstance(value, list) else "value"


def _objects(value: Any) -> list[Mapping[str, Any]]:
    """The object itself, or those in an array."""
    if isinstance(value, list):
        return [each for each in value if isinstance(each, dict)]
    return [value] if isinstance(value, dict) else []


def _unfenced(text: str) -> str:
    """A result without the code fence that models like to put round it."""
    lines = text.strip().splitlines()
    if len(lines) > 1 and lines[0].startswith("```") and lines[-1].strip() == "```":
        return "\n".join(lines[1:-1])
    return text.strip()
