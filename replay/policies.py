"""From the name of a policy to the policy: `openai:MODEL`, `transformers:DIR`, `logged`, `module:attr`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from counterplay.core.errors import UserError
from counterplay.core.loading import resolve
from counterplay.core.nouns import Trajectory
from counterplay.core.protocols import Policy
from counterplay.replay.logged_policy import LoggedPolicy
from counterplay.replay.openai_answers import Price

SPELLINGS = "openai:MODEL, transformers:DIR, logged or module:attr"


def policy_from_spec(
    spec: str,
    *,
    base_url: str | None = None,
    temperature: float = 1.0,
    seed: int = 0,
    max_tokens: int | None = None,
    concurrency: int = 16,
    trajectories: Iterable[Trajectory] = (),
    extra_body: Mapping[str, Any] | None = None,
    price: Price | None = None,
) -> Policy:
    """The policy that `spec` names. `max_tokens` bounds one action, None is the policy's own default.

    `base_url`, `concurrency`, `extra_body` and `price` are for `openai:`, `trajectories` for `logged`. `module:attr` is a policy, or a
    function or class that makes one without arguments. Raises UserError where the name means nothing.
    """
    kind, colon, rest = spec.partition(":")
    if kind == "logged" and not colon:
        return LoggedPolicy(trajectories)
    if not colon or not rest:
        raise UserError(f"got policy {spec!r}", SPELLINGS)
    if kind == "openai":
        from counterplay.replay.openai_policy import OpenAIPolicy

        limits: dict[str, Any] = {} if max_tokens is None else {"max_tokens": max_tokens}
        if price is not None:
            limits["prices"] = {rest: price}
        return OpenAIPolicy(
            rest, base_url=base_url, temperature=temperature, seed=seed, concurrency=concurrency, extra_body=extra_body, **limits
        )
    if kind == "transformers":
        from counterplay.replay.transformers_policy import TransformersPolicy

        limits = {} if max_tokens is None else {"max_new_tokens": max_tokens}
        return TransformersPolicy(rest, temperature=temperature, seed=seed, **limits)
    return _imported(spec)


def _imported(spec: str) -> Policy:
    found = resolve(spec, "policy")
    if isinstance(found, Policy) and not isinstance(found, type):
        return found
    made = found() if callable(found) else found
    if not isinstance(made, Policy):
        raise UserError(f"got policy {spec!r}, a {type(made).__name__} without propose", "an object with async propose(state, n)")
    return made
