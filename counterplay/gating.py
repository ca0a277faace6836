"""The gates of an export, from what a command line asks: what is looked for before anything leaves the store."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from counterplay.core.canonical import dumps
from counterplay.core.errors import UserError

if TYPE_CHECKING:
    from counterplay.connectors.redaction import Rule
    from counterplay.finetune.gates.leaks import Leak
    from counterplay.finetune.rows import Gate

SIMILARITY = 0.8
_IDS = frozenset({"id", "tool_call_id", "tool_use_id", "call_id", "source_call_id", "response_id", "trace_id", "span_id", "item_id"})


def gates_for(
    *,
    near_duplicates: float = SIMILARITY,
    held_out_file: Path | None = None,
    look_for: Sequence[str] | None = None,
    rules: Path | None = None,
    keep_secrets: bool = False,
) -> list[Gate]:
    """The gates in the order that rows pass them: no secrets, nothing held out, no near-duplicates.

    `near_duplicates` is the share of runs of five words from which two rows are one, in (0, 1]; 0 keeps all. `look_for` names kinds of
    personal data beside secrets, `rules` a TOML table in place of both, as at ingestion; `keep_secrets` looks for nothing.
    Raises UserError where they contradict each other or can't be read.
    """
    from counterplay.finetune.gates.held_out import HeldOut, read_held_out
    from counterplay.finetune.gates.near import NearDuplicates
    from counterplay.finetune.gates.secrets import Secrets

    if not 0 <= near_duplicates <= 1:
        raise UserError(f"got --near-duplicates {near_duplicates:g}", "a similarity from 0 (keep all) to 1")
    found = _rules(look_for, rules, off=keep_secrets)
    gates: list[Gate] = [Secrets(scanner(found))] if found else []
    if held_out_file is not None:
        gates.append(HeldOut(read_held_out(held_out_file)))
    if near_duplicates:
        gates.append(NearDuplicates(near_duplicates))
    return gates


def leaks_of(folder: Path, *, split_by: Sequence[str] = ()) -> list[Leak]:
    """What the splits of a dataset folder share (`finetune.gates.leaks`). Raises UserError for an unknown `split_by`."""
    from counterplay.finetune.gates.leaks import leaks
    from counterplay.finetune.splits import SplitBy

    unknown = set(split_by) - set(get_args(SplitBy))
    if unknown:
        raise UserError(f"got --split-by {', '.join(sorted(unknown))}", f"one or more of {', '.join(get_args(SplitBy))}")
    return leaks(folder, by=cast("Sequence[SplitBy]", split_by))


def _rules(look_for: Sequence[str] | None, rules: Path | None, *, off: bool) -> tuple[Rule, ...]:
    from counterplay.connectors.redaction import read_rules, rules_of

    if off and (look_for or rules):
        raise UserError("got --keep-secrets and what to look for", "one of them")
    if look_for and rules:
        raise UserError("got --look-for and --look-for-rules", "one of them", "Put the kinds into the table: kinds = [...].")
    if off:
        return ()
    return read_rules(rules) if rules else rules_of(("secrets", *(look_for or ())))


def scanner(rules: Sequence[Rule]) -> Callable[[Any], tuple[Any, Mapping[str, int]]]:
    """A `finetune.gates.secrets.Scan` by the detectors of ingestion. The ids that pair calls with results are not looked at.

    The key of the tokens is drawn afresh, so that nobody can try a guess on one.
    """
    from counterplay.connectors.redaction import Redactor

    redactor = Redactor(secrets.token_bytes(16), rules)

    def scan(value: Any) -> tuple[Any, Mapping[str, int]]:
        if isinstance(value, dict) and not redactor.suspects(dumps(value)):
            return value, {}
        before = redactor.counts.copy()
        clean = redactor.value(value, _IDS)
        return clean, redactor.counts - before

    return scan
