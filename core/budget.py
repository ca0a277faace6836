"""A budget that can't be overshot: reserve before the call, settle after.

Reservations are synchronous and made in wave order, so admission is the same at any concurrency. Answers taken from a
journal are charged like live ones; a resumed search therefore stops exactly where an uninterrupted one would.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

from counterplay.core.errors import BudgetExceeded, UserError
from counterplay.core.nouns import Usage


@dataclass(frozen=True, slots=True)
class Amounts:
    """Amounts of everything a search can use up. As limits, None is unlimited; as use, every field is a number."""

    simulations: float | None = None
    model_calls: float | None = None
    tokens: float | None = None
    usd: float | None = None
    tool_calls: float | None = None
    seconds: float | None = None

    def __add__(self, other: Amounts) -> Amounts:
        """What was used in all; None counts as nothing."""
        return Amounts(*((getattr(self, kind.name) or 0) + (getattr(other, kind.name) or 0) for kind in fields(self)))


KINDS = tuple(f.name for f in fields(Amounts))


@dataclass(slots=True)
class Reservation:
    """An amount set aside. Settle it once with what was really used; unsettled, it stays reserved."""

    budget: Budget
    amounts: Mapping[str, float]
    settled: bool = False

    def settle(self, usage: Usage | None = None, **used: float) -> None:
        """Replace the reservation by real use. Kinds neither reserved nor given count as zero; kinds reserved and not given as reserved."""
        if self.settled:
            msg = "a reservation is settled once"
            raise RuntimeError(msg)
        if usage is not None:
            used = {"tokens": usage.tokens, "usd": usage.cost_usd or 0.0, **used}
        self.settled = True
        self.budget._settle(self.amounts, used)  # noqa: SLF001  the two are one mechanism


@dataclass
class Budget:
    """Limits and what is used so far.

    `seconds` counts wall time from construction (or `restart_clock`) and is checked whenever something is reserved.
    """

    limits: Amounts = field(default_factory=Amounts)
    _spent: dict[str, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 0), repr=False)
    _reserved: dict[str, float] = field(default_factory=dict, repr=False)
    _started_s: float = field(default_factory=time.monotonic, repr=False)

    @classmethod
    def of(cls, **limits: float | None) -> Budget:
        """Budget.of(model_calls=400, usd=5). Raises UserError on an unknown kind or a negative limit."""
        for kind, limit in limits.items():
            if kind not in KINDS:
                raise UserError(f"got budget kind {kind!r}", f"one of {', '.join(KINDS)}")
            if limit is not None and not 0 <= limit < float("inf"):
                raise UserError(f"got budget {kind}={limit}", "a number that is not negative, and finite")
        return cls(Amounts(**limits))

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read `model_calls=400,usd=5,seconds=600`; empty text is no limit. Raises UserError where it can't be read."""
        limits: dict[str, float] = {}
        for part in filter(None, (piece.strip() for piece in text.split(","))):
            kind, equals, amount = part.partition("=")
            try:
                limits[kind.strip()] = float(amount)
            except ValueError:
                raise UserError(f"got budget part {part!r}", "kind=number", f"Kinds: {', '.join(KINDS)}.") from None
            if not equals:
                raise UserError(f"got budget part {part!r}", "kind=number")
        return cls.of(**limits)

    def reserve(self, **amounts: float) -> Reservation:
        """Set amounts aside. Raises BudgetExceeded, with nothing reserved, where one of them does not fit."""
        kind = self._lacking(amounts)
        if kind is not None:
            left = self.left(kind)
            raise BudgetExceeded(f"the budget has {left:g} {kind} left", f"{amounts.get(kind, 0):g}", "Give a larger --budget to go on.")
        reserved = self._reserved
        for name, amount in amounts.items():
            reserved[name] = reserved.get(name, 0) + amount
        return Reservation(self, amounts)

    def spend(self, **amounts: float) -> bool:
        """Use amounts at once, without a call between; False, and nothing used, where one of them does not fit."""
        if self._lacking(amounts) is not None:
            return False
        for kind, amount in amounts.items():
            self._spent[kind] += amount
        return True

    def lacking(self, **amounts: float) -> str | None:
        """The first kind that `amounts` would overshoot; None where all of it fits."""
        return self._lacking(amounts)

    def _lacking(self, amounts: Mapping[str, float]) -> str | None:
        limits = self.limits
        if limits.seconds is not None and self.left("seconds") <= 0:
            return "seconds"
        for kind, amount in amounts.items():
            if getattr(limits, kind) is not None and amount > self.left(kind):
                return kind
        return None

    def left(self, kind: str) -> float:
        """What is neither used nor reserved; infinity where there is no limit."""
        limit = getattr(self.limits, kind)
        if limit is None:
            return float("inf")
        if kind == "seconds":
            return float(limit) - (time.monotonic() - self._started_s)
        return float(limit - self._spent[kind] - self._reserved.get(kind, 0))

    def restart_clock(self) -> None:
        self._started_s = time.monotonic()

    @property
    def used(self) -> Amounts:
        """What was settled."""
        return Amounts(**self._spent)

    def spent(self) -> Amounts:
        """What is used, with `seconds` since the start."""
        return replace(self.used, seconds=time.monotonic() - self._started_s)

    def _settle(self, reserved: Mapping[str, float], used: Mapping[str, float]) -> None:
        held, spent = self._reserved, self._spent
        for kind, amount in reserved.items():
            held[kind] -= amount
            if kind not in used:
                spent[kind] += amount
        for kind, amount in used.items():
            spent[kind] += amount
