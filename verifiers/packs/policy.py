"""The policy pack: rules about what must come before, after, or never, over an agent's tool calls; written as TOML or dataclasses.

A rule names the calls it is about and what it asks of them. A call that breaks a rule stays broken, so a value never rises, and
what may still follow is asked for only at the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Self

from counterplay.core.canonical import content_key
from counterplay.core.effects import EXTERNAL, Effect
from counterplay.core.nouns import Score, Step, Trajectory
from counterplay.verifiers.packs.base import Change, Finding, Fold, Index, Pack, Use, changed, matches, uses_of
from counterplay.verifiers.packs.policy_rules import YES, Rule, explicit_yes, occurs

__all__ = ["YES", "PolicyRules", "Rule"]


@dataclass(frozen=True, slots=True)
class _Heard:
    """A text of the trajectory that an agent may rely on, and whose it is: a tool's name, `user` or `system`."""

    who: str
    text: str
    earlier: _Heard | None


@dataclass(frozen=True, slots=True)
class _Owed:
    """What a rule still asks for, since `step`: a call of `then` with these values."""

    rule: int
    values: tuple[str, ...]
    step: int
    call: str


@dataclass(frozen=True, slots=True)
class _State:
    tools: Trajectory
    clock: int = 0
    findings: tuple[Finding, ...] = ()
    owed: tuple[_Owed, ...] = ()
    found: Index[tuple[int, Use]] = Index()  # noqa: RUF009  (rule, values) -> the last call that meets it, and when
    counted: Index[int] = Index()  # noqa: RUF009  (rule, values) -> how many calls were counted
    heard: _Heard | None = None
    wrote: Change | None = None
    said: str = ""  # by the agent, before the user's last turn
    answered: str | None = None  # by the user, last; None before the first answer
    used_yes: bool = False


@dataclass(frozen=True, eq=False)
class PolicyRules(Pack):
    """A process verifier: `decay` to the power of the weights of the rules that were broken, each as often as it was.

    No opinion before the first step, or without rules. `effects` says what tools do (a pattern and an effect such as
    `write(order:{order_id})`) where the trajectory's own tools don't; it is read by rules that are `fresh`.
    """

    rules: tuple[Rule, ...] = ()
    effects: tuple[tuple[str, str], ...] = ()
    title: str = "policy"
    decay: float = 0.5

    @property
    def name(self) -> str:  # type: ignore[override]
        """`policy:` and the title, so that several policies can be told apart; `policy` without a title."""
        return "policy" if self.title == "policy" else f"policy:{self.title}"

    @cached_property
    def version(self) -> str:  # type: ignore[override]
        """The version of the pack, and 6 hex digits of what the policy asks for."""
        return f"1.{content_key(repr((self.rules, self.effects, self.decay)))[:6]}"

    @classmethod
    def from_toml(cls, path: str | Path) -> Self:
        """Read a policy file. Raises UserError with the line of what is wrong."""
        from counterplay.verifiers.packs.policy_toml import parse
        from counterplay.verifiers.packs.settings import read

        return cls(**parse(read(path), str(path)))

    @classmethod
    def parse(cls, text: str, where: str = "policy") -> Self:
        """Read a policy from TOML text; `where` names it in errors. Raises UserError with the line of what is wrong."""
        from counterplay.verifiers.packs.policy_toml import parse

        return cls(**parse(text, where))

    def __call__(self, trajectory: Trajectory, /) -> Score | None:
        if not trajectory.steps or not self.rules:
            return None
        return self.verdict(self.findings(trajectory), f"{self.title}: no rule is broken", self.decay)

    def findings(self, trajectory: Trajectory) -> list[Finding]:
        """Every broken rule, in step order; what is owed counts once the trajectory has ended."""
        state = self._fold(trajectory)
        owed = [self._missing(each) for each in state.owed] if trajectory.finished else []
        return sorted((*state.findings, *owed), key=lambda finding: finding.step)

    def notes(self, trajectories: Sequence[Trajectory]) -> list[str]:
        """Which rules are about no tool that these trajectories declare or call, and which other names in rules fit none."""
        names = {tool.name for trajectory in trajectories for tool in trajectory.tools}
        names |= {call.name for trajectory in trajectories for message in trajectory.messages for call in message.tool_calls}
        unused, others = [], []
        for number, rule in enumerate(self.rules):
            label = rule.name or f"rule {number + 1}"
            missed = rule.strangers(names)
            if missed.get("on") == rule.on:
                unused.append(f"{label} ({', '.join(rule.on)})")
                continue
            others += [f"{', '.join(patterns)} (`{key}` of {label})" for key, patterns in missed.items()]
        told = f"{self.name}: these rules never applied, for no tool of these runs is called so: {', '.join(unused)}"
        more = f"{self.name}: no tool of these runs is called {'; '.join(others)}"
        return [text for text, found in ((told, unused), (more, others)) if found]

    @cached_property
    def _fold(self) -> Fold[_State]:
        return Fold(self._start, self._add)

    def _start(self, trajectory: Trajectory) -> _State:
        state = _State(Trajectory(trajectory.tools))
        for message in trajectory.prompt:
            state = replace(state, heard=_Heard(message.role, message.content_text, state.heard))
            if message.role == "user":
                state = replace(state, answered=message.content_text)
            elif message.role == "assistant" and message.content_text.strip():
                state = replace(state, said=message.content_text)
        return state

    def _add(self, state: _State, step: Step, index: int) -> _State:
        uses = uses_of(step, index)
        found: list[Finding] = []
        for use in uses:
            broken, state = self._judged(state, use)
            found += broken
        found += self._late(state, index)
        owed = tuple(each for each in state.owed if self._in_time(each, index))
        state = replace(state, findings=(*state.findings, *found), owed=owed)
        for use in uses:
            state = self._learnt(state, use)
        return self._listened(state, step)

    def _judged(self, state: _State, use: Use) -> tuple[list[Finding], _State]:
        """What is wrong with one call by what was known before its step, and the state with what it counts for."""
        found = []
        for number, rule in enumerate(self.rules):
            if not rule.applies(use):
                continue
            for reason in self._broken(state, number, rule, use):
                told = f"{use.call.name}: {reason} ({rule.name})" if rule.name else f"{use.call.name}: {reason}"
                found.append(Finding(use.step, told + (f": {rule.reason}" if rule.reason else ""), rule.weight, rule.name))
            if rule.at_most is not None and not use.failed:
                key = (number, rule.values(use, rule.same))
                state = replace(state, counted=state.counted.put([(key, (state.counted.get(key) or 0) + 1)]))
            if rule.confirmed and rule.once and not use.failed:
                state = replace(state, used_yes=True)
        return found, state

    def _broken(self, state: _State, number: int, rule: Rule, use: Use) -> Iterator[str]:
        if rule.never:
            yield "it must never be called" + (" so" if rule.when else "")
        if rule.only:
            problem = rule.not_only(use)
            if problem:
                yield problem
        if rule.requires:
            yield from self._required(state, number, rule, use)
        if rule.confirmed:
            yield from _unconfirmed(state, rule, use)
        if rule.at_most is not None and not use.failed:
            key = (number, rule.values(use, rule.same))
            count = (state.counted.get(key) or 0) + 1
            if count > rule.at_most:
                of = f" with {_named(rule, use)}" if rule.same else ""
                yield f"call {count}{of}, wanted at most {rule.at_most}"
        yield from _unseen(state, rule, use)

    def _required(self, state: _State, number: int, rule: Rule, use: Use) -> Iterator[str]:
        last = state.found.get((number, rule.values(use, rule.same)))
        wanted = " or ".join(rule.requires) + (f" with {_named(rule, use)}" if rule.same else "")
        if last is None:
            yield f"wanted {wanted} before it"
            return
        clock, shown = last
        if rule.fresh and changed(state.wrote, clock, self._effect(state, shown).touches(shown.call.args)):
            yield f"wanted {wanted} again after the last change"
        problem = rule.not_shown(shown.value)
        if problem:
            yield f"{shown.call.name} showed {problem}"

    def _learnt(self, state: _State, use: Use) -> _State:
        """The state after a call: what it meets, what it owes, what it changed, and what its answer showed."""
        clock = state.clock + 1
        effect = self._effect(state, use)
        wrote = state.wrote
        if effect.kind in ("write", "external"):
            wrote = Change(clock, effect.touches(use.call.args), wrote)
        met, owed = [], list(state.owed)
        for number, rule in enumerate(self.rules):
            if use.done and rule.requires and matches(use.call.name, rule.requires):
                met.append(((number, rule.met_by(use)), (clock, use)))
            if use.done and rule.then and matches(use.call.name, rule.then):
                owed = [each for each in owed if each.rule != number or each.values != rule.met_by(use)]
        for number, rule in enumerate(self.rules):
            if rule.then and use.done and rule.applies(use):
                owed.append(_Owed(number, rule.values(use, rule.same), use.step, use.call.name))
        heard = _Heard(use.call.name, use.text, state.heard) if use.done else state.heard
        return replace(state, clock=clock, found=state.found.put(met), owed=tuple(owed), heard=heard, wrote=wrote)

    def _listened(self, state: _State, step: Step) -> _State:
        """The state after the agent's words and the user's turn, where the step holds any."""
        said = step.action.content_text
        users = [message.content_text for message in step.observations if message.role == "user"]
        if said.strip():
            state = replace(state, said=said)
        if users:
            text = "\n".join(users)
            state = replace(state, answered=text, used_yes=False, heard=_Heard("user", text, state.heard))
        return state

    def _late(self, state: _State, index: int) -> list[Finding]:
        return [self._missing(each) for each in state.owed if not self._in_time(each, index)]

    def _in_time(self, owed: _Owed, index: int) -> bool:
        within = self.rules[owed.rule].within
        return within is None or index <= owed.step + within

    def _missing(self, owed: _Owed) -> Finding:
        rule = self.rules[owed.rule]
        within = "" if rule.within is None else f" within {rule.within} steps"
        told = f"{owed.call}: wanted {' or '.join(rule.then)} after it{within}"
        told += (f" ({rule.name})" if rule.name else "") + (f": {rule.reason}" if rule.reason else "")
        return Finding(owed.step, told, rule.weight, rule.name)

    def _effect(self, state: _State, use: Use) -> Effect:
        for pattern, spelling in self.effects:
            if matches(use.call.name, (pattern,)):
                return Effect.parse(spelling)
        tool = state.tools.tool(use.call.name)
        return EXTERNAL if tool is None else tool.effect


def _unconfirmed(state: _State, rule: Rule, use: Use) -> Iterator[str]:
    if state.answered is None or not state.said:
        yield "wanted the user's yes to what it does, and nobody was asked"
    elif not explicit_yes(state.answered, rule.yes):
        yield f"wanted the user's yes, and the user said {state.answered.strip()[:80]!r}"
    elif rule.once and state.used_yes:
        yield "wanted a yes of its own: the user's last yes was used for an earlier call"
    missing = [text for text in rule.values(use, rule.telling) if text and not occurs(text, state.said)]
    if missing and state.said:
        yield f"wanted the user told {', '.join(missing)} before the yes"


def _unseen(state: _State, rule: Rule, use: Use) -> Iterator[str]:
    """The arguments whose values no text showed that the agent may rely on."""
    for name, value in rule.shown_values(use):
        heard = state.heard
        while heard is not None and not (rule.relies_on(heard.who) and occurs(value, heard.text)):
            heard = heard.earlier
        if heard is None:
            yield f"{name} {value[:60]!r} was never shown by {' or '.join(rule.seen_in) or 'any answer of a tool'}"


def _named(rule: Rule, use: Use) -> str:
    values = rule.values(use, rule.same)
    return ", ".join(f"{name}={value}" for name, value in zip(rule.same, values, strict=True))
