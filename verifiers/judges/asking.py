"""Asking a judge's model: tools are answered, an unreadable answer is asked for once more, and then it is an error, never a number."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, TypeAlias, TypeVar

from counterplay.core.canonical import content_key, dumps
from counterplay.core.errors import UserError, VerifierError
from counterplay.core.nouns import Message, ToolCall, ToolSpec
from counterplay.core.protocols import fingerprint_of
from counterplay.verifiers.judges.model import Messages, Model
from counterplay.verifiers.judges.reading import Form, UnreadableError
from counterplay.verifiers.judges.replies import Reply

T = TypeVar("T")
Function: TypeAlias = Callable[..., Any] | Callable[..., Awaitable[Any]]
_SHOWN_CHARS = 4000


@dataclass(frozen=True)
class Toolbox:
    """Tools that a judge may call: definitions and the functions behind them, which take the arguments by name.

    A function that is not async runs in a thread. What it returns is shown as text or JSON, cut at `max_chars`; what it raises as an
    error. At most `max_calls` are answered in one judgement.
    """

    tools: Sequence[tuple[ToolSpec, Function]] = ()
    max_calls: int = 8
    max_chars: int = 8000

    @property
    def specs(self) -> tuple[ToolSpec, ...]:
        return tuple(spec for spec, _ in self.tools)

    @property
    def fingerprint(self) -> str:
        parts = [f"{spec.wire}{fingerprint_of(function)}" for spec, function in self.tools]
        return content_key(*parts, str(self.max_calls), str(self.max_chars)) if parts else ""

    async def call(self, call: ToolCall) -> str:
        """The result of one call as the judge is shown it."""
        function = next((function for spec, function in self.tools if spec.name == call.name), None)
        if function is None:
            return f"Error: there is no tool {call.name!r}"
        if call.args is None:
            return "Error: the arguments are not a JSON object"
        try:
            if inspect.iscoroutinefunction(function):
                result = await function(**call.args)
            else:
                result = await asyncio.to_thread(function, **call.args)
            said = result if isinstance(result, str) else dumps(result)
        except Exception as error:  # noqa: BLE001  a tool's failure is an observation of the judge
            said = f"Error: {type(error).__name__}: {error}"
        return said if len(said) <= self.max_chars else f"{said[: self.max_chars]}\n[{len(said) - self.max_chars} characters left out]"


NO_TOOLS = Toolbox()


def check_tools(model: Model, toolbox: Toolbox) -> None:
    """Raises UserError where the model is one that can't call tools."""
    if toolbox.tools and not model.calls_tools:
        raise UserError(f"got tools for {model.name}, a function", "a ChatModel, which can call them", "Leave the tools out.")


async def ask_model(model: Model, messages: Messages, form: Form[T], *, seed: int, toolbox: Toolbox = NO_TOOLS) -> T:
    """The model's answer, read. Raises VerifierError where it can't be read, nor what the model says when it is told why."""
    reply, asked = await _converse(model, messages, form.schema, seed, toolbox)
    try:
        return form.parse(reply)
    except UnreadableError as error:
        problem = str(error)
    model.tally.repairs += 1
    complaint = f"That can't be used: {problem}. Give your judgement again as one JSON object of the form asked for, and nothing else."
    shown = Message.assistant((reply.text or reply.refusal)[:_SHOWN_CHARS] or "(no answer)")
    again = [*asked, shown.to_openai(), Message.user(complaint).to_openai()]
    second, _ = await _converse(model, again, form.schema, seed, Toolbox(toolbox.tools, 0))
    try:
        return form.parse(second)
    except UnreadableError as error:
        got = f"{model.name} gave no judgement that can be read: {problem}; asked again: {error}; it said {second.text[:200]!r}"
        raise VerifierError(got, "one JSON object of the form asked for", "Ask another model, or allow it more tokens.") from error


async def _converse(
    model: Model, messages: Messages, schema: Mapping[str, Any], seed: int, toolbox: Toolbox
) -> tuple[Reply, list[Mapping[str, Any]]]:
    """The answer after the tools that the model called, and all that was said before it."""
    said, left = list(messages), toolbox.max_calls
    while True:
        reply = await model.complete(said, schema, seed=seed, tools=toolbox.specs, more_calls=left > 0)
        calls = reply.message.tool_calls if reply.message is not None else ()
        if reply.message is None or not calls or left <= 0:
            return reply, said
        results = await asyncio.gather(*(toolbox.call(call) for call in calls[:left]))
        results += ["Error: no calls are left; judge by what you know"] * (len(calls) - left)
        left -= len(calls)
        said += [reply.message.to_openai(), *(Message.tool(r, c.id).to_openai() for r, c in zip(results, calls, strict=True))]


def seed_of(seed: int, *parts: str) -> int:
    """A seed for one question, from the judge's own and what is asked: 31 bits, as servers take them."""
    return int.from_bytes(blake2b("\n".join((str(seed), *parts)).encode("utf-8", "surrogatepass"), digest_size=4).digest()) >> 1
