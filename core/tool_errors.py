"""Whether a tool's result says that its call failed: one definition for everybody who has to know."""

from __future__ import annotations

import re

from counterplay.core.canonical import loads
from counterplay.core.nouns import Message

_SPOKEN = re.compile(r"\s*(?:error|exception|traceback \(most recent)\b", re.IGNORECASE)


def is_error(result: Message) -> bool:
    """By its flag (`is_error`, `error`, or `status` "error"), by its first word, or by a field `error` of its JSON that is not empty."""
    fields = result.fields
    if fields.get("is_error") or fields.get("error") or fields.get("status") == "error":
        return True
    text = result.content_text
    if _SPOKEN.match(text):
        return True
    try:
        value = loads(text) if text.lstrip().startswith("{") else None
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and bool(value.get("error"))
