"""Single model calls back into traces: by explicit id, else by prefix.

Call B continues call A exactly if B's messages start with A's messages and A's answer. Each call keeps only the messages it adds,
so memory grows with the content that is unique and not with the square of a run's length. Where two calls continue one answer
(retries, edits) the paths are branches of one trace; calls of one trace id that share no prefix are contexts of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from hashlib import blake2b
from pathlib import Path
from typing import Any

import orjson

from counterplay.connectors.base import Item
from counterplay.connectors.chat.chains import Chains
from counterplay.connectors.chat.contexts import trace_of
from counterplay.connectors.chat.nodes import Group, Node
from counterplay.connectors.chat.rows import LoggedCall
from counterplay.connectors.lines import Entry
from counterplay.connectors.normalise import KnownPrompt, has_reasoning, match_key, role_of
from counterplay.connectors.parts import Undivided
from counterplay.connectors.quick import changed
from counterplay.core.canonical import dumps
from counterplay.core.nouns import Message, ToolSpec


@dataclass
class _Shared:
    """The one kept copy of what calls have in common."""

    messages: dict[str, tuple[Message, bytes]] = field(default_factory=dict)
    toolsets: dict[tuple[ToolSpec, ...], tuple[ToolSpec, ...]] = field(default_factory=dict)
    objects: dict[bytes | str, Mapping[str, Any]] = field(default_factory=dict)
    last_tools: tuple[ToolSpec, ...] = ()
    last_shared: tuple[ToolSpec, ...] = ()

    def message(self, message: Message) -> tuple[Message, bytes]:
        found = self.messages.get(message.wire)
        if found is None:
            found = self.messages[message.wire] = (message, match_key(message))
        return found

    def light(self, logged: LoggedCall) -> LoggedCall:
        """What is kept of a call: everything but the text that stands in the tree."""
        params = self._object(logged.call.params)
        return changed(
            logged,
            messages=(),
            outputs=(),
            tools=self._toolset(logged.tools),
            metadata=self._object(logged.metadata),
            call=logged.call if params is logged.call.params else changed(logged.call, params=params),
            entry=Entry({}, logged.entry.path, logged.entry.index, logged.entry.line, logged.entry.offset),
            rejected=logged.entry.reject(f"a call that nothing answered ({logged.error}), in no trace") if logged.error else None,
        )

    def _toolset(self, tools: tuple[ToolSpec, ...]) -> tuple[ToolSpec, ...]:
        if self.last_tools is not tools:
            self.last_tools = tools
            self.last_shared = self.toolsets.setdefault(tools, tools)
        return self.last_shared

    def _object(self, value: Mapping[str, Any]) -> Mapping[str, Any]:
        return self.objects.setdefault(_written(value), value) if value else value


class CallTree:
    """Takes logged calls one at a time, in any order, and gives the traces when all are in."""

    def __init__(self, format: str) -> None:  # noqa: A002  the word users type
        self.format = format
        self._groups: dict[str, Group] = {}
        self._home: dict[Node, Group] = {}  # of every root
        self._tips: dict[tuple[str, bytes], list[Node]] = {}
        self._seen: dict[tuple[str, bytes, bytes], Node] = {}
        self._shared = _Shared()
        self._unsure: list[Node] = []  # they hold an answer that no call before them gave
        self._order = 0
        self._chains = Chains(self._place, lambda message: self._shared.message(message)[0])

    def add(self, logged: LoggedCall) -> None:
        self._chains.add(logged)

    def names(self, logged: LoggedCall) -> Iterator[str | bytes]:
        """What two calls have in common that may hang together, whatever else they are. Raises Undivided where that can't be said."""
        if logged.previous or logged.conversation:
            raise Undivided
        if name := logged.trace or logged.session:
            yield f"group {name}"
        if seed := _seed(logged):
            yield f"seed {seed}"
        else:
            user = next((place for place, message in enumerate(logged.messages) if role_of(message) == "user"), None)
            if user is None:  # another call may go on from it with a first user message
                raise Undivided
            yield self._key(KnownPrompt(logged.messages[: user + 1]))
        if logged.call.response_id:
            yield f"answer {logged.call.response_id}"

    def items(self) -> Iterator[Item]:
        """Every trace, in the order of its first call, and a Rejected for each call that no answer makes a trace of."""
        return (item for _, item in self.placed())

    def placed(self) -> Iterator[tuple[tuple[Path, int], Item]]:
        """As `items`, each with the row of its first call."""
        self._chains.finish()
        for node in self._unsure:
            self._settle(node)
        self._unsure.clear()
        for group in dict.fromkeys(self._groups.values()):
            group.order_by_time()
            trace = trace_of(self.format, group)
            for item in group.rejected() if trace is None else (trace,):
                yield group.first, item

    def _place(self, logged: LoggedCall) -> None:
        """Put a call whose messages are all known where it belongs."""
        prompt = logged.messages if isinstance(logged.messages, KnownPrompt) else KnownPrompt(logged.messages)
        key = self._key(prompt)
        outputs = [self._shared.message(message) for message in logged.outputs]
        seed = _seed(logged)
        # An answer's id is its own, whatever trace or session a log says that it belongs to; a time is not.
        where = "" if logged.call.response_id else seed
        identity, tips = _identity(logged), [_link(key, each) for _, each in outputs]
        said = tips[0] if len(tips) == 1 else reduce(_link, (each for _, each in outputs), key)
        repeat = (where, said, identity)
        if identity and repeat in self._seen:
            self._again(self._seen[repeat], logged)
            return
        parent, length, base = self._parent(prompt, logged, b"")
        delta = prompt.behind(length)
        if parent:
            _echo(parent, prompt.behind(length - 1)[0])
        light, group = self._shared.light(logged), self._group_for(logged, parent)
        answers: list[Message | None] = [output for output, _ in outputs] or [None]
        nodes = [Node(light, self._order, group, delta, answer, choice, base) for choice, answer in enumerate(answers)]
        if any(role_of(message) == "assistant" for message in delta):
            self._unsure += nodes
        self._order += 1
        self._attach(nodes, parent)
        if identity:
            self._seen[repeat] = nodes[0]
        for node, tip in zip(nodes, tips, strict=False):
            self._tips.setdefault((seed, tip), []).append(node)

    def _again(self, node: Node, logged: LoggedCall) -> None:
        """A second log of one call may know what it cost."""
        node.group.repeated += 1
        known, told = node.logged.call, logged.call
        if known.usage.cost_usd is None and told.usage.cost_usd is not None:
            node.logged = replace(node.logged, call=replace(known, usage=replace(known.usage, cost_usd=told.usage.cost_usd)))

    def _key(self, prompt: KnownPrompt, base: bytes = b"") -> bytes:
        """The running hash of all messages of a prompt behind `base`."""
        waiting: list[KnownPrompt] = []
        part: KnownPrompt | None = prompt
        while part is not None and part.keys is None:
            waiting.append(part)
            part = part.before
        key = base if part is None else _last_key(part, base)
        for part in reversed(waiting):
            keys = []
            for message in part.news:
                key = _link(key, self._shared.message(message)[1])
                keys.append(key)
            part.keys = tuple(keys)
        return key

    def _parent(self, prompt: KnownPrompt, logged: LoggedCall, base: bytes) -> tuple[Node | None, int, bytes]:
        """The call that is continued, the length of what is shared and the hash of it: (None, 0, `base`) where there is none.

        It is one of its own trace, not continued yet, the latest, if there is such a one.
        """
        seed = _seed(logged)
        part: KnownPrompt | None = prompt
        while part is not None:
            keys = part.keys or ()
            for place in range(len(keys) - 1, -1, -1):
                nodes = self._tips.get((seed, keys[place]))
                if nodes:
                    nodes = [node for node in nodes if node.logged.trace == logged.trace] or nodes
                    chosen = next((node for node in reversed(nodes) if not node.children), nodes[-1])
                    return chosen, part.start + place + 1, keys[place]
            part = part.before
        return None, 0, base

    def _group_for(self, logged: LoggedCall, parent: Node | None) -> Group:
        """The group that a call comes into, known by the call's own name from now on."""
        name = logged.trace or logged.session
        key = f"={name}" if name else f"#{self._order}"
        group = parent.group if parent else self._groups.get(key) or Group(name, (logged.entry.path, logged.entry.index))
        if name or not parent:
            self._groups.setdefault(key, group)
        return group

    def _attach(self, nodes: list[Node], parent: Node | None) -> None:
        for node in nodes:
            node.parent = parent
            if parent:
                parent.children.append(node)
            else:
                node.group.roots.append(node)
                self._home[node] = node.group

    def _group_of(self, node: Node) -> Group:
        """The group of a node once calls have been hung elsewhere."""
        while node.parent:
            node = node.parent
        return self._home[node]

    def _settle(self, node: Node) -> None:
        """Hang a call under the one that it continues, where that one came in later."""
        prompt = KnownPrompt(node.delta)
        self._key(prompt, node.base)
        parent, length, base = self._parent(prompt, node.logged, node.base)
        if not parent:
            return
        _echo(parent, node.delta[length - 1])
        group = self._group_of(parent)
        if node.parent:
            node.parent.children.remove(node)
        else:
            old = self._home.pop(node)
            old.roots.remove(node)
            if old is not group and not old.roots:
                group.repeated, old.repeated = group.repeated + old.repeated, 0
        node.parent, node.base, node.delta = parent, base, node.delta[length:]
        parent.children.append(node)


def _written(value: Mapping[str, Any]) -> bytes | str:
    """A text that only equal objects with equal orders of keys have."""
    try:
        return orjson.dumps(value)
    except TypeError:  # lone surrogates, numbers of more than 64 bits
        return dumps(value)


def _link(chain: bytes, key: bytes) -> bytes:
    return blake2b(chain + key, digest_size=16).digest()


def _last_key(prompt: KnownPrompt, base: bytes) -> bytes:
    part: KnownPrompt | None = prompt
    while part is not None and not part.keys:
        part = part.before
    return part.keys[-1] if part is not None and part.keys else base


def _seed(logged: LoggedCall) -> str:
    """Sessions don't mix: only calls of one are looked for as each other's beginnings."""
    return logged.session or (None if logged.loose else logged.trace) or ""


def _identity(logged: LoggedCall) -> bytes:
    """What two loggings of one call have in common beside its content; empty where the log does not say."""
    started = logged.call.started_at_us
    said = logged.call.response_id or ("" if started is None else f"@{started}")
    return said.encode(errors="surrogatepass")


def _echo(node: Node, sent: Message) -> None:
    """Keep an answer as the agent sent it back, unless it left reasoning out: that text is what later calls really saw."""
    if node.output and not node.children and not (has_reasoning(node.output) and not has_reasoning(sent)):
        node.output = sent
