"""Token ids in the answers of OpenAI-compatible servers, where they were asked for and given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_TOKENS = frozenset({"token_ids", "prompt_token_ids", "logprobs", "prompt_logprobs", "input_token_logprobs", "output_token_logprobs"})


def choice_token_ids(choice: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The ids that were sampled for one choice of a chat completion, the end token among them; None where it has none that can be read.

    vLLM and SGLang give `token_ids` when sent `"return_token_ids": true`; SGLang also gives [log-probability, id, text] of every token
    when sent `"logprobs": true, "return_meta_info": true`.
    """
    ids = choice.get("token_ids")
    if ids is None and isinstance(info := choice.get("meta_info"), Mapping):
        given = info.get("output_token_logprobs")
        ids = [item[1] if isinstance(item, list) and len(item) > 1 else None for item in given] if isinstance(given, list) else None
    return as_token_ids(ids)


def without_tokens(value: Any) -> Any:
    """A JSON value without what holds a text token by token: of a text in which something was redacted, they would still tell it."""
    if isinstance(value, Mapping):
        return {key: without_tokens(item) for key, item in value.items() if key not in _TOKENS}
    return [without_tokens(item) for item in value] if isinstance(value, list) else value


def as_token_ids(value: Any) -> tuple[int, ...] | None:
    """The ids in a JSON list; None where it is something else or empty."""
    if not isinstance(value, list) or not value or not all(type(item) is int and 0 <= item < 2**31 for item in value):
        return None
    return tuple(value)
