"""What a tool's name says of it, where evidence leaves two readings. A name is never evidence."""

from __future__ import annotations

import re

_LOOKS = frozenset(
    {
        "calculate", "cat", "check", "compute", "count", "describe", "fetch", "find", "get", "grep", "head", "list", "look",
        "lookup", "ls", "pwd", "query", "read", "search", "show", "tail", "view",
    }
)  # fmt: skip
_ASKS = frozenset({"can", "has", "is"})
_THINKS = frozenset({"calculate", "calculator", "compute", "convert", "format", "parse", "reflect", "think"})
_CHANGES = frozenset(
    {
        "add", "and", "append", "approve", "assign", "cancel", "claim", "clear", "close", "create", "delete", "disable", "edit",
        "enable", "grant", "insert", "lock", "mark", "modify", "move", "open", "or", "put", "reboot", "redeem", "reject",
        "remove", "rename", "replace", "reserve", "reset", "revoke", "save", "set", "submit", "toggle", "unlock", "update",
        "upload", "write",
    }
)  # fmt: skip
_REACHES_OUT = frozenset(
    {
        "call", "charge", "deploy", "dial", "email", "escalate", "invite", "mail", "notify", "pay", "payment", "post", "publish",
        "purchase", "refund", "send", "sms", "transfer", "tweet", "webhook",
    }
)  # fmt: skip
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")


def words(tool: str) -> list[str]:
    return [word.lower() for word in _WORDS.findall(tool)]


def looks(tool: str) -> bool:
    """Whether a name says that the tool looks and says nothing of changing."""
    named = words(tool)
    return bool(named) and (named[0] in _ASKS or (named[0] in _LOOKS and not set(named[1:]) & (_CHANGES | _REACHES_OUT)))


def thinks(tool: str) -> bool:
    """Whether a name says that the tool works on its arguments alone."""
    named = words(tool)
    return bool(named) and named[0] in _THINKS and not (set(named) & (_CHANGES | _REACHES_OUT))


def reaches_out(tool: str) -> bool:
    """Whether a name says that the tool does something that can't be taken back: mail, payment, a call."""
    return not looks(tool) and bool(set(words(tool)) & _REACHES_OUT)
