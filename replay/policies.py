"""From the name of a policy to the policy: `openai:MODEL`, `batch:FOLDER:MODEL`, `transformers:DIR`, `logged`, `module:attr`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from counterplay.core.errors import UserError
from counterplay.core.loading import resolve
from counterplay.core.nouns import Trajectory
from counterplay.core.protocols import Policy
from counterplay.replay.logged_policy import LoggedPolicy
from counterplay.replay.openai_answers import Price

SPELLINGS = "openai:MODEL, batch:FOLDER:MODEL, transformers:DIR, logged or module:attr"


def policy_from_spec(
    spec: str,
    *,
    base_url: str | Sequence[str] | None = None,
    temperature: float = 1.0,
    seed: int = 0,
    max_tokens: int | None = None,
    concurrency: int = 16,
    trajectories: Iterable[Trajectory] = (),
    extra_body: Mapping[str, Any] | None = None,
    price: Price | None = None,
    timeout_s: float | None = None,
) -> Policy:
    """The policy that `spec` names. `max_tokens` bounds one action, `timeout_s` an attempt to get one; None is the policy's own default.

    `base_url` is one, several, or several in one text with commas between them; `concurrency` and `timeout_s` are for `openai:`,
    `extra_body` and `price` also for `batch:`, which sends its questions itself where there is a `base_url`, `trajectories` for
    `logged`. `module:attr` is a policy, or a function or class that makes one without arguments. Raises UserError where the name
    means nothing.
    """
    kind, colon, rest = spec.partition(":")
    if kind == "logged" and not colon:
        return LoggedPolicy(trajectories)
    if not colon or not rest:
        raise UserError(f"got policy {spec!r}", SPELLINGS)
    if kind == "openai":
        from counterplay.replay.openai_policy import OpenAIPolicy

        sampled = _sampled(rest, price, {"max_tokens": max_tokens, "timeout_s": timeout_s})
        return OpenAIPolicy(
            rest, base_url=base_url, temperature=temperature, seed=seed, concurrency=concurrency, extra_body=extra_body, **sampled
        )
    if kind == "batch":
        from counterplay.replay.openai_batch import OpenAIBatchPolicy

        folder, _, model = rest.partition(":")
        if not folder or not model:
            raise UserError(f"got policy {spec!r}", "batch:FOLDER:MODEL, e.g. batch:night:gpt-5-mini")
        sampled = _sampled(model, price, {"max_tokens": max_tokens})
        return OpenAIBatchPolicy(
            folder, model, base_url=_first(base_url), temperature=temperature, seed=seed, extra_body=extra_body, **sampled
        )
    if kind == "transformers":
        from counterplay.replay.transformers_policy import TransformersPolicy

        limits: dict[str, Any] = {} if max_tokens is None else {"max_new_tokens": max_tokens}
        return TransformersPolicy(rest, temperature=temperature, seed=seed, **limits)
    return _imported(spec)


def _first(base_url: str | Sequence[str] | None) -> str | None:
    """The one server that keeps a batch's files."""
    from counterplay.replay.openai_policy import addresses

    return next(iter(addresses(base_url)), None)


def _sampled(model: str, price: Price | None, limits: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are given; the others are the policy's own defaults."""
    given = {name: limit for name, limit in limits.items() if limit is not None}
    return given if price is None else given | {"prices": {model: price}}


def _imported(spec: str) -> Policy:
    found = resolve(spec, "policy")
    if isinstance(found, Policy) and not isinstance(found, type):
        return found
    made = found() if callable(found) else found
    if not isinstance(made, Policy):
        raise UserError(f"got policy {spec!r}, a {type(made).__name__} without propose", "an object with async propose(state, n)")
    return made
