"""A table of effects out of logs, each row with its evidence.

The rules, in order. A tool that alone, or alone by an id it shares, lies before a changed answer wrote. A tool over whose calls other
answers stayed as they were, and that no change is left to be blamed on, may be a read; logs can't tell it from a write that nobody
looked at, so its name breaks the tie, and the row says so. Everything else is external, and the row says what would settle it.
A resource is narrowed only as far as answers over other ids stayed as they were. No row claims more than its evidence.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from counterplay.core.effects import EXTERNAL, Effect
from counterplay.core.nouns import ToolSpec
from counterplay.replay.effects import EffectTable, ToolEffect
from counterplay.replay.evidence import USER, Between, Change, Evidence, Repeats, Run, gather
from counterplay.replay.tool_names import looks, reaches_out, thinks

_STEM = re.compile(r"_?(?:ids?|uuids?|keys?|codes?|numbers?|nos?|refs?)$")

_REACHES = "It changes what others read, and its name says that it reaches out as well: if it does not, it is a write."

ENOUGH = 3
"""How many answers must have stayed as they were before it counts."""


@dataclass(frozen=True)
class Suggested:
    """One row. `declared` is what the logs declare, None where they are silent: it stands unless the evidence contradicts it (`doubts`).

    `settle` says what would tell more, empty where nothing is open. `by_name`: the evidence left two readings, and the tool's name chose.
    """

    tool: str
    effect: Effect
    calls: int
    evidence: tuple[str, ...]
    settle: str = ""
    by_name: bool = False
    declared: Effect | None = None
    doubts: str = ""


@dataclass(frozen=True)
class Suggestion:
    """A proposed table. `users_act` counts answers that changed with nothing but a user's or a sub-agent's turn between."""

    rows: tuple[Suggested, ...]
    runs: int = 0
    users_act: int = 0
    notes: tuple[str, ...] = field(default=())

    @property
    def table(self) -> EffectTable:
        return EffectTable(tools={row.tool: ToolEffect(effect=row.effect.kind, resource=row.effect.resource) for row in self.rows})

    def to_toml(self) -> str:
        """The table as TOML, its evidence in comments: to be read, put right and given to `--effects`."""
        return "\n".join(["\n".join(_comments(self)), *("\n".join(_toml(row)) for row in self.rows)]) + "\n"


def suggest(runs: Iterable[Run]) -> Suggestion:
    """Propose an effect for every tool that was called or defined in these runs."""
    specs: dict[str, ToolSpec] = {}

    def noted() -> Iterator[Run]:
        for run in runs:
            for tool in run.trajectory.tools:
                if tool.name not in specs or tool.effect != EXTERNAL:  # a log that says nothing of a tool does not undo one that does
                    specs[tool.name] = tool
            yield run

    evidence = gather(noted())
    return _Judge(evidence, specs).suggestion()


class _Judge:
    """The conclusions from one body of evidence."""

    def __init__(self, evidence: Evidence, specs: Mapping[str, ToolSpec]) -> None:
        self.evidence, self.specs = evidence, specs
        self.tools = sorted({*evidence.calls, *specs}, key=lambda tool: (-evidence.calls[tool], tool))
        self.families = _Families(evidence)
        self.looking, self.blamed = self._looking()
        self.wrote, self.possible = defaultdict[str, list[Change]](list), defaultdict[str, list[Change]](list)
        self.users_act, self._strayed = 0, Counter[tuple[str, str]]()
        self._judge()
        self.reads = {tool for tool in self.looking if tool not in self.wrote}

    def suggestion(self) -> Suggestion:
        notes = []
        if self.users_act:
            notes.append(
                f"{self.users_act} answers changed with nothing but a user's turn between: users of this world may act (users_act=True)"
            )
        return Suggestion(tuple(map(self._row, self.tools)), self.evidence.runs, self.users_act, tuple(notes))

    def _looking(self) -> tuple[set[str], Counter[str]]:
        """Tools that may only look: by their names, over enough answers that stayed, and with no change left to them alone."""
        candidates = {tool for tool in self.evidence.calls if looks(tool) or thinks(tool)}
        candidates = {tool for tool in candidates if self._stays(tool)}
        blamed: Counter[str] = Counter()
        while True:
            found = Counter[str]()
            for change in self.evidence.changes:
                suspects = {event.tool for event in change.suspects}
                if suspects <= candidates and looks(change.seen.tool):
                    found.update(suspects)
            if not found:
                return candidates, blamed
            blamed += found
            candidates -= found.keys()

    def _stays(self, tool: str) -> bool:
        by_itself = self.evidence.repeats[tool].different_alone or self.evidence.restless(tool)
        return self.evidence.unmoved(tool) >= ENOUGH and not by_itself

    def _judge(self) -> None:
        """Who changed what a read saw, who may have, and how often only a user was there to have done it.

        Only what looks is believed: a tool that acts may answer otherwise because of itself.
        """
        for change in self.evidence.changes:
            acting = {event.tool: event for event in change.suspects if event.tool not in self.looking}
            user = acting.pop(USER, None) is not None
            linked = {event.tool for event in change.suspects if event.tool in acting and event.shares_id(change.seen)}
            self.users_act += user and not acting and change.seen.tool in self.looking
            alone = acting.keys() if len(acting) == 1 and not user else set[str]()
            guilty = (linked if len(linked) == 1 else alone if not linked else set[str]()) if self._believed(change) else set[str]()
            for tool in acting:
                (self.wrote if tool in guilty else self.possible)[tool].append(change)
                self._strayed[tool, change.seen.tool] += not linked

    def _believed(self, change: Change) -> bool:
        return looks(change.seen.tool) and change.seen.tool not in self.blamed

    def _row(self, tool: str) -> Suggested:
        evidence, declared = tuple(self._facts(tool)), self.specs[tool].effect if tool in self.specs else EXTERNAL
        effect, settle, by_name = self._effect(tool)
        if declared == EXTERNAL:
            return Suggested(tool, effect, self.evidence.calls[tool], evidence, settle, by_name)
        if tool in self.wrote and declared.kind in ("pure", "read"):
            doubts = f"it is declared {declared}, but it changed what {_named(self.wrote[tool][0])}"
            return Suggested(tool, effect, self.evidence.calls[tool], evidence, settle, by_name, declared, doubts)
        return Suggested(tool, declared, self.evidence.calls[tool], evidence, declared=declared)

    def _effect(self, tool: str) -> tuple[Effect, str, bool]:
        """The effect, what would settle what is open, and whether the name had a say."""
        if tool in self.wrote and reaches_out(tool):
            return EXTERNAL, _REACHES, True
        if tool in self.wrote:
            return Effect("write", self._written(tool)), "", False
        if tool in self.reads:
            return Effect("pure") if self._is_pure(tool) else Effect("read", self._read(tool)), "", True
        return EXTERNAL, self._open(tool), False

    def _is_pure(self, tool: str) -> bool:
        """Whether it thinks by its name, names no thing, and equal calls answered alike in several tasks, or all calls had one answer."""
        repeats = self.evidence.repeats[tool]
        one_answer = len(self.evidence.answers[tool]) == 1 and len(self.evidence.arguments[tool]) >= ENOUGH
        everywhere = one_answer or (repeats.equal >= ENOUGH and len(repeats.tasks) > 1)
        return thinks(tool) and everywhere and not repeats.different and not self.evidence.ids.get(tool)

    def _read(self, tool: str) -> str:
        """The things its ids name; without ids, a thing of its own."""
        paths = sorted(self.evidence.ids.get(tool, ()))
        return ", ".join(f"{self.families.of(path)}:{{{path}}}" for path in paths) or tool

    def _written(self, tool: str) -> str:
        """What a write touches: what reads look at, narrowed to what it names where other ids stayed. Empty, everything, where none is."""
        whole, parts = set[str](), set[str]()
        for read in sorted(self.reads):
            if not self._is_pure(read):
                own = self._told_apart(tool, read)
                parts |= {f"{self.families.of(path)}:{{{path}}}" for path in own}
                whole |= ({self.families.of(path) for path in self.evidence.ids.get(read, ())} or {read}) - set(map(self.families.of, own))
        narrow = sorted(part for part in parts if part.partition(":")[0] not in whole)
        return ", ".join([*narrow, *sorted(whole)]) if narrow else ""

    def _told_apart(self, tool: str, read: str) -> set[str]:
        """The arguments by which a write names what a read looks at, where the read of other things was never changed by it."""
        looked_at = {self.families.of(path) for path in self.evidence.ids.get(read, ())}
        own = {path for path in self.evidence.ids.get(tool, ()) if self.families.of(path) in looked_at}
        stayed = self.evidence.between.get((tool, read), Between()).other_id
        return own if stayed >= ENOUGH and not self._strayed[tool, read] else set()

    def _facts(self, tool: str) -> Iterator[str]:
        """The counts behind a row, in words."""
        if tool not in self.evidence.calls:
            yield "defined, never called"
            return
        repeats, witnessed = self.evidence.repeats[tool], self.evidence.witnessed(tool)
        pairs = repeats.equal + repeats.different
        if pairs:
            how = f"{repeats.equal_runs} of these in other runs of the task, {repeats.equal_alone} with no call between"
            yield f"equal calls answered alike {repeats.equal} of {pairs} times ({how})"
        if repeats.different_alone:
            yield f"{repeats.different_alone} times equal calls answered differently with no call between"
        if witnessed:
            yield f"{witnessed} answers of tools were the same before and after it"
        for cause, word in ((self.wrote, "changed"), (self.possible, "may have changed")):
            for seen, changes in sorted(_by_seen(cause.get(tool, ())).items()):
                yield f"{word} what {seen} answers {len(changes)} times, e.g. {changes[0].seen.where}"
        if tool in self.blamed:
            yield f"{self.blamed[tool]} changed answers have nothing else before them"
        if tool in self.wrote:
            for read in sorted(self.reads):
                if self._told_apart(tool, read):
                    times = self.evidence.between[tool, read].other_id
                    yield f"{read} answered alike over it {times} times for other ids, and never otherwise"
        if tool in self.reads:
            yield "a write that nobody looked at would leave the same evidence: its name chose"
        elif tool in self.looking and tool in self.wrote:
            yield "its name says that it looks"

    def _open(self, tool: str) -> str:
        """What would settle the effect of a tool that stays external: of what applies, the first."""
        known, repeats = tool in self.evidence.calls, self.evidence.repeats.get(tool, Repeats())
        advice = (
            (not known, "Log a run that calls it."),
            (self.evidence.restless(tool), "Called again it mostly answers otherwise: it may take what it shows, or time may pass."),
            (repeats.different_alone, "Its answers change with no call between: time, chance, or a call that these logs do not hold."),
            (tool in self.possible, "Look at the same thing with a read right before and right after it, with nothing else between."),
            (reaches_out(tool), "Its name says that it reaches out: if it does not, declare what it reads or writes."),
            (
                self.evidence.witnessed(tool) >= ENOUGH,
                "No answer changed over it: it may be a read, or a write that nobody looked at.",
            ),
        )
        last = "Call a read of the same thing before and after it: a changed answer makes it a write, an equal one may make it a read."
        return next((text for applies, text in advice if applies), last)


class _Families:
    """Arguments that name things of one kind: those with one name, and those that share values."""

    def __init__(self, evidence: Evidence) -> None:
        values: dict[str, set[str]] = defaultdict(set)
        uses: Counter[str] = Counter()
        for paths in evidence.ids.values():
            for path, found in paths.items():
                values[stem(path)] |= found
                uses[stem(path)] += 1
        names = sorted(values)
        self._group = {name: name for name in names}
        for i, one in enumerate(names):
            for other in names[i + 1 :]:
                if len(values[one] & values[other]) >= min(2, len(values[one]), len(values[other])):
                    self._join(one, other)
        members: dict[str, list[str]] = defaultdict(list)
        for name in names:
            members[self._root(name)].append(name)
        self._name = {root: max(group, key=lambda name: (name != "id", uses[name], name)) for root, group in members.items()}

    def of(self, path: str) -> str:
        """The name of the kind of thing that an argument names."""
        return self._name[self._root(stem(path))]

    def _root(self, name: str) -> str:
        while self._group[name] != name:
            name = self._group[name]
        return name

    def _join(self, one: str, other: str) -> None:
        self._group[self._root(other)] = self._root(one)


def stem(path: str) -> str:
    """`order_ids` and `orders.order_id` name an order; a bare `id` stays."""
    return _STEM.sub("", path.rpartition(".")[2]) or "id"


def _by_seen(changes: Sequence[Change]) -> dict[str, list[Change]]:
    found: dict[str, list[Change]] = defaultdict(list)
    for change in changes:
        found[change.seen.tool].append(change)
    return found


def _named(change: Change) -> str:
    return f"{change.seen.tool} answers ({change.seen.where})"


def _comments(suggestion: Suggestion) -> Iterator[str]:
    yield f"# Effects proposed from {suggestion.runs} logged runs. Read each line of evidence before you rely on it."
    yield "# Logs don't show whether a write reaches out of the recorded world: what mails, pays or calls must be external."
    for note in suggestion.notes:
        yield f"# {note}"


def _toml(row: Suggested) -> Iterator[str]:
    yield ""
    yield f"# {row.calls} call{'s' * (row.calls != 1)}" + (f"; declared {row.declared} in the logs" if row.declared is not None else "")
    for line in (*row.evidence, row.doubts, row.settle):
        if line:
            yield f"# {line}"
    yield f"[tools.{_toml_text(row.tool)}]"
    yield f'effect = "{row.effect.kind}"' + (" # by its name" if row.by_name else "")
    if row.effect.resource:
        yield f"resource = {_toml_text(row.effect.resource, quoted=True)}"


def _toml_text(text: str, *, quoted: bool = False) -> str:
    if not quoted and re.fullmatch(r"[A-Za-z0-9_-]+", text):
        return text
    escaped = "".join(f"\\u{ord(c):04x}" if c < " " or c == "\x7f" else f"\\{c}" if c in '"\\' else c for c in text)
    return f'"{escaped}"'
