"""What the options of searches may be: the least of each that is a number, so that no search is one that looks for nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from counterplay.core.errors import UserError

_FROM_ZERO = frozenset({"lookback", "rollout_steps", "num_reflections", "window", "pivots"})
_UNBOUND = frozenset({"seed"})


def check_bounds(given: Mapping[str, Any]) -> None:
    """Raises UserError where a whole number is below 1 (0 for options that may be none at all), or another is negative or not finite."""
    for name, value in given.items():
        for one in value if isinstance(value, Sequence) and not isinstance(value, str) else [value]:
            least = 0 if isinstance(one, float) or name in _FROM_ZERO else 1
            if isinstance(one, int | float) and name not in _UNBOUND and not (isinstance(one, bool) or least <= one < math.inf):
                raise UserError(f"got option {name}={one:g}", f"{'a finite number of ' if isinstance(one, float) else ''}at least {least}")
