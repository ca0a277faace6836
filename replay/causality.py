"""What a call's result can depend on: its causal past, by key.

Calls that touch nothing in common commute. The past of a call is every write that overlaps what it touches, each with its own
past; equal pasts have equal keys. Two writes on parts of one thing leave the parts as they would alone, but the whole may
remember which came first (a list does): a call that touches the whole depends on their order, one that touches a part does not.
Declared effects say no more than that, so nothing finer could be told from them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from counterplay.core.canonical import content_key
from counterplay.core.effects import EVERYTHING, Effect, within
from counterplay.replay.signatures import CallForm


@dataclass(frozen=True, slots=True)
class Write:
    """A write, or several one after the other: `key` is equal for equal writes with equal pasts and answers; `name` is for people."""

    key: str
    name: str


@dataclass(frozen=True, slots=True)
class Written:
    """What was written so far. A write on a whole takes the place of those on its parts, for it depends on them.

    `last` is the last write on each resource itself; `inside` those on parts of it, in their order, as one.
    """

    last: Mapping[str, Write]
    inside: Mapping[str, Write]

    def before(self, touched: Iterable[str]) -> tuple[Write, ...]:
        """The writes that a call which touches this can depend on: on the things themselves, on what holds them, and inside."""
        if not self.last:
            return ()
        found = [self.inside.get(place) for place in touched]
        found += [self.last.get(holder) for place in touched for holder in (place, *holders(place))]
        return tuple({write.key: write for write in found if write is not None}.values())

    def after(self, touched: tuple[str, ...], write: Write) -> Written:
        """This, and then `write` on all of `touched`."""
        last = {place: known for place, known in self.last.items() if not any(within(place, mine) for mine in touched)}
        inside = {place: known for place, known in self.inside.items() if not any(within(place, mine) for mine in touched)}
        for holder in {holder for place in touched for holder in holders(place)}:
            known = inside.get(holder)
            inside[holder] = Write(content_key(known.key if known else "", write.key), write.name)
        return Written(last | dict.fromkeys(touched, write), inside)


NOTHING_WRITTEN = Written({}, {})


@dataclass(frozen=True, slots=True)
class Made:
    """A call that was made: its signature, and the key of its causal past."""

    signature: str
    past: str


@dataclass(frozen=True, slots=True)
class Branch:
    """What there is to know about one branch at one state. Shared with every branch that goes on from it.

    `path` is the key of prompt, actions and observations; `made` are the calls of the last step.
    """

    path: str
    written: Written = NOTHING_WRITTEN
    made: tuple[Made, ...] = ()
    parent: Branch | None = None

    def line(self) -> list[Branch]:
        """This branch at every state from the bare prompt on."""
        found: list[Branch] = []
        here: Branch | None = self
        while here is not None:
            found.append(here)
            here = here.parent
        return found[::-1]

    def calls(self) -> Iterator[Made]:
        """The calls made on this branch, last step first."""
        here: Branch | None = self
        while here is not None:
            yield from here.made
            here = here.parent


def holders(resource: str) -> Iterator[str]:
    """What a concrete resource is a part of, nearest first: `order` and `*` for `order:17`."""
    while ":" in resource:
        resource = resource.rpartition(":")[0]
        yield resource
    if resource != "*":
        yield from EVERYTHING


def influences(written: Written, form: CallForm, effect: Effect) -> tuple[Write, ...]:
    """The writes that a call's result can depend on."""
    return () if effect.kind == "pure" else written.before(effect.touches(form.arguments))


def past_key(writes: Iterable[Write]) -> str:
    """The key of the past that ends in these writes, in the order of what is touched; empty where there are none."""
    keys = [write.key for write in writes]
    return content_key(*keys) if keys else ""


def after(written: Written, form: CallForm, effect: Effect, past: str, answer: str) -> Written:
    """What was written once this call has been answered so; the same object where it writes nothing.

    The answer enters the key: where equal writes with equal pasts answer differently, the world is no longer the same.
    """
    if effect.kind in ("pure", "read"):
        return written
    return written.after(effect.touches(form.arguments), Write(content_key("write", form.signature, past, answer), form.signature))
