"""What a search leaves behind, as plain rows: the shape in which the store keeps a tree and `search` gives one out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from counterplay.core.budget import Amounts
from counterplay.core.nouns import Score, State, Step


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """One node. `parent` is the index of an earlier node, None at the root, which alone has no step.

    `draws` counts how often the policy proposed this action here; `logged` marks nodes of the recorded branch.
    """

    index: int
    parent: int | None
    step: Step | None
    prior: float = 1.0
    logprob: float | None = None
    visits: int = 0
    value_sum: float = 0.0
    draws: int = 1
    logged: bool = False
    score: Score | None = None


@dataclass(frozen=True)
class SearchRecord:
    """A finished or interrupted search. `trace` is the logged trace it forked, at step `fork_step`; None where there was none.

    `root` is the state it started from; `stopped` says why it ended ("" while it runs).
    """

    id: str
    algorithm: str
    root: State
    nodes: tuple[NodeRecord, ...]
    trace: str | None = None
    task: str | None = None
    fork_step: int = 0
    config: Mapping[str, Any] = field(default_factory=dict)
    stopped: str = ""
    used: Amounts = field(default_factory=Amounts)


@dataclass(frozen=True, slots=True)
class Rejected:
    """Input that could not be taken in, and why: a row of the quarantine. `line` is 1-based, None where the format has no lines.

    `raw` is the beginning of the offending input, decoded with replacement characters.
    """

    uri: str
    reason: str
    line: int | None = None
    byte_offset: int = 0
    raw: str = ""
