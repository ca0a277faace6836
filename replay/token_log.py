"""The token ids that a policy sampled, kept beside the content: a log of what each message was, token for token.

Messages are shared content and hold no provenance, and a search keeps actions, not how they were sampled. This keeps the ids by the key
of the message, so that what is later trained on can be exactly what was sampled (`finetune.exactness`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from counterplay.core.canonical import chain_key, dumps, loads
from counterplay.core.nouns import Proposal, State
from counterplay.core.protocols import Policy, fingerprint_of
from counterplay.core.token_ids import as_token_ids
from counterplay.core.turns import propose_in_turn
from counterplay.replay.appending import Appender

_OPENINGS = (b'{"key":',)


class TokenLog:
    """A policy that hands on what `policy` proposes, and appends the ids of every new message to the JSONL file at `path`.

    `ids` holds them by `chain_key(state.key, action.wire)`: those of the file, then new ones; a message that was sampled twice keeps the
    first. Laid over a `JournaledPolicy` it also sees what the journal answers. A context manager; writing is safe from several
    processes. Raises UserError where the file holds something else.
    """

    takes_turns = True

    def __init__(self, policy: Policy, path: str | os.PathLike[str]) -> None:
        self.policy, self.fingerprint = policy, fingerprint_of(policy)
        self.estimate: Any = getattr(policy, "estimate", None)
        self.ids: dict[str, tuple[int, ...]] = {}
        self._file = Appender(path, openings=_OPENINGS, kind="a token log", writer="a TokenLog")
        try:
            self._file.scan(self._take)
        except BaseException:
            self._file.close()
            raise

    async def propose(self, state: State, n: int) -> Sequence[Proposal]:
        proposals = await propose_in_turn(self.policy, state, n)
        for proposal in proposals:
            if proposal.token_ids is not None:
                key = chain_key(state.key, proposal.action.wire)
                if key not in self.ids:
                    self.ids[key] = proposal.token_ids
                    self._file.write((dumps({"key": key, "token_ids": proposal.token_ids}) + "\n").encode())
        return proposals

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        self.close()

    def _take(self, line: bytes) -> bool:
        found = _entry(line)
        if found is not None:
            self.ids.setdefault(*found)
        return found is not None


def read_token_log(path: str | os.PathLike[str]) -> Mapping[str, tuple[int, ...]]:
    """What a TokenLog wrote, without opening it for writing; a line that a kill tore is left out."""
    found: dict[str, tuple[int, ...]] = {}
    for line in Path(path).read_bytes().splitlines():
        entry = _entry(line)
        if entry is not None:
            found.setdefault(*entry)
    return found


def _entry(line: bytes) -> tuple[str, tuple[int, ...]] | None:
    try:
        fields = loads(line.decode())
        key, ids = fields["key"], as_token_ids(fields["token_ids"])
    except (ValueError, KeyError, TypeError):
        return None
    return (key, ids) if isinstance(key, str) and ids is not None else None
