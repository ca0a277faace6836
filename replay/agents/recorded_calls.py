"""The model calls of a recorded trace, and which of them came before which."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from counterplay.core.nouns import Call, Message, Trace


@dataclass(frozen=True, slots=True)
class RecordedCall:
    """One recorded model call: step `step` of trajectory `trajectory` (0 is the main one, i the i-th sub-trajectory)."""

    trajectory: int
    step: int
    action: Message
    call: Call

    @property
    def name(self) -> str:
        return f"step {self.step}" if not self.trajectory else f"step {self.step} of sub-trajectory {self.trajectory}"


def recorded_calls(trace: Trace) -> Iterator[RecordedCall]:
    """Every model call of a trace: those that its provenance names; the sampled steps of a trajectory that it names none of."""
    every = (trace.trajectory, *(sub.trajectory for sub in trace.sub_trajectories))
    named: dict[int, list[Call]] = defaultdict(list)
    for call in trace.calls:
        if call.trajectory < len(every) and 0 <= call.step < len(every[call.trajectory]):
            named[call.trajectory].append(call)
    found = []
    for index, trajectory in enumerate(every):
        implied = (Call(at, index) for at, step in enumerate(trajectory.steps) if step.sampled)
        found += [RecordedCall(index, call.step, trajectory.steps[call.step].action, call) for call in named.get(index) or implied]
    starts = [call.call.started_at_us for call in found]
    if all(start is not None for start in starts):
        found.sort(key=lambda call: (call.call.started_at_us or 0, call.trajectory, call.step))
    once = {(call.trajectory, call.step): call for call in reversed(found)}
    yield from reversed(once.values())


class Order:
    """Which calls had been answered before which were made, where that is no accident of timing.

    In one context it is their order. Of two contexts one came before the other where it was over when that began; contexts that ran
    side by side have no order. The main context waits for one that ran wholly between two of its calls. Where times are not known,
    the step that started a context says the same.
    """

    def __init__(self, trace: Trace, calls: Sequence[RecordedCall]) -> None:
        self._trace = trace
        self._begins: dict[int, int] = {}
        self._ends: dict[int, int] = {}
        for index in {call.trajectory for call in calls}:
            times = [(call.call.started_at_us, _end_us(call.call)) for call in calls if call.trajectory == index]
            starts, ends = [start for start, _ in times if start is not None], [end for _, end in times if end is not None]
            if len(starts) == len(ends) == len(times):
                self._begins[index], self._ends[index] = min(starts), max(ends)

    def precedes(self, first: RecordedCall, second: RecordedCall) -> bool:
        if first.trajectory == second.trajectory:
            return first.step < second.step
        ended, begins = _end_us(first.call), second.call.started_at_us
        if first.trajectory not in self._ends or second.trajectory not in self._begins or ended is None or begins is None:
            return self._started_before(first, second)
        if not first.trajectory:
            return ended <= self._begins[second.trajectory]
        return self._ends[first.trajectory] <= (self._begins[second.trajectory] if second.trajectory else begins)

    def _started_before(self, first: RecordedCall, second: RecordedCall) -> bool:
        subs = self._trace.sub_trajectories
        parents = [subs[call.trajectory - 1].parent_step if call.trajectory else None for call in (first, second)]
        if second.trajectory and subs[second.trajectory - 1].continues == first.trajectory:
            return True
        if not first.trajectory:
            return parents[1] is not None and first.step <= parents[1]
        if not second.trajectory:
            return parents[0] is not None and parents[0] < second.step
        return parents[0] is not None and parents[1] is not None and parents[0] < parents[1]


def _end_us(call: Call) -> int | None:
    if call.started_at_us is None or call.latency_s is None:
        return None
    return call.started_at_us + int(call.latency_s * 1e6)
