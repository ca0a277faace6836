"""Probes of a logged run: lines played on from its prefixes, counted with those that other logged runs of the task have played already."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from counterplay.core.nouns import Step, Trajectory
from counterplay.search.engine import Engine
from counterplay.search.logged import LoggedPath, logged_reward
from counterplay.search.posterior import Probe
from counterplay.search.rollout import play_out, score_lines
from counterplay.search.tree import Node, SearchTree


@dataclass(frozen=True)
class Localisation:
    """`step` is the pivotal step's index, None where undetermined; `posterior` the probability of every step, empty without one.

    Where two errors explain the probes better, these are of the first, and `second` and `second_posterior` of the second; else None
    and empty. `p_two` is the probability that there are two, None where it was not asked. `p_ok` is the success rate from the start,
    None where it was not estimated. `reason` says how it ended. `tree` holds every line that was played, for they are
    counterfactuals as good as any; None where nothing was.
    """

    step: int | None
    posterior: tuple[float, ...]
    p_ok: float | None
    probes: tuple[Probe, ...]
    reason: str
    tree: SearchTree | None = field(default=None, repr=False, compare=False)
    second: int | None = None
    second_posterior: tuple[float, ...] = ()
    p_two: float | None = None


@dataclass
class Prober:
    """Asks for lines and keeps the tally. `probes` begins with the free ones."""

    engine: Engine
    path: LoggedPath
    probes: list[Probe] = field(default_factory=list)

    @property
    def steps(self) -> int:
        return len(self.path.nodes) - 1

    @property
    def running(self) -> bool:
        return self.engine.running(self.path.tree)

    @property
    def played(self) -> int:
        """Lines that were played, not read from the log."""
        return sum(probe.lines for probe in self.probes if not probe.logged)

    def known(self, length: int) -> tuple[int, float]:
        """Lines known from a prefix, logged ones included, and the sum of their values."""
        return _sum(probe for probe in self.probes if probe.length == length)

    async def play(self, lengths: Sequence[int], lines: int) -> int:
        """Play `lines` more lines from each prefix, all together. Returns how many of them ended in a score."""
        asked = [length for length in lengths for _ in range(lines)]
        starts = [self.path.nodes[length] for length in asked]
        ends = await play_out(self.engine, self.path.tree, starts)
        await score_lines(self.engine, list(zip(starts, ends, strict=True)))
        values: dict[int, list[float]] = {}
        for length, end in zip(asked, ends, strict=True):
            if end.finished and end.score is not None:
                values.setdefault(length, []).append(end.score.value)
        self.probes += [Probe(length, len(scored), sum(scored)) for length, scored in values.items()]
        self.engine.after_wave(self.path.tree)
        return sum(map(len, values.values()))

    async def fill(self, length: int, lines: int) -> float | None:
        """The success rate from a prefix over at least `lines` lines, of which those that are known are not played; None without any."""
        known, _ = self.known(length)
        if known < lines:
            await self.play([length], lines - known)
        return _rate(self.known(length))

    async def start(self, lines: int) -> float | None:
        """`fill` from the start, where every logged run began, whatever it shares."""
        known, _ = self._from_the_start()
        if known < lines:
            await self.play([0], lines - known)
        return _rate(self._from_the_start())

    def _from_the_start(self) -> tuple[int, float]:
        return _sum(probe for probe in self.probes if probe.logged or probe.length == 0)

    def undetermined(self, reason: str, p_ok: float | None = None) -> Localisation:
        reason = f"{reason} ({self.engine.exhausted})" if self.engine.exhausted else reason
        return Localisation(None, (), p_ok, tuple(self.probes), reason, self.path.tree)


async def free_probes(engine: Engine, trajectory: Trajectory, siblings: Sequence[Trajectory]) -> list[Probe]:
    """Other logged runs of the task as probes: each is a line from the longest prefix that it shares.

    Steps are shared where the actions have one signature and what was observed reads the same (ids of tool calls may differ). A run's
    value is the verifier's opinion of its end, else its logged reward; runs without either, or of another prompt, tell nothing. All are
    taken for runs of the agent that plays the lines.
    """
    ends = []
    for other in siblings:
        shared = _shared(trajectory, other) if other.prompt == trajectory.prompt else len(trajectory)
        if other.finished and shared < len(trajectory):
            ends.append((shared, Node(0, other, step=other.steps[-1], finished=True)))
    await engine.score([end for _, end in ends])
    values = [(shared, end.score.value if end.score else logged_reward(end.state)) for shared, end in ends]
    return [Probe(shared, 1, value, logged=True) for shared, value in values if value is not None]


def _sum(probes: Iterable[Probe]) -> tuple[int, float]:
    known = list(probes)
    return sum(probe.lines for probe in known), sum(probe.value for probe in known)


def _rate(known: tuple[int, float]) -> float | None:
    lines, value = known
    return value / lines if lines else None


def _shared(one: Trajectory, other: Trajectory) -> int:
    """How many steps two runs share from the start."""
    pairs = zip(one.steps, other.steps, strict=False)
    return next((t for t, (a, b) in enumerate(pairs) if _did(a) != _did(b)), min(len(one), len(other)))


def _did(step: Step) -> tuple[str, list[tuple[str, str]]]:
    return step.action.signature, [(message.role, " ".join(message.content_text.split())) for message in step.observations]
