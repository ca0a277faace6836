"""Waves: what a search asks for at once is paid for in order, run together and returned in order.

A wave reserves its budget synchronously, the part of it that does not fit is not started, at most `concurrency` calls are in
flight, and results are settled in wave order. So a tree is the same at any concurrency, and a budget can't be overshot. A call
that fails is data; only where not one call of the first wave succeeds is its error raised.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

from counterplay.core.budget import Amounts, Budget, Reservation
from counterplay.core.errors import BudgetExceeded, CounterplayError, PolicyError, StoreError, UserError, VerifierError
from counterplay.core.journal import ask_all, awaited, batch_of, begin, verifier_identity
from counterplay.core.nouns import Message, Proposal, Score, Step, Usage
from counterplay.core.protocols import Environment, Policy, Verifier, calls_at_once, first_draw
from counterplay.core.turns import propose_in_turn, turns
from counterplay.search.draws import FailedProposal
from counterplay.search.fairness import limiting
from counterplay.search.stopping import NEVER, Ends, stop_when
from counterplay.search.tree import Node, SearchTree
from counterplay.search.wave import Wave

NO_USAGE = Proposal(Message("")).usage
OnWave = Callable[[SearchTree], None]
_FATAL = (StoreError, UserError)  # not the fault of one branch: a full disk, a wrong option


class Engine:
    """Asks policy, environment and verifier in waves under one budget.

    A model call is one sampled proposal, a tool call is one call inside an action. Tokens and dollars are reserved where the
    policy offers `estimate(state, n) -> Usage`, an upper bound; without one they are reserved at the largest use seen so far
    per proposal, so that only a wave whose proposals outgrow all before it can exceed them. A branch that is `max_steps` below
    its root is truncated (None: no limit). A part that is None is never asked.

    An engine takes its turns from the limiter, and stops on the condition, that its context holds (`fairness.shared`,
    `stopping.stopping`): searches neither pass them on nor know of them.
    """

    def __init__(
        self,
        policy: Policy | None,
        environment: Environment | None,
        verifier: Verifier | None,
        budget: Budget,
        *,
        concurrency: int = 64,
        max_steps: int | None = None,
        on_wave: OnWave | None = None,
    ) -> None:
        if concurrency < 1:
            raise UserError(f"got concurrency={concurrency}", "at least 1")
        if max_steps is not None and max_steps < 1:
            raise UserError(f"got max_steps={max_steps}", "at least 1, or none for no limit")
        self.policy, self.environment, self.verifier, self.budget = policy, environment, verifier, budget
        self.concurrency, self.max_steps, self.on_wave = concurrency, max_steps, on_wave
        self.exhausted = ""
        self.failures: dict[str, dict[str, Any]] = {}
        self._used: defaultdict[str, float] = defaultdict(float)
        self._started_s = time.monotonic()
        limiter = limiting.get()
        self._lane = None if limiter is None else limiter.lane()
        self._stop_when = stop_when.get()
        self._ends = None if self._stop_when is NEVER else Ends(by_action=self._stop_when.decided is not None)
        self._drawn: dict[str, int] = {}
        self._estimate: Callable[..., Usage] | None = _find(policy, "estimate")
        self._largest = Usage()
        self._succeeded: set[str] = set()
        self._policy_wave, self._environment_wave, self._verifier_wave = Wave(concurrency), Wave(concurrency), Wave(concurrency)

    async def propose(self, wave: Sequence[tuple[Node, int]]) -> list[Sequence[Proposal]]:
        """Up to n proposals for each (node, n). Empty where the policy has none or the budget ended."""
        policy = self.policy
        if policy is None or not wave:
            return []
        admitted, reservation = self._admit_draws(wave)
        answers: list[Sequence[Proposal]] = [()] * len(wave)
        errors: dict[int, Exception] = {}
        starts, drawn, lane = [], self._drawn, self._lane
        for node, n in admitted:
            key = node.state.key
            start = drawn.get(key, 0)
            starts.append(start)
            drawn[key] = start + n

        async def call(i: int) -> None:
            node, n = admitted[i]
            token = first_draw.set(starts[i])
            try:
                asked = policy.propose(node.state, n) if lane is None else propose_in_turn(policy, node.state, n)
                answers[i] = _proposals(await asked, n)
            except _FATAL:
                raise
            except Exception as error:  # noqa: BLE001  a failed branch is data
                errors[i] = error
            finally:
                first_draw.reset(token)

        taking = None if lane is None else turns.set(lane)
        try:
            await self._policy_wave.run(call, len(admitted))
        finally:
            if taking is not None:
                turns.reset(taking)
            self._settle_draws(reservation, admitted, answers, errors)
        self._note("policy", errors, len(admitted), PolicyError)
        for i, error in errors.items():
            answers[i] = (FailedProposal.of(_text(error)),)
        return answers

    async def step(self, wave: Sequence[tuple[Node, Proposal]], environments: Sequence[Environment] | None = None) -> list[Step | None]:
        """Execute each action in the state of its node. None where the budget ended before it; a failure is a step with `error`.

        `environments` aligns with `wave` where each branch has its own; None uses the engine's.
        """
        if not wave:
            return []
        counts, reservation = self._admit_tools(wave)
        steps: list[Step | None] = [None] * len(wave)
        errors: dict[int, Exception] = {}

        async def call(i: int) -> None:
            node, proposal = wave[i]
            if isinstance(proposal, FailedProposal):
                steps[i] = Step(proposal.action, sampled=False, error=proposal.error)
                return
            environment = self.environment if environments is None else environments[i]
            try:
                steps[i] = self._checked(node, proposal.action, await environment.step(node.state, proposal.action))  # type: ignore[union-attr]
            except _FATAL:
                raise
            except Exception as error:  # noqa: BLE001  a failed branch is data
                errors[i] = error
                steps[i] = Step(proposal.action, error=_text(error))

        try:
            await self._environment_wave.run(call, len(counts))
        finally:
            self._settle(reservation, tool_calls=sum(counts))
        self._note("environment", errors, len(counts), CounterplayError)
        return steps

    async def score(self, nodes: Sequence[Node]) -> None:
        """Set the score of each node; None where the verifier has no opinion or failed.

        A branch whose machinery failed is not asked about: that is nobody's merit or fault.
        """
        verifier = self.verifier
        if verifier is None or not nodes:
            return
        nodes = [node for node in nodes if node.step is None or node.step.error is None]
        scores: list[Score | None] = [None] * len(nodes)
        errors: dict[int, Exception] = {}
        identity = verifier_identity(verifier)

        def take(i: int, answer: Score | VerifierError | None) -> None:
            if isinstance(answer, VerifierError):
                errors[i] = _innermost(answer)
            else:
                scores[i] = answer

        async def call(i: int) -> None:
            node = nodes[first + i]
            opinion = begin(verifier, node.state, identity) if i else answer
            take(first + i, await awaited(opinion, node.state, identity) if isinstance(opinion, Awaitable) else opinion)

        if batch_of(verifier) is None:
            for first, node in enumerate(nodes):
                answer = begin(verifier, node.state, identity)
                if answer is None or isinstance(answer, (Score, VerifierError)):
                    take(first, answer)
                    continue
                await self._verifier_wave.run(call, len(nodes) - first)
                break
        else:
            limit = calls_at_once.set(self.concurrency)
            try:
                answers = await ask_all(verifier, [node.state for node in nodes], identity)
            finally:
                calls_at_once.reset(limit)
            for i, each in enumerate(answers):
                take(i, each)
        for node, score in zip(nodes, scores, strict=True):
            node.score = score
            if score is not None and self._ends is not None:
                self._ends.add(node)
        self._note("verifier", errors, len(nodes), VerifierError)

    def admit(self, simulations: int) -> int:
        """How many of these simulations the budget allows; they count as used."""
        budget = self.budget
        if not budget.spend(simulations=simulations):
            self.exhausted = f"budget: {budget.lacking(simulations=simulations) or 'seconds'}"
            simulations = max(0, int(min(simulations, budget.left("simulations"))))
            if not budget.spend(simulations=simulations):
                return 0
        self._used["simulations"] += simulations
        return simulations

    def running(self, tree: SearchTree) -> bool:
        """Whether a search may start another wave."""
        if self._ends is not None and not tree.stopped:
            tree.stop(self._stop_when.reason(tree, self._ends))
        return not (self.exhausted or tree.stopped)

    def after_wave(self, tree: SearchTree) -> None:
        """Show the grown tree to `on_wave`, which may persist it or `stop` it."""
        if self.on_wave is not None:
            tree.used = self.used()
            self.on_wave(tree)

    def finish(self, tree: SearchTree, reason: str) -> SearchTree:
        """Fill in what the tree says about its own making. `reason` is why it ended where neither budget nor caller ended it."""
        tree.stop(self.exhausted or reason)
        tree.used, tree.failures = self.used(), self.failures
        if self.on_wave is not None:
            self.on_wave(tree)
        return tree

    def used(self) -> Amounts:
        """What this engine has used, whoever else shares its budget."""
        amounts = {kind: self._used[kind] for kind in ("simulations", "model_calls", "tokens", "usd", "tool_calls")}
        return Amounts(**amounts, seconds=time.monotonic() - self._started_s)

    def _admit_draws(self, wave: Sequence[tuple[Node, int]]) -> tuple[Sequence[tuple[Node, int]], Reservation]:
        """The longest part of a wave that fits, its last item perhaps with fewer draws."""
        limits = self.budget.limits
        if limits.tokens is None and limits.usd is None:
            amounts: dict[str, float] = {"model_calls": sum([n for _, n in wave])}
        else:
            amounts = {"model_calls": 0}
            for node, n in wave:
                amounts = self._priced(node, n, amounts)
        reservation = self._reserve(**amounts)
        if reservation is not None:
            return wave, reservation
        admitted: list[tuple[Node, int]] = []
        amounts = {"model_calls": 0}
        for node, wanted in wave:
            n = self._fitting(node, wanted, amounts)
            if n:
                admitted.append((node, n))
                amounts = self._priced(node, n, amounts)
            if n < wanted:
                break
        reservation = self._reserve(**amounts) if admitted else None
        return (admitted, reservation) if reservation else ([], Reservation(self.budget, {}))

    def _fitting(self, node: Node, wanted: int, beside: dict[str, float]) -> int:
        """The most draws, up to `wanted`, that fit beside these amounts: found by halving, for `wanted` may be anything."""
        least, most = 0, wanted
        while least < most:
            n = (least + most + 1) // 2
            if self.budget.lacking(**self._priced(node, n, beside)) is None:
                least = n
            else:
                most = n - 1
        return least

    def _reserve(self, **amounts: float) -> Reservation | None:
        """A reservation; None, and the engine is exhausted, where it does not fit."""
        try:
            return self.budget.reserve(**amounts)
        except BudgetExceeded:
            self.exhausted = f"budget: {self.budget.lacking(**amounts) or 'seconds'}"
            return None

    def _priced(self, node: Node, n: int, before: dict[str, float]) -> dict[str, float]:
        """The amounts `before` with those of n more draws."""
        amounts = {**before, "model_calls": before["model_calls"] + n}
        limits = self.budget.limits
        if limits.tokens is None and limits.usd is None:
            return amounts
        if self._estimate is not None:
            try:
                usage = self._estimate(node.state, n)
            except CounterplayError:
                raise
            except Exception as error:
                raise PolicyError(f"the policy's estimate failed: {_text(error)}", "a Usage") from error
            tokens, usd = float(usage.tokens), usage.cost_usd or 0.0
        else:
            tokens, usd = n * max(1.0, float(self._largest.tokens)), n * max(1e-9, self._largest.cost_usd or 0.0)
        amounts["tokens"] = before.get("tokens", 0.0) + tokens
        amounts["usd"] = before.get("usd", 0.0) + usd
        return amounts

    def _settle_draws(
        self,
        reservation: Reservation,
        admitted: Sequence[tuple[Node, int]],
        answers: Sequence[Sequence[Proposal]],
        errors: dict[int, Exception],
    ) -> None:
        calls = sum(map(len, answers)) + sum([admitted[i][1] for i in errors])
        tokens = usd = 0.0
        for usage in [proposal.usage for proposals in answers for proposal in proposals if proposal.usage is not NO_USAGE]:
            tokens += usage.tokens
            usd += usage.cost_usd or 0.0
            self._largest = max(self._largest, usage, key=lambda known: known.tokens)
        self._settle(reservation, model_calls=calls, tokens=tokens, usd=usd)

    def _admit_tools(self, wave: Sequence[tuple[Node, Proposal]]) -> tuple[list[int], Reservation]:
        """The tool calls of each item of the longest part of a wave that fits."""
        counts = [len(proposal.action.tool_calls) for _, proposal in wave]
        while (reservation := self._reserve(tool_calls=sum(counts))) is None and counts:
            counts.pop()
        return counts, reservation or Reservation(self.budget, {})

    def _settle(self, reservation: Reservation, **used: float) -> None:
        reservation.settle(None, **used)
        for kind, amount in used.items():
            self._used[kind] += amount

    def _checked(self, node: Node, action: Message, step: object) -> Step:
        if not isinstance(step, Step):
            return Step(action, error=f"got {type(step).__name__} from the environment, wanted a Step")
        if step.action is not action and step.action != action:
            return Step(action, error=f"the environment executed {step.action.signature!r} instead of {action.signature!r}")
        if self.max_steps is None or node.depth + 1 < self.max_steps or step.finished:
            return step
        return replace(step, truncated=True)

    def _note(self, kind: str, errors: dict[int, Exception], count: int, wrap: type[CounterplayError]) -> None:
        if len(errors) < count:
            self._succeeded.add(kind)
            if not errors:
                return
        if not count:
            return
        first = errors[min(errors)]
        known = self.failures.setdefault(kind, {"count": 0, "first": _text(first)})
        known["count"] += len(errors)
        if kind not in self._succeeded:
            if isinstance(first, wrap):
                raise first
            raise wrap(f"the {kind} failed in all {count} calls of its first wave: {known['first']}") from first


def _proposals(answer: object, n: int) -> Sequence[Proposal]:
    """The first `n` of an answer. Raises PolicyError where it is none."""
    if isinstance(answer, (list, tuple, Sequence)):
        for item in answer:
            if not isinstance(item, Proposal):
                break
        else:
            return answer[:n] if len(answer) > n else answer
    raise PolicyError(f"got {type(answer).__name__} {answer!r:.200} from the policy", "a sequence of Proposal")


def _text(error: BaseException) -> str:
    return str(error) if isinstance(error, CounterplayError) else f"{type(error).__name__}: {error}"


def _innermost(error: VerifierError) -> VerifierError:
    """The first of nested verifier errors (a journalled verifier has an error boundary of its own). Raises what is fatal."""
    while isinstance(error.__cause__, VerifierError):
        error = error.__cause__
    if isinstance(error.__cause__, _FATAL):
        raise error.__cause__
    return error


def _find(part: object, name: str) -> Any:
    """An optional attribute of a part or of what it wraps (a wrapper shows what it wraps as `.policy`); None where there is none."""
    while part is not None:
        found = getattr(part, name, None)
        if found is not None:
            return found
        part = getattr(part, "policy", None)
    return None
