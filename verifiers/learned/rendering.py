"""From a trajectory to the tokens a model reads, step by step.

A chat template that only appends gives every step tokens of its own, whatever came before: trajectories that share a prefix then
share its tokens. Whether a template is of this kind is checked against full renderings, for every shape of step and now and then.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from counterplay.core.errors import VerifierError
from counterplay.core.nouns import Message, Step, ToolSpec, Trajectory

_STUB = Message.user("?")
_CHECKS, _CHECK_EVERY = 2, 256


@dataclass(frozen=True, slots=True)
class StepTokens:
    """The tokens of one step. `end` is the position of its last token that is not white space, where a score is read.

    `said` is the range of what the model wrote, its end token among it; positions count from the step's first token.
    """

    ids: tuple[int, ...]
    end: int
    said: tuple[int, int]


class StepRenderer:
    """Renders with the tokenizer's own chat template. Control tokens inside messages, such as `<|im_end|>`, are plain text to the model.

    `appends` says whether the template only appends, as far as is known.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.appends = True
        self._stub: list[int] = []
        self._opened: list[int] = []
        self._seen: Counter[tuple[Any, ...]] = Counter()
        self._space: dict[int, bool] = {}
        added = [re.escape(token) for token in tokenizer.get_added_vocab() if not token.isspace()]
        self._control = re.compile("|".join(added) or r"(?!)")

    def prompt(self, trajectory: Trajectory) -> tuple[int, ...]:
        """The tokens of tools and prompt."""
        return tuple(self._tokens(trajectory.prompt, trajectory.tools))

    def step(self, step: Step) -> StepTokens:
        """The tokens a step adds. Raises VerifierError where the template can't render it."""
        if not self._stub:
            self._stub = self._tokens([_STUB])
            self._opened = self._tokens([_STUB], opened=True)
        known = len(self._stub)
        whole = self._tokens([_STUB, *step.messages])
        alone = self._tokens([_STUB, step.action]) if step.observations else whole
        self.appends = self.appends and whole[:known] == self._stub and self._opened[:known] == self._stub
        start = _common(self._opened, alone)
        ids = whole[known:]
        stop = max(start, self.last(alone) + 1)
        return StepTokens(tuple(ids), self.last(ids), (start - known, stop - known))

    def whole(self, trajectory: Trajectory) -> list[int]:
        """The tokens of all of it, rendered at once."""
        return self._tokens(trajectory.messages, trajectory.tools)

    def check(self, trajectory: Trajectory, ids: Sequence[int], shapes: Sequence[Step]) -> bool:
        """Whether the template only appends. `ids` were put together step by step; of the steps `shapes` some are new in kind."""
        due = False
        for step in shapes:
            kind = tuple((m.role, bool(m.content), len(m.tool_calls), bool(m.reasoning)) for m in step.messages)
            self._seen[kind] += 1
            due = due or self._seen[kind] <= _CHECKS or self._seen[kind] % _CHECK_EVERY == 0
        if due and self.appends:
            self.appends = list(ids) == self.whole(trajectory)
        return self.appends

    def last(self, ids: Sequence[int]) -> int:
        """The position of the last token that is not white space, 0 where all are."""
        return next((at for at in range(len(ids) - 1, -1, -1) if not self._is_space(ids[at])), 0)

    def _is_space(self, token: int) -> bool:
        if token not in self._space:
            self._space[token] = not self.tokenizer.decode([token], clean_up_tokenization_spaces=False).strip()
        return self._space[token]

    def _tokens(self, messages: Sequence[Message], tools: Sequence[ToolSpec] = (), *, opened: bool = False) -> list[int]:
        wires = [message.wire for message in messages] + [tool.wire for tool in tools]
        try:
            ids = self.tokenizer.apply_chat_template(
                [_fields(message) for message in messages],
                tools=[tool.to_openai() for tool in tools] or None,
                add_generation_prompt=opened,
                sanitize_control_tokens=any(map(self._control.search, wires)),
                return_dict=False,
            )
        except Exception as error:  # templates raise what they like
            got = f"the chat template failed on {len(messages)} messages: {type(error).__name__}: {error}"
            raise VerifierError(got, "a template that renders these roles and tool calls") from error
        return [int(token) for token in ids]


def _fields(message: Message) -> dict[str, Any]:
    """A message as templates take it: tool-call arguments as objects (text that is no JSON object stays text), text parts joined."""
    fields = message.to_openai()
    for raw, call in zip(fields.get("tool_calls") or (), message.tool_calls, strict=True):
        (raw.get("function") or raw)["arguments"] = call.arguments if call.args is None else call.args
    if isinstance(message.content, list) and all(part.get("type") == "text" for part in message.content):
        fields["content"] = message.content_text
    return fields


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    return next((at for at, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
