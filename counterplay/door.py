"""What happens to a trace between its source and the store: effects by a table, secrets and personal data redacted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from counterplay.connectors.redaction import Redactor, Rule, read_rules, rules_of
from counterplay.core.errors import UserError
from counterplay.core.nouns import ToolSpec, Trace
from counterplay.core.records import Rejected

Item: TypeAlias = Trace | Rejected
Counted: TypeAlias = tuple[Counter[str], dict[bytes, Counter[str]]]
"""What a redactor replaced, and what of it in texts that others may repeat."""


def rules_for(kinds: Sequence[str] | None, table: Path | None, *, off: bool = False) -> tuple[Rule, ...]:
    """What a command line asks to redact: secrets and `kinds`, or what `table` says; nothing where it is `off`.

    Raises UserError where two of them are given, or where one can't be read.
    """
    if off and (kinds or table):
        raise UserError("got --no-redact and what to redact", "one of them")
    if kinds and table:
        raise UserError("got --redact and --redact-rules", "one of them", "Put the kinds into the table: kinds = [...].")
    if off:
        return ()
    return read_rules(table) if table else rules_of(("secrets", *(kinds or ())))


@dataclass(frozen=True)
class Door:
    """What happens to a trace between its source and the store.

    `effects` names a TOML table of tool effects that completes what the logs say, None: only what they say. `rules` are what is
    redacted, None: nothing; `salt` is the store's.
    """

    effects: Path | None = None
    rules: tuple[Rule, ...] | None = None
    salt: bytes = b""

    def opener(self) -> Through:
        """A function that takes one item through the door."""
        return Through(self)


class Through:
    """Takes items through a door. `counts` says how many values of each kind were redacted."""

    def __init__(self, door: Door) -> None:
        self._apply = _effect_table(door.effects)
        self._redactor = None if door.rules is None else Redactor(door.salt, door.rules)

    @property
    def counts(self) -> Counter[str]:
        return self.counted[0]

    @property
    def counted(self) -> Counted:
        return (Counter(), {}) if self._redactor is None else (self._redactor.counts, self._redactor.repeated)

    def __call__(self, item: Item) -> Item:
        try:
            passed = with_effects(item, self._apply) if isinstance(item, Trace) else item
            return passed if self._redactor is None else self._redactor(passed)
        except RecursionError:
            source = item.source if isinstance(item, Trace) else None
            where = (source.uri, source.line) if source else ("", None)
            return Rejected(where[0], "a trace that holds values nested too deeply to be looked through for secrets", where[1])


def _effect_table(path: Path | None) -> Callable[[Sequence[ToolSpec]], tuple[ToolSpec, ...]]:
    if path is None:
        return tuple
    from counterplay.replay.effects import EffectTable

    return EffectTable.from_toml(path).apply


def with_effects(trace: Trace, apply: Callable[[Sequence[ToolSpec]], tuple[ToolSpec, ...]]) -> Trace:
    """`trace` with the effects of its tools replaced by `apply`."""
    if apply is tuple:
        return trace
    subs = tuple(replace(sub, trajectory=replace(sub.trajectory, tools=apply(sub.trajectory.tools))) for sub in trace.sub_trajectories)
    return replace(trace, trajectory=replace(trace.trajectory, tools=apply(trace.trajectory.tools)), sub_trajectories=subs)
