"""Redaction at the door: secrets and personal data become tokens before anything is stored.

Equal values become equal tokens within a store (a keyed hash, by the store's own salt), so that a tool call still matches its recording and
a name still means one person; without the salt a token says only its kind. Ids are never touched: they pair calls with results.
"""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import replace
from hashlib import blake2b
from typing import Any, cast

from counterplay.connectors.redaction_rules import KINDS, PII, Rule, read_rules, rules_of
from counterplay.core.canonical import dumps, loads
from counterplay.core.effects import Effect
from counterplay.core.nouns import Call, LoggedScore, Message, Outcome, Step, ToolSpec, Trace, Trajectory
from counterplay.core.records import Rejected

__all__ = ["KINDS", "PII", "Redactor", "Rule", "added_up", "read_rules", "rules_of"]

# What pairs calls with results and records with records. In a message `id` names a call; elsewhere it may be anybody's.
_IDS = frozenset({"tool_call_id", "tool_use_id", "call_id", "source_call_id", "response_id", "trace_id", "span_id", "item_id"})
_MESSAGE_IDS = _IDS | {"id"}
_ARGUMENTS = {"arguments", "input", "args"}
_CACHED, _WIRES = 200_000, 50_000
_SHORTEST = 4
_LEAST_NUMBER = 10**7
_MOST_NUMBER = 10**40
_RAW_BYTES = 390
_CUT_END = re.compile(r"[^\s\"',;:{}()\[\]]{4,}\Z")
_ESCAPES = ("\\n", "\\t", "\\r", "\\b", "\\f")
_UNICODE = re.compile(r"\\u[0-9a-fA-F]{4}")
_LETTERS = str.maketrans("0123456789abcdef", "ghijklmnopabcdef")
_TOKEN = re.compile(r"\[[a-z0-9-]+:redacted:[a-p]{16}\]")
_RUN = b"x" * 20
_OF_RUNS = bytes(ord("x") if chr(byte) in "abcdefghijklmnopqrstuvwxyz0123456789_-./+=:" else ord(" ") for byte in range(256))


class Redactor:
    """Replaces what the rules find in traces and rejected inputs. `counts` says how many values of each kind were replaced.

    What many traces repeat is looked at and counted once; `repeated` says what was counted for each such text, so that the counts of
    several redactors that met the same texts can be `added_up`. A token is `[kind:redacted:letters]`, the letters a 64-bit keyed hash of
    kind and value. What was redacted once stays as it is.
    """

    def __init__(self, salt: bytes, rules: Sequence[Rule] | None = None) -> None:
        self.counts: Counter[str] = Counter()
        self.repeated: dict[bytes, Counter[str]] = {}
        self._salt = salt
        chosen = tuple(rules_of() if rules is None else rules)
        self._rules = chosen
        self._shortest, self._least = (1, 0) if any(rule.spelled for rule in chosen) else (_SHORTEST, _LEAST_NUMBER)
        self._anchored = any(rule.spelled and re.search(r"[\^$]|\\[AZ]", rule.pattern.pattern) for rule in chosen)
        self._anywhere = [(_rarest(need), need, which) for need, which in _by_need(chosen, in_runs=False)]
        self._in_runs = _by_need(chosen, in_runs=True)
        self._any_in_runs = re.compile("|".join(re.escape(need) for need, _ in self._in_runs))
        self._known: dict[str, str] = {}
        self._names: dict[str, str] = {}
        self._last_params: tuple[Mapping[str, Any], Mapping[str, Any]] = ({}, {})
        self._params_of: dict[str, Mapping[str, Any]] = {}

    def __call__(self, item: Trace | Rejected) -> Trace | Rejected:
        if isinstance(item, Rejected):
            return replace(item, uri=self.text(item.uri), reason=self.text(item.reason), raw=self._beginning(item.raw))
        return self._trace(item)

    def text(self, text: str) -> str:
        """A text with every value that a rule finds replaced, also in the JSON that it may be or hold; what was JSON stays JSON."""
        if len(text) < self._shortest:
            return text
        seen = _unescaped(text)
        rules = self._matching(text, seen)
        if not rules:
            return text
        counted, found = self.counts.copy(), text
        for rule in rules:
            found, seen = self._replaced(rule, found, seen)
            if rule.spelled:
                found, _ = self._replaced(rule, found, found)
                seen = _unescaped(found)
        if text.lstrip()[:1] in ("{", "[") and _is_json(text) and not _is_json(found):
            self.counts = counted
            return dumps(self.value(loads(text), frozenset()))
        return found

    def suspects(self, wire: str) -> bool:
        """Whether a rule may find something in what this JSON text stands for; False is certain."""
        return self._anchored or bool(self._matching(wire, _unescaped(wire)))

    def value(self, value: Any, ids: AbstractSet[str] = _IDS) -> Any:
        """A JSON value with all its texts and long numbers redacted, keys too; what stands under one of `ids` stays."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list | tuple):
            return [self.value(each, ids) for each in value]
        if isinstance(value, Mapping):
            return {self.text(str(key)): self._field(str(key), each, ids) for key, each in value.items()}
        if isinstance(value, int) and not isinstance(value, bool) and self._least <= abs(value) < _MOST_NUMBER:
            found = self.text(str(value))
            return value if found == str(value) else found
        return value

    def _field(self, key: str, value: Any, ids: AbstractSet[str]) -> Any:
        if key in ids and not isinstance(value, Mapping | list | tuple):
            return value
        return self.value(value, frozenset() if key in _ARGUMENTS else ids)

    def _matching(self, text: str, seen: str) -> list[Rule]:
        """The rules that find something, in their order."""
        lowered = seen.lower()
        found = {i for rare, need, which in self._anywhere if rare in lowered and need in lowered for i in which}
        if (runs := _runs(lowered)) and self._any_in_runs.search(runs):
            found.update(i for need, which in self._in_runs if need in runs for i in which)
        rules = [self._rules[i] for i in sorted(found)] if found else ()
        return [rule for rule in rules if rule.pattern.search(seen) or (rule.spelled and rule.pattern.search(text))]

    def _name(self, name: str | None) -> Any:
        """A name that many traces and calls share, or None."""
        if name is None:
            return None
        found = self._names.get(name)
        if found is None:
            if len(self._names) >= _CACHED:
                self._names.clear()
            with self._counted_once(f"name {name}"):
                found = self._names[name] = self.text(name)
        return found

    @contextmanager
    def _counted_once(self, text: str) -> Iterator[None]:
        """Remember what is counted here as that of a text that others may repeat."""
        before = self.counts
        self.counts = Counter()
        try:
            yield
        finally:
            if self.counts:
                self.repeated[blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()] = self.counts
            self.counts = before + self.counts

    def _beginning(self, raw: str) -> str:
        """The beginning of an input. Where it was cut, so may be the value at its end, which no rule would know: it goes."""
        found = self.text(raw)
        return _CUT_END.sub("…", found) if len(raw.encode(errors="surrogatepass")) >= _RAW_BYTES else found

    def _trace(self, trace: Trace) -> Trace:
        outcome, whole = trace.outcome, trace.completeness
        found = replace(
            trace,
            trajectory=self._trajectory(trace.trajectory),
            source=replace(trace.source, uri=self.text(trace.source.uri), dialect=self._name(trace.source.dialect)),
            sub_trajectories=tuple(
                replace(sub, trajectory=self._trajectory(sub.trajectory), agent=self._name(sub.agent)) for sub in trace.sub_trajectories
            ),
            task=self._name(trace.task),
            session=self._name(trace.session),
            agent=self._name(trace.agent),
            outcome=Outcome(outcome.reward, outcome.success, outcome.source, self.value(outcome.details)),
            calls=tuple(map(self._call, trace.calls)),
            scores=tuple(map(self._score, trace.scores)),
            tags=tuple(map(self.text, trace.tags)),
            metadata=self.value(trace.metadata),
            completeness=replace(whole, notes=tuple(map(self.text, whole.notes))),
        )
        return found if all(call.token_ids is None for call in trace.calls) else _without_told_tokens(trace, found)

    def _trajectory(self, trajectory: Trajectory) -> Trajectory:
        return Trajectory(
            tuple(ToolSpec(self._wire(tool.wire), self._effect(tool.effect)) for tool in trajectory.tools),
            tuple(map(self._message, trajectory.prompt)),
            tuple(self._step(step) for step in trajectory.steps),
        )

    def _effect(self, effect: Effect) -> Effect:
        return replace(effect, resource=self._name(effect.resource)) if effect.resource else effect

    def _step(self, step: Step) -> Step:
        action, observations = self._message(step.action), tuple(map(self._message, step.observations))
        error = None if step.error is None else self.text(step.error)
        same = action is step.action and error == step.error and all(map(operator.is_, observations, step.observations))
        return step if same else replace(step, action=action, observations=observations, error=error)

    def _message(self, message: Message) -> Message:
        wire = self._wire(message.wire)
        return message if wire == message.wire else Message(wire)

    def _call(self, call: Call) -> Call:
        fields = {
            "params": self._params(call.params),
            "model": self._name(call.model),
            "provider": self._name(call.provider),
            "finish_reason": self._name(call.finish_reason),
        }
        notes = tuple(map(self._name, call.completeness.notes))
        if notes == call.completeness.notes and all(getattr(call, name) == value for name, value in fields.items()):
            return call
        return replace(call, **fields, completeness=replace(call.completeness, notes=notes))

    def _params(self, params: Mapping[str, Any]) -> Mapping[str, Any]:
        """Calls of one agent share their parameters, mostly as one object."""
        if self._last_params[0] is params:
            return self._last_params[1]
        try:
            text = dumps(dict(params))
        except (TypeError, ValueError):  # not JSON, which the store will say
            return cast("Mapping[str, Any]", self.value(params))
        found = self._params_of.get(text)
        if found is None:
            if len(self._params_of) >= _CACHED // 100:
                self._params_of.clear()
            with self._counted_once(f"params {text}"):
                found = self._params_of[text] = self.value(params)
        self._last_params = (params, found)
        return found

    def _score(self, score: LoggedScore) -> LoggedScore:
        return replace(score, name=self._name(score.name), value=self.value(score.value), comment=self.text(score.comment))

    def _wire(self, wire: str) -> str:
        """The JSON text of a message or tool. Each text is looked at once, however many prompts repeat it; most hold nothing."""
        found = self._known.get(wire)
        if found is None:
            found = wire
            if self.suspects(wire):
                before = self.counts.total()
                with self._counted_once(wire):
                    redacted = dumps(self.value(loads(wire), _MESSAGE_IDS))
                found = wire if self.counts.total() == before else redacted
            if len(self._known) >= _WIRES:
                self._known.clear()
            self._known[wire] = found
        return found

    def _replaced(self, rule: Rule, text: str, seen: str) -> tuple[str, str]:
        """`text` and what is seen of it, with every value of the rule replaced in both."""
        parts: tuple[list[str], list[str]] = ([], [])
        position = 0
        for start, end in _values(rule, seen):
            if start < position or _TOKEN.fullmatch(seen, start, end) or (rule.accepts and not rule.accepts(seen[start:end])):
                continue
            token = self._token(rule.kind, seen[start:end])
            for taken, whole in zip(parts, (text, seen), strict=True):
                taken += [whole[position:start], token]
            position = end
        return ("".join([*parts[0], text[position:]]), "".join([*parts[1], seen[position:]])) if position else (text, seen)

    def _token(self, kind: str, value: str) -> str:
        self.counts[kind] += 1
        digest = blake2b(f"{kind}\n{' '.join(value.split())}".encode(errors="surrogatepass"), digest_size=8, key=self._salt[:64])
        return f"[{kind}:redacted:{digest.hexdigest().translate(_LETTERS)}]"


def _without_told_tokens(before: Trace, after: Trace) -> Trace:
    """`after` without the ids of actions that are others than `before`: they would still tell what was redacted."""

    def actions(trace: Trace) -> dict[tuple[int, int], Message]:
        contexts = enumerate((trace.trajectory, *(sub.trajectory for sub in trace.sub_trajectories)))
        return {(index, at): step.action for index, context in contexts for at, step in enumerate(context.steps)}

    was, now = actions(before), actions(after)
    places = [(call, (call.trajectory, call.step)) for call in after.calls]
    calls = (call if place in was and was[place] == now[place] else replace(call, token_ids=None) for call, place in places)
    return replace(after, calls=tuple(calls))


def added_up(redactors: Iterable[tuple[Counter[str], Mapping[bytes, Counter[str]]]]) -> Counter[str]:
    """The counts of several redactors, each given as its `counts` and `repeated`, with what they all met counted once."""
    total, known = Counter[str](), set[bytes]()
    for counts, repeated in redactors:
        total += counts
        for text in repeated.keys() & known:
            total -= repeated[text]
        known |= repeated.keys()
    return total


def _rarest(need: str) -> str:
    """A character of a word that few texts hold, and that is found in no time; empty where it has none."""
    return next((each for each in need if each in "/@%="), "")


def _runs(lowered: str) -> str:
    """The runs of at least 20 characters that keys are made of. Found in bytes: a regular expression takes twenty times as long."""
    data = lowered.encode(errors="replace")
    marked, found = data.translate(_OF_RUNS), []
    start = marked.find(_RUN)
    while start >= 0:
        end = marked.find(b" ", start)
        end = len(data) if end < 0 else end
        found.append(data[start:end])
        start = marked.find(_RUN, end)
    return b"\n".join(found).decode()


def _by_need(rules: Sequence[Rule], *, in_runs: bool) -> list[tuple[str, list[int]]]:
    found: dict[str, list[int]] = {}
    for i, rule in enumerate(rules):
        for need in rule.needs if rule.in_runs == in_runs else ():
            found.setdefault(need, []).append(i)
    return [*found.items()]


def _values(rule: Rule, text: str) -> Iterator[tuple[int, int]]:
    for match in rule.pattern.finditer(text):
        groups = [match.span(i) for i in range(1, rule.pattern.groups + 1) if match[i]]
        yield from groups or ([match.span()] if match[0] else [])


def _unescaped(text: str) -> str:
    """The text with what JSON escapes blanked in its place, so that a word does not seem to begin with the n of a new line."""
    if "\\" not in text:
        return text
    for pair in _ESCAPES:
        text = text.replace(pair, "\n\n")
    return _UNICODE.sub("\n" * 6, text) if "\\u" in text else text


def _is_json(text: str) -> bool:
    try:
        loads(text)
    except (ValueError, RecursionError):
        return False
    return True
