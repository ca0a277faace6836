"""What a policy sets aside for a proposal before it makes it: an upper bound, which a share of the budget has to hold.

A run reserves by the policy's `estimate()`, so a rehearsal does, over the requests of the log: a branch asks for about as much.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from inspect import isclass
from typing import TYPE_CHECKING, Any

from counterplay.core.errors import CounterplayError, PolicyError
from counterplay.core.nouns import Usage

if TYPE_CHECKING:
    from counterplay.core.nouns import State, Trace
    from counterplay.parts import Asked

_NOWHERE = "http://127.0.0.1"
Bound = Callable[["State", int], Usage | None]


def bound_of(asked: Asked) -> Bound | None:
    """The `estimate` of the policy that is named; None where it has none, or is not made before it is asked: models of this process, and
    what `module:attr` would have to call to get one. Nobody is asked. Raises UserError where there is no such policy.
    """
    kind, _, rest = asked.policy.partition(":")
    if kind in ("logged", "transformers", ""):
        return None
    if kind in ("openai", "batch"):
        model = rest if kind == "openai" else rest.partition(":")[2]
        policy: Any = replace(asked, policy=f"openai:{model}", base_url=asked.base_url or _NOWHERE).make_policy()
    else:
        from counterplay.core.loading import resolve

        policy = resolve(asked.policy, "policy")
        if isclass(policy) or not hasattr(policy, "propose"):
            return None
    while policy is not None:
        found: Bound | None = getattr(policy, "estimate", None)
        if found is not None:
            return found
        policy = getattr(policy, "policy", None)
    return None


class Reserves:
    """What is set aside for proposals along one logged run; past its end it grows as it did."""

    def __init__(self, trace: Trace, bound: Bound) -> None:
        self._run, self._bound = trace.trajectory, bound
        self._last = max(0, len(trace.trajectory) - 1)
        self._known: dict[tuple[int, int], Usage] = {}

    def of(self, step: int, n: int) -> Usage:
        """For `n` draws before this step; more than two are told by what the second one adds."""
        if n > 2:
            one, two = self.of(step, 1), self.of(step, 2)
            return _beyond(one, two, n - 1)
        if step > self._last:
            return _beyond(self.of(0, n), self.of(self._last, n), step / self._last) if self._last else self.of(0, n)
        if (step, n) not in self._known:
            self._known[step, n] = self._asked(step, n)
        return self._known[step, n]

    def _asked(self, step: int, n: int) -> Usage:
        try:
            found = self._bound(self._run.prefix(step), n)
        except CounterplayError:
            raise
        except Exception as error:
            raise PolicyError(f"the policy's estimate failed: {type(error).__name__}: {error}", "a Usage") from error
        if not isinstance(found, Usage):
            raise PolicyError(f"got {type(found).__name__} from the policy's estimate", "a Usage")
        return found


def _beyond(first: Usage, second: Usage, times: float) -> Usage:
    """The first with so many times what the second has more."""
    found: dict[str, Any] = {}
    for field in fields(Usage):
        a, b = getattr(first, field.name), getattr(second, field.name)
        if isinstance(a, int | float) and isinstance(b, int | float):
            grown = a + times * (b - a)
            found[field.name] = grown if isinstance(a, float) else round(grown)
    return replace(first, **found)
