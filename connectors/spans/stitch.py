"""From single model calls to contexts: which call goes on where which one ended, and what its siblings know of a lost prompt.

Call B continues call A where B's input begins with A's input and A's answer. A prompt with lost parts is completed from a sibling
that agrees with all that is left of it; where none does, it stays partial. Nothing here looks at times where content decides.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from counterplay.connectors.spans.readings import Node, Reading, Slot
from counterplay.core.canonical import chain_key
from counterplay.core.nouns import Coverage, Message, ToolSpec

_SURE = 4
"""Agreeing messages after which no better sibling is looked for; the one nearest in length is asked first."""

_next_key = lru_cache(maxsize=1 << 15)(chain_key)
"""Growing prompts ask for the same keys once a call."""


@dataclass(slots=True, eq=False)
class LlmCall:
    """One model call. `count` is the number of its input messages, None if unknown; `output` None where the answer is unknown.

    `edited` says that the context went on with another answer than the model gave; `recovered` that it is known from there alone.
    `tools` is the tool set it was sent, None if unknown. `changed` says that it goes on from its parent with another tool set, so
    that a context ends there.
    """

    node: Node
    slots: dict[int, Slot]
    count: int | None
    output: Slot | None
    coverage: Coverage = "none"
    edited: bool = False
    recovered: bool = False
    parent: LlmCall | None = None
    retried_by: LlmCall | None = None
    keys: list[str] = field(default_factory=list)
    tools: tuple[ToolSpec, ...] | None = None
    changed: bool = False

    @property
    def reading(self) -> Reading:
        return self.node.reading

    @property
    def scope(self) -> str:
        return self.node.scope

    @property
    def start(self) -> int:
        return self.node.span.start_ns or 0

    @property
    def failed(self) -> bool:
        return self.node.span.error is not None and self.output is None

    @property
    def whole(self) -> bool:
        """Whether every input message is known whole."""
        if self.count is None:
            return False
        return all(slot is not None and slot.whole for slot in map(self.slots.get, range(self.count)))

    @property
    def sequence(self) -> list[Slot]:
        """Inputs and answer of a whole call."""
        known = [self.slots[i] for i in range(self.count or 0)]
        return [*known, self.output] if self.output is not None and self.output.whole else known

    def index(self) -> None:
        """Compute `keys`: one for every prefix of the input."""
        key = chain_key("")
        self.keys = [key]
        for i in range(self.count or 0):
            key = _next_key(key, self.slots[i].ident)
            self.keys.append(key)


def stitch(calls: Sequence[LlmCall]) -> None:
    """Complete prompts from siblings, until no sibling knows more. Says of every call how its prompt is covered."""
    for call in calls:
        call.coverage = "full" if call.whole and call.count and call.reading.proven else "partial" if call.slots else "none"
    lacking = sorted((call for call in calls if call.coverage != "full" and call.reading.proven), key=_extent)
    progress = True
    while lacking and progress:
        known = [(call, call.sequence) for call in calls if call.coverage in ("full", "stitched")]
        progress = False
        for call in lacking:
            if _complete(call, known):
                call.coverage, progress = "stitched", True
                known.append((call, call.sequence))
        lacking = [call for call in lacking if call.coverage != "stitched"]


def _extent(call: LlmCall) -> tuple[int, int]:
    return (call.count or max(call.slots, default=0), call.start)


def _complete(call: LlmCall, known: Iterable[tuple[LlmCall, list[Slot]]]) -> bool:
    extent = _extent(call)[0]
    best: tuple[int, int, list[Slot]] | None = None
    for sibling, sequence in sorted(known, key=lambda pair: abs(len(pair[1]) - extent)):
        found = _fit(call, sibling, sequence)
        if found is not None and (best is None or found[0] > best[0]):
            best = (*found, sequence)
            if found[0] >= min(_SURE, len(call.slots) + 1):
                break
    if best is None:
        return False
    _, call.count, sequence = best
    for i in range(call.count):
        if i not in call.slots or not call.slots[i].whole:
            call.slots[i] = sequence[i]
    return True


def _fit(call: LlmCall, sibling: LlmCall, sequence: list[Slot]) -> tuple[int, int] | None:
    """How many messages agree and how long the input was; None where the sibling can't complete it."""
    agreed = 0
    for i, slot in call.slots.items():
        if i < len(sequence):
            if not slot.agrees(sequence[i]):
                return None
            agreed += 1
    count = call.count
    if count is None:
        count = _place(call, sequence)
        agreed += 1
    elif call.output is not None and count < len(sequence) and call.output.agrees(sequence[count]):
        agreed += 1
    if count is None or not agreed or (not call.slots and sibling.scope != call.scope):
        return None
    holes = (i for i in range(count) if i not in call.slots or not call.slots[i].whole)
    return (agreed, count) if all(i < len(sequence) for i in holes) else None


def _place(call: LlmCall, sequence: list[Slot]) -> int | None:
    """Where the call's answer stands in a sibling's context; None where it does not, or more than once."""
    if call.output is None:
        return None
    after = max(call.slots, default=-1) + 1
    found = [i for i in range(after, len(sequence)) if sequence[i].role == "assistant" and call.output.agrees(sequence[i])]
    return found[0] if len(found) == 1 else None


def link(calls: Sequence[LlmCall]) -> None:
    """Find the parent of every call that did not fail, and the repetition of every one that did.

    Calls are in order of time; it decides only between equals, and where content is unknown.
    """
    live = [call for call in calls if not call.failed]
    spoken: dict[str, list[LlmCall]] = defaultdict(list)
    asked: dict[str, list[LlmCall]] = defaultdict(list)
    for call in live:
        if call.whole and call.count:
            _register(call, spoken, asked)
    for call in live:
        if call.keys:
            call.parent = _exact_parent(call, spoken)
    continued = {id(call.parent) for call in live if call.parent is not None}
    for call in live:
        if call.keys:
            _edited_parent(call, asked, continued)
    _link_by_time(live)
    _inherit(live, spoken, asked)
    _link_failed([call for call in calls if call.failed], live, asked)


def _register(call: LlmCall, spoken: dict[str, list[LlmCall]], asked: dict[str, list[LlmCall]]) -> None:
    call.index()
    asked[call.keys[-1]].append(call)
    if call.output is not None and call.output.whole:
        spoken[chain_key(call.keys[-1], call.output.ident)].append(call)


def _latest_before(found: Iterable[LlmCall], call: LlmCall) -> LlmCall | None:
    """Of equal candidates the last one before the call; the first of all where none is before it."""
    others = [other for other in found if other is not call]
    before = [other for other in others if other.start <= call.start]
    return before[-1] if before else next(iter(others), None)


def _answers_in(call: LlmCall) -> Iterator[int]:
    """Positions of assistant messages in an input, last first."""
    return (i for i in range((call.count or 0) - 1, -1, -1) if call.slots[i].role == "assistant")


def _exact_parent(call: LlmCall, spoken: dict[str, list[LlmCall]]) -> LlmCall | None:
    found = (_latest_before(spoken.get(call.keys[i + 1], ()), call) for i in _answers_in(call))
    return next(filter(None, found), None)


def _edited_parent(call: LlmCall, asked: dict[str, list[LlmCall]], continued: set[int]) -> None:
    """A parent whose answer is unknown, cut, or stands in this context in another form."""
    least = call.parent.count or 0 if call.parent is not None else -1
    for i in _answers_in(call):
        if i <= least:
            return
        candidates = [other for other in asked.get(call.keys[i], ()) if id(other) not in continued]
        parent = _latest_before(candidates, call)
        if parent is not None and _take_answer(parent, call.slots[i]):
            call.parent = parent
            continued.add(id(parent))
            return


def _take_answer(parent: LlmCall, answer: Slot) -> bool:
    """Let the context decide what the answer was, where it can be the same answer."""
    if parent.output is None:
        parent.recovered = True
    elif not parent.output.agrees(answer):
        if not _resembles(parent.output.message, answer.message):
            return False
        parent.edited = True
    elif parent.output.whole:
        return True
    parent.output = answer
    return True


def _resembles(one: Message, other: Message) -> bool:
    """Whether two messages share a tool's name, or one contains the other's text."""
    names, others = ({call.name for call in message.tool_calls} for message in (one, other))
    if names or others:
        return bool(names & others)
    short, long = sorted(("".join(message.content_text.split()) for message in (one, other)), key=len)
    return bool(short) and short in long


def _link_by_time(live: Sequence[LlmCall]) -> None:
    """A call whose prompt is not known goes on from the one before it in its agent, unless what is known forbids it."""
    last: dict[str, list[LlmCall]] = defaultdict(list)
    for call in live:
        if not call.keys:
            call.parent = next((other for other in reversed(last[call.scope]) if not _forbidden(other, call)), None)
        last[call.scope].append(call)


def _forbidden(parent: LlmCall, call: LlmCall) -> bool:
    if parent.count is not None and call.count is not None and call.count <= parent.count:
        return True
    if any(i in parent.slots and not parent.slots[i].agrees(slot) for i, slot in call.slots.items()):
        return True
    at_answer = call.slots.get(parent.count) if parent.count is not None else None
    return at_answer is not None and parent.output is not None and not at_answer.agrees(parent.output)


def _inherit(live: Sequence[LlmCall], spoken: dict[str, list[LlmCall]], asked: dict[str, list[LlmCall]]) -> None:
    """A known context goes on from the unknown calls before it in its agent: the last answer in it is the last one's."""
    followed = {id(call.parent) for call in live}
    place = {id(call): i for i, call in enumerate(live)}
    for call in reversed(live):
        if call.parent is not None or not call.keys:
            continue
        before = next((other for other in reversed(live[: place[id(call)]]) if other.scope == call.scope), None)
        if before is None or before.keys or id(before) in followed:
            continue
        i = before.count if before.count is not None else next(_answers_in(call), None)
        answer = call.slots.get(i) if i is not None and i < (call.count or 0) else None
        if i is None or answer is None or answer.role != "assistant" or _forbidden(before, call) or not _take_answer(before, answer):
            continue
        call.parent = before
        before.slots = {**{j: call.slots[j] for j in range(i)}, **{j: slot for j, slot in before.slots.items() if slot.whole}}
        before.count, before.coverage = i, "partial"
        followed.add(id(before))
        if before.parent is None and before.count:
            _register(before, spoken, asked)
            before.parent = _exact_parent(before, spoken)


def _link_failed(failed: Sequence[LlmCall], live: Sequence[LlmCall], asked: dict[str, list[LlmCall]]) -> None:
    """A failed call was retried by one with the same prompt; where prompts are unknown, by the next one in its agent."""
    spoken: dict[str, list[LlmCall]] = defaultdict(list)
    for call in live:
        if call.keys and call.output is not None:
            spoken[chain_key(call.keys[-1], call.output.ident)].append(call)
    for call in reversed(failed):
        if call.whole and call.count:
            call.index()
            same = asked[call.keys[-1]]
            call.retried_by = next((other for other in same if other.start >= call.start), same[0] if same else None)
            same.append(call)
            call.parent = _exact_parent(call, spoken)
        else:
            later = (other for other in live if other.scope == call.scope and other.start >= call.start)
            call.retried_by = next((other for other in later if call.count in (None, other.count)), None)
            earlier = [other for other in live if other.scope == call.scope and other.start < call.start]
            call.parent = next((other for other in reversed(earlier) if not _forbidden(other, call)), None)


def contexts(calls: Sequence[LlmCall]) -> list[list[LlmCall]]:
    """The calls as append-only contexts with one tool set each, in order.

    From every fork the longest branch goes on, the others begin anew. Where a branch goes on with another tool set, a context ends
    and the next begins with a call that is `changed`.
    """
    members = [call for call in calls if call.retried_by is None]
    children: dict[int, list[LlmCall]] = defaultdict(list)
    known = {id(call) for call in members}
    roots = []
    for call in members:
        if call.parent is not None and id(call.parent) in known and not call.parent.failed:
            children[id(call.parent)].append(call)
        else:
            roots.append(call)
    length = _lengths(roots, children)
    found: list[list[LlmCall]] = []
    waiting = list(reversed(roots))
    while waiting:
        branch = [waiting.pop()]
        while options := children[id(branch[-1])]:
            best = max(options, key=lambda call: length[id(call)])
            waiting.extend(call for call in reversed(options) if call is not best)
            branch.append(best)
        found.extend(_by_tools(branch))
    return found


def _by_tools(branch: list[LlmCall]) -> Iterator[list[LlmCall]]:
    """A branch in parts of one tool set. A call that does not know its own stays in the part before it."""
    part: list[LlmCall] = []
    tools: tuple[ToolSpec, ...] | None = None
    for call in branch:
        if part and tools is not None and call.tools is not None and call.tools != tools:
            call.changed = True
            yield part
            part = []
        tools = tools if call.tools is None else call.tools
        part.append(call)
    yield part


def _lengths(roots: Iterable[LlmCall], children: dict[int, list[LlmCall]]) -> dict[int, int]:
    """How many calls the longest branch from each call has; what did not fail counts more than any failure."""
    order: list[LlmCall] = []
    waiting = list(roots)
    while waiting:
        order.append(waiting.pop())
        waiting.extend(children[id(order[-1])])
    length: dict[int, int] = {}
    for call in reversed(order):
        length[id(call)] = max((length[id(child)] for child in children[id(call)]), default=0) + (0 if call.failed else 1)
    return length
