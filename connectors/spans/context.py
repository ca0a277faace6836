"""One append-only context of a trace: its calls, every message that one of them knows, and the steps that come of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from counterplay.connectors.spans.readings import Slot
from counterplay.connectors.spans.stitch import LlmCall
from counterplay.connectors.steps import StepList


@dataclass(slots=True)
class Context:
    """One append-only context under construction. `messages` holds every position that one of its calls knows.

    `start` is when the first of its calls was made, in nanoseconds.
    `after` is the context that goes on where this one ends, with another tool set; None where none does.
    """

    calls: list[LlmCall]
    messages: dict[int, Slot]
    steps: StepList
    start: int
    places: dict[int, int] = field(default_factory=dict)
    after: Context | None = None

    @classmethod
    def of(cls, calls: list[LlmCall]) -> Context:
        messages: dict[int, Slot] = {}
        for call in calls:
            learn(messages, call)
        count = calls[0].count
        known = sorted(calls[0].slots) if count is None else [i for i in range(count) if i in messages]
        began = [messages[i].message for i in known]
        prompt = calls[0].reading.context.get("prompt", len(began))  # what stands behind it are steps that no model wrote
        steps = StepList(began[:prompt])
        steps.extend(began[prompt:], sampled=False)
        return cls(calls, messages, steps, min(call.start for call in calls))

    @property
    def first(self) -> LlmCall:
        return self.calls[0]

    @property
    def line(self) -> list[Context]:
        """This context and those that go on from it, one after another."""
        found = [self]
        while found[-1].after is not None:
            found.append(found[-1].after)
        return found


def learn(messages: dict[int, Slot], call: LlmCall) -> None:
    """Add what a call knows of its input, whole messages before cut ones."""
    for i, slot in call.slots.items():
        if i not in messages or (slot.whole and not messages[i].whole):
            messages[i] = slot
