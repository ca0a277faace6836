"""How tool calls are read out of what a model writes where its tokenizer does not say: what TRL knows, tried on its own chat template."""

from __future__ import annotations

from typing import Any

_ASKED = {"role": "user", "content": "Look order 7 up."}
_CALL = {"type": "function", "function": {"name": "look_up", "arguments": {"order": 7, "note": "a b"}}}


def read_calls(tokenizer: Any) -> bool:
    """Set the tokenizer's `response_template`, unless it has one: TRL's for its chat template, or one that reads a rendered call back.

    False, and nothing set, where there is none.
    """
    from trl import chat_template_utils

    if getattr(tokenizer, "response_template", None) or getattr(tokenizer, "response_schema", None):
        return True
    try:
        chat_template_utils.add_response_schema(tokenizer)
    except ValueError:
        known = [value for name, value in vars(chat_template_utils).items() if name.endswith("_template") and isinstance(value, dict)]
        for template in known:
            tokenizer.response_template = template
            if _reads(tokenizer):
                return True
        tokenizer.response_template = None
        return False
    return True


def _reads(tokenizer: Any) -> bool:
    try:
        sent = tokenizer.apply_chat_template([_ASKED], add_generation_prompt=True, return_dict=False)
        answer = {"role": "assistant", "content": "", "tool_calls": [_CALL]}
        written = tokenizer.apply_chat_template([_ASKED, answer], return_dict=False)
        parsed = tokenizer.parse_response(written[len(sent) :], prefix=sent) if written[: len(sent)] == sent else {}
    except Exception:  # noqa: BLE001  templates and parsers of other formats raise what they like; this one is not it
        return False
    return bool(parsed.get("tool_calls") == [_CALL])
