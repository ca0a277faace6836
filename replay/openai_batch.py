"""A model that is asked in batches, at half the price and hours later: the policy that writes down what it can't answer yet.

Everything else is `OpenAIPolicy`, its fingerprint too: a journal or a tree does not know whether the answers came at once. Each round gets
the search of every trace one wave further; its questions are in a file that the OpenAI Batch API takes.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

from counterplay.core.errors import CounterplayError, UserError
from counterplay.core.nouns import Proposal, State
from counterplay.replay.batch_folder import BatchFolder, key_of
from counterplay.replay.openai_answers import Answer
from counterplay.replay.openai_batches import Batches
from counterplay.replay.openai_policy import OpenAIPolicy

_QUIET_TURNS = 16  # of the event loop, without a new question: the wave is in
_QUIET_S = 1.0
_IGNORED = "n-is-ignored"  # a file that says so of the server, for the runs to come
_REFUSALS = 3


class AnswersPendingError(UserError):
    """A search can't go on before its questions are answered. Run again then, it goes on where it stopped."""

    exit_code = 1


class OpenAIBatchPolicy(OpenAIPolicy):
    """Samples actions from `model` by way of the batch files in `folder` (`BatchFolder`). `options` are those of OpenAIPolicy.

    Without a `base_url`, `propose` answers from the folder, or writes its questions down and raises AnswersPendingError. With one, it
    sends them to that server's Batch API once no further ones come, waits, and looks every `every_s` seconds. A question that came back
    without an answer (expired, 429, 5xx) or with one that can't be read is asked again, three times. `tally` counts an answer when the
    proposals it belongs to are whole. `aclose` gives new questions their file.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        every_s: float = 60.0,
        **options: Any,
    ) -> None:
        super().__init__(model, base_url=base_url or "http://offline", api_key=api_key, **options)
        self.batch, self.every_s = BatchFolder(folder), every_s
        self._ignored = self.batch.folder / _IGNORED
        if self._ignored.exists() and self._honours_n is None:
            self._honours_n = False
        self._carrier = None if base_url is None else Batches(folder, base_url=base_url, api_key=api_key)
        self._carrying: asyncio.Task[None] | None = None
        self._asked: list[str] = []

    async def propose(self, state: State, n: int) -> Sequence[Proposal]:
        """`n` independent draws. Raises AnswersPendingError where one of them has no answer yet."""
        used: list[Callable[[], None]] = []
        token = _used.set(used)
        try:
            proposals = await super().propose(state, n)
        finally:
            _used.reset(token)
            if self._honours_n is False:
                self._ignored.touch()
        for count in used:
            count()
        return proposals

    async def aclose(self) -> None:
        if self._carrying is not None:
            self._carrying.cancel()
            await asyncio.gather(self._carrying, return_exceptions=True)
        self.batch.close()
        if self._carrier is not None:
            self._carrier.close()

    def _apart(self, state: State, start: int, n: int) -> bool:
        """What was asked in one question, before it was known that the server ignores `n`, is not asked again."""
        return super()._apart(state, start, n) and not self.batch.knows(key_of(self._body(state, start, n), start))

    def _count(self, answer: Answer, n: int) -> None:
        _used.get().append(lambda: super(OpenAIBatchPolicy, self)._count(answer, n))

    def _waste(self, said: bytes) -> None:
        _used.get().append(lambda: super(OpenAIBatchPolicy, self)._waste(said))

    async def _in_turn(self, body: bytes, state: State, start: int, n: int) -> Answer:
        """No turn is taken: writing a question down keeps no server busy."""
        return await self._answer(body, state, start, n)

    async def _answer(self, body: bytes, state: State, start: int, n: int) -> Answer:
        key, seeds = key_of(body, start), self._seeds(state, start, n)
        while True:
            answer = self._known(key, seeds)
            if answer is not None:
                return answer
            if not self.batch.waits(key):
                self.batch.ask(key, body)
                self._asked.append(key)
            if self._carrier is None:
                raise await self._pending()
            await self._carried(self._carrier)

    def _known(self, key: str, seeds: Sequence[str]) -> Answer | None:
        """The answer to a question; None where there is none yet. Raises what came in its place where it is not to be asked again."""
        verdicts, refusal = self.batch.verdicts(key), None
        for verdict in verdicts:
            if not verdict.answered:
                refusal = self._refusal(str(self.batch.folder), verdict.status, verdict.said.decode(errors="replace"))
                continue
            try:
                return self._read(verdict.said, str(self.batch.folder), seeds)
            except CounterplayError as error:
                refusal = error
        if refusal is not None and not self.batch.waits(key) and (len(verdicts) > _REFUSALS or isinstance(refusal, UserError)):
            self.tally.failures += 1
            raise refusal
        return None

    async def _pending(self) -> AnswersPendingError:
        """What ends the search, once everything that is asked together was written down."""
        seen = -1
        while seen != len(self._asked):
            seen = len(self._asked)
            for _ in range(_QUIET_TURNS):
                await asyncio.sleep(0)
        folder = self.batch.folder
        do = f"Send them with: counterplay batch {folder}, then run the same command again."
        return AnswersPendingError(f"questions wait for their answers in {folder}", "the answers", do)

    async def _carried(self, carrier: Batches) -> None:
        """Wait until what is asked now, by whoever asks, has come back."""
        if self._carrying is None or self._carrying.done():
            self._carrying = asyncio.create_task(self._carry(carrier))
        await asyncio.shield(self._carrying)

    async def _carry(self, carrier: Batches) -> None:
        seen = -1
        while seen != len(self._asked):
            seen = len(self._asked)
            await asyncio.sleep(min(_QUIET_S, self.every_s))
        self.batch.close()
        asked, self._asked = self._asked, []
        while True:
            await asyncio.to_thread(carrier.carry)
            self.batch.refresh()
            if not any(self.batch.waits(key) for key in asked):
                return
            await asyncio.sleep(self.every_s)


_used: ContextVar[list[Callable[[], None]]] = ContextVar("_used")
"""What the tally is to count once the proposals that are being made are whole."""
