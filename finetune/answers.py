"""Where a sampled message begins and ends in what a chat template renders.

Found by rendering what the policy was sent (the messages before it, with the generation prompt) and the same with the message. Templates
that append make this a subtraction; what others do is undone here: they rewrite what came before (gpt-oss), open an answered turn
otherwise than an open one (Nemotron), leave its end token to the next message (GLM), or end every text in another token (Phi 3).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

Messages: TypeAlias = Sequence[Mapping[str, Any]]
"""OpenAI chat messages as dicts, arguments as objects."""

_USER = {"role": "user", "content": "?"}
_TAILS = (64, 16, 4)  # characters of an answer by which it is found again


@dataclass(frozen=True, slots=True)
class Answer:
    """What a policy was sent and what it wrote, its end token included; `index` is that of the message.

    `as_sent` is False where the template opens an answered turn otherwise, and `context` is what it renders before the answer.
    `ids` are the tokens that were recorded, whose text `text` then is; None where none were.
    """

    index: int
    context: str
    text: str
    as_sent: bool = True
    ids: tuple[int, ...] | None = None


def render(tokenizer: Any, conversations: Sequence[Messages], tools: Sequence[Any] | None, *, ask: bool = False) -> list[str]:
    """The texts of conversations over one tool set; with `ask`, as a policy is sent them: ending in the generation prompt."""
    if not conversations:
        return []
    texts = tokenizer.apply_chat_template(
        [list(messages) for messages in conversations], tools=list(tools) if tools else None, tokenize=False, add_generation_prompt=ask
    )
    return [str(text) for text in texts]


def answers(
    tokenizer: Any,
    messages: Messages,
    tools: Sequence[Any] | None,
    indices: Sequence[int],
    recorded: Sequence[Sequence[int] | None] | None = None,
) -> Iterator[Answer]:
    """The answers at `indices`, with the recorded ids where `recorded`, which aligns with `messages`, has some.

    Ids that do not decode to what the message holds are of another tokenizer: the text's own are taken in their place.
    Raises ValueError where the template does not write what a message holds, or rewrites so much that its beginning can't be told.
    """
    given = {i: tuple(ids) for i in indices if recorded is not None and (ids := recorded[i]) is not None}
    known = {i: ids for i, ids in given.items() if not foreign(tokenizer, messages[i], ids)}
    unknown = [i for i in indices if i not in known]
    reading = _Reading(tokenizer, tools)
    rendered = dict(zip(unknown, render(tokenizer, [messages[: i + 1] for i in unknown], tools), strict=True))
    for i, sent in zip(indices, render(tokenizer, [messages[:i] for i in indices], tools, ask=True), strict=True):
        if i in known:
            yield Answer(i, sent, text_of(tokenizer, known[i]), ids=known[i])
        else:
            yield reading.answer(messages[: i + 1], sent, rendered[i])


def foreign(tokenizer: Any, message: Mapping[str, Any], ids: Sequence[int]) -> bool:
    """Whether the ids recorded for a message do not decode to its calls, or to the end of its text: they are of another tokenizer."""
    return bool(_missing(message, text_of(tokenizer, ids)))


def text_of(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of token ids, special tokens and spaces as they are."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


class _Reading:
    """Reads answers out of the renderings of one tokenizer's template."""

    def __init__(self, tokenizer: Any, tools: Sequence[Any] | None) -> None:
        self.tokenizer, self.tools = tokenizer, tools
        added = [token for token in tokenizer.added_tokens_decoder.values() if not token.content.isspace()]
        self.ends = tuple({token.content for token in added if token.special})
        self.added = added_pattern(tokenizer)

    def answer(self, messages: Messages, sent: str, answered: str) -> Answer:
        """The last of `messages`. `sent` is the rendering of those before it, `answered` that of all."""
        context, text = self._parted(messages, sent, answered)
        text = self._ended(messages, text.removeprefix(self._opening))
        missing = _missing(messages[-1], text)
        if missing:
            msg = f"the chat template leaves out {missing} of message {len(messages) - 1}"
            raise ValueError(msg)
        return Answer(len(messages) - 1, context, text, context == sent)

    def _render(self, messages: Messages, *, ask: bool = False) -> str:
        return render(self.tokenizer, [messages], self.tools, ask=ask)[0]

    @cached_property
    def _opening(self) -> str:
        """What the template writes for a model to go on from: never the model's own. Empty where it is no token that only it can write."""
        try:
            body, asked = self._render([_USER]), self._render([_USER], ask=True)
        except Exception:  # noqa: BLE001  a template may refuse the made-up message as it likes
            return ""
        opening = asked[len(body) :] if asked.startswith(body) else ""
        return opening if opening.startswith(self.ends) else ""

    def _parted(self, messages: Messages, sent: str, answered: str) -> tuple[str, str]:
        """Context and answer."""
        if answered.startswith(sent):
            return sent, answered[len(sent) :]
        parting = self._common(sent, answered)
        body = self._common(self._render(messages[:-1]), sent)
        if parting >= body:  # only the opening is another
            rewritten = sent[parting:].strip()
            return answered[:parting] if rewritten else sent, answered[parting:]
        opening = sent[body:]
        if opening:
            places = [match.end() for match in re.finditer(re.escape(opening), answered)]
            if places:
                backwards = sent[::-1]
                return sent, answered[max(places, key=lambda end: (shared(answered[:end][::-1], backwards), end)) :]
        text = answered[parting:].removeprefix(self._opening)
        other = self._render([*messages[:-1], {"role": "assistant", "content": "\N{SNOWMAN}"}])
        if self._common(answered, other) > len(answered) - len(text):
            msg = f"the chat template rewrites what came before message {len(messages) - 1}, and where it begins can't be told"
            raise ValueError(msg)
        return sent, text

    def _common(self, one: str, other: str) -> int:
        """The length of the common beginning, cut where it ends inside a token of the template."""
        length = shared(one, other)
        reach = max(map(len, self.ends), default=1)
        for text in (one, other):
            for match in self.added.finditer(text, max(0, length - reach), length + reach):
                if match.start() < length < match.end():
                    length = match.start()
        return length

    def _ended(self, messages: Messages, text: str) -> str:
        """The answer up to and with the token that ended it; as it is where the template has no such tokens."""
        bare = text.rstrip()
        last = next((end for end in self.ends if bare.endswith(end)), "")
        if not last:
            return text + self._stop(messages, text)
        before = bare.removesuffix(last)
        own = next((end for end in self.ends if before.rstrip().endswith(end)), "")
        if own and before != before.rstrip() and self._follows(messages, before.rstrip()).strip()[: len(last)] != last:
            return before.rstrip()  # what came behind closed the text, and goes away when the conversation goes on
        return bare

    def _stop(self, messages: Messages, text: str) -> str:
        """The token that opens the next message, where nothing else can have ended this one."""
        follows = self._follows(messages, text)
        stop = next((end for end in sorted(self.ends, key=len, reverse=True) if follows.startswith(end)), "")
        return "" if stop == self.tokenizer.bos_token else stop

    def _follows(self, messages: Messages, text: str) -> str:
        """What the template writes after the answer `text` when the conversation goes on; empty where that can't be told."""
        calls = messages[-1].get("tool_calls") or ()
        results = [{"role": "tool", "tool_call_id": call.get("id"), "name": _name(call), "content": "?"} for call in calls]
        try:
            longer = self._render([*messages, *(results or [_USER])])
        except Exception:  # noqa: BLE001  a template may refuse the made-up message as it likes
            return ""
        for size in _TAILS if text else ():
            _, found, follows = longer.rpartition(text[-size:])
            if found:
                return follows
        return ""


def shared(one: str, other: str) -> int:
    """The length of the common beginning of two texts."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle - 1)
    return low


def added_pattern(tokenizer: Any) -> re.Pattern[str]:
    """Matches the added tokens, special or not: what a tokenizer cuts text at before anything else."""
    added = sorted((token.content for token in tokenizer.added_tokens_decoder.values()), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, filter(None, added))) or r"(?!)")


def left_out(tokenizer: Any, messages: Messages, tools: Sequence[Any] | None) -> str:
    """What the rendering of a whole conversation lacks of what its assistant messages hold; empty where nothing is seen to be missing.

    One look at the whole, where `answers` looks at every message: it finds templates without room for calls, or for several in one message.
    Raises whatever the template raises on the conversation.
    """
    (whole,) = render(tokenizer, [messages], tools)
    said = [message for message in messages if message.get("role") == "assistant"]
    names = Counter(_name(call) for message in said for call in message.get("tool_calls") or ())
    if names:
        first = next(at for at, message in enumerate(messages) if message.get("role") == "assistant")
        try:
            (before,) = render(tokenizer, [messages[:first]], tools)
        except Exception:  # noqa: BLE001  some refuse a conversation without a user
            before = ""
        lost = next((name for name, count in names.items() if whole.count(name) - before.count(name) < count), "")
        if lost:
            return f"a call of {lost}"
    return next(filter(None, (_missing(message, whole) for message in said if not message.get("tool_calls"))), "")


def _name(call: Mapping[str, Any]) -> str:
    return str((call.get("function") or call).get("name") or "")


def _missing(message: Mapping[str, Any], text: str) -> str:
    """What of a message is not in its rendering; empty where nothing is.

    Reasoning, and text beside a call, may be left out, as some templates have no place for them: what acts is there.
    """
    names = [_name(call) for call in message.get("tool_calls") or ()]
    lost = next((name for name in names if text.count(name) < names.count(name)), "")
    if lost:
        return f"a call of {lost}"
    if names:
        return ""
    content = message.get("content")
    parts = content if isinstance(content, list) else [{"text": content}]
    words = " ".join(str(part.get("text") or "") for part in parts if isinstance(part, Mapping)).rpartition("</think>")[2].split()
    return "the text" if words and words[-1] not in text else ""
