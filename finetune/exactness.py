"""Whether what is trained on is what was sampled, token for token.

A model samples ids; a log keeps text; training cuts the text into ids again, and these may be others. Where a policy's ids were recorded,
they travel with a row in a column of their own, are trained on as they are, and are compared here with what the text alone would give.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeAlias

from counterplay.core.canonical import chain_key, dumps, loads
from counterplay.core.nouns import Trace, Trajectory
from counterplay.core.token_ids import as_token_ids
from counterplay.finetune.answers import text_of
from counterplay.finetune.masks import segments, spliced
from counterplay.finetune.rows import SFTRow

COLUMN = "token_ids"
_SHOWN = 4  # tokens of a difference

RecordedIds: TypeAlias = Mapping[str, tuple[int, ...]]
"""Sampled ids by the key of the message: `chain_key(state.key, action.wire)`."""


@dataclass(frozen=True)
class RecordedRow(SFTRow):
    """A row with what its policy sampled. `token_ids` aligns with `messages`; None where a message's ids were not recorded."""

    token_ids: tuple[tuple[int, ...] | None, ...] = ()

    @property
    def values(self) -> Mapping[str, Any]:
        return {**super().values, COLUMN: dumps(self.token_ids)}


def recorded_ids(traces: Iterable[Trace]) -> dict[str, tuple[int, ...]]:
    """What the calls of logged traces sampled."""
    found: dict[str, tuple[int, ...]] = {}
    for trace in traces:
        contexts = (trace.trajectory, *(sub.trajectory for sub in trace.sub_trajectories))
        for call in trace.calls:
            if call.token_ids is not None and call.trajectory < len(contexts) and 0 <= call.step < len(contexts[call.trajectory]):
                context = contexts[call.trajectory]
                key = chain_key(context.prefix_keys[call.step], context.steps[call.step].action.wire)
                found.setdefault(key, call.token_ids)
    return found


def with_token_ids(rows: Iterable[SFTRow], recorded: RecordedIds) -> list[SFTRow]:
    """The rows with the ids recorded for their messages, as a column of the dataset. Where none are, all are given back as they came."""
    kept = list(rows)
    made = [_with(row, recorded) for row in kept]
    return list(made) if any(ids is not None for row in made for ids in row.token_ids) else kept


def _with(row: SFTRow, recorded: RecordedIds) -> RecordedRow:
    key, ids = Trajectory(row.tools).root_key, []
    for message, trained in zip(row.messages, row.trained, strict=True):
        key = chain_key(key, message.wire)
        ids.append(recorded.get(key) if trained else None)
    own = {field.name: getattr(row, field.name) for field in fields(row) if field.name != COLUMN}
    return RecordedRow(**own, token_ids=tuple(ids))


def recorded_in(record: Mapping[str, Any]) -> list[tuple[int, ...] | None] | None:
    """The ids that a row of a dataset holds, aligned with its messages; None where it has none. What `masks` takes as `recorded`."""
    text = record.get(COLUMN)
    return None if text is None else [as_token_ids(ids) for ids in loads(text)]


@dataclass(frozen=True, slots=True)
class Difference:
    """A message whose ids would be others than were sampled: from token `at` on, `sampled` was written and `trained` stands there.

    `kind` is `tokens` where the text is the same, cut otherwise, and `text` where the chat template words the message otherwise.
    """

    row: str
    message: int
    kind: Literal["tokens", "text"]
    at: int
    sampled: str
    trained: str


@dataclass(frozen=True, slots=True)
class Exactness:
    """How many messages are trained on exactly as they were sampled. `unrecorded` ones can't be compared.

    `reopened` counts messages whose prompt is not rendered as it was sent (`masks.Segment.as_sent`).
    """

    equal: int = 0
    retokenised: int = 0
    rewritten: int = 0
    unrecorded: int = 0
    reopened: int = 0
    differences: tuple[Difference, ...] = ()

    @property
    def exact(self) -> bool:
        """Whether every message was recorded and is trained on as it was."""
        return not (self.retokenised or self.rewritten or self.unrecorded or self.reopened)

    def __str__(self) -> str:
        known = self.equal + self.retokenised + self.rewritten
        return (
            f"{self.equal} of {known} recorded messages token for token as sampled, {self.retokenised} cut into other tokens, "
            f"{self.rewritten} worded otherwise; {self.unrecorded} not recorded; {self.reopened} after a prompt that was not sent so"
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def exactness(tokenizer: Any, records: Iterable[Mapping[str, Any]], *, as_recorded: bool = True) -> Exactness:
    """Compare what is trained on in SFT `records` (as `read_dataset` gives them) with what was sampled.

    `as_recorded` says whether training takes the recorded ids, as it does, or the text alone: then this tells what that would cost.
    Raises as `masks.segments` does.
    """
    counts = {"equal": 0, "retokenised": 0, "rewritten": 0, "unrecorded": 0, "reopened": 0}
    differences: list[Difference] = []
    for record in records:
        recorded = recorded_in(record) or [None] * len(record["messages"])
        made = segments(tokenizer, record["messages"], record["tools"], record["trained"], recorded if as_recorded else None)
        for segment in made:
            ids, places = spliced(tokenizer, segment)
            for message, (start, end), as_sent in zip(segment.messages, places, segment.as_sent, strict=True):
                counts["reopened"] += not as_sent
                sampled, trained = recorded[message], ids[start:end]
                if sampled is None or list(sampled) == trained:
                    counts["unrecorded" if sampled is None else "equal"] += 1
                    continue
                found = _difference(tokenizer, str(record.get("name") or ""), message, sampled, trained)
                counts["retokenised" if found.kind == "tokens" else "rewritten"] += 1
                differences.append(found)
    return Exactness(**counts, differences=tuple(differences))


def _difference(tokenizer: Any, row: str, message: int, sampled: Sequence[int], trained: Sequence[int]) -> Difference:
    pairs = enumerate(zip(sampled, trained, strict=False))
    at = next((place for place, (one, other) in pairs if one != other), min(len(sampled), len(trained)))
    same = text_of(tokenizer, sampled) == text_of(tokenizer, trained)
    shown = [text_of(tokenizer, ids[at : at + _SHOWN]) for ids in (sampled, trained)]
    return Difference(row, message, "tokens" if same else "text", at, *shown)
