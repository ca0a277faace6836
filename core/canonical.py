"""JSON text and content keys: one place that decides what equal content means."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from hashlib import blake2b
from typing import Any

_KEY_BYTES = 16


def dumps(value: Any) -> str:
    """Compact JSON in the order given. Non-ASCII text stays readable; lone surrogates are escaped so that UTF-8 can hold them."""
    return _held(_COMPACT(value), value, sort_keys=False)


def canonical(value: Any) -> str:
    """Compact JSON with sorted keys: equal values give equal text whatever their key order."""
    return _held(_SORTED(value), value, sort_keys=True)


def _held(text: str, value: Any, *, sort_keys: bool) -> str:
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, ensure_ascii=True, separators=(",", ":"), sort_keys=sort_keys)
    return text


_COMPACT = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_SORTED = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode
loads: Callable[[str], Any] = json.loads


def chain_key(parent: str, *parts: str) -> str:
    """The key of content that follows `parent`, part by part: 32 hex digits.

    chain_key(p, a, b) == chain_key(chain_key(p, a), b), so a message's key is the same however it is reached. Without
    parts the key is the parent's; the root is chain_key("").
    """
    key = parent
    for part in parts:
        key = blake2b(f"{key}\n{part}".encode("utf-8", "surrogatepass"), digest_size=_KEY_BYTES).hexdigest()
    return key or blake2b(b"", digest_size=_KEY_BYTES).hexdigest()


def content_key(*parts: str) -> str:
    """A key for an unordered use of content: the parts joined unambiguously, 32 hex digits."""
    return blake2b(_joined(parts), digest_size=_KEY_BYTES).hexdigest()


def content_keys(*first: str) -> Callable[..., str]:
    """What makes the content keys of `first` and further parts: it gives for b what content_key gives for a and b."""
    begun = blake2b(_joined(first), digest_size=_KEY_BYTES)

    def key(*parts: str) -> str:
        digest = begun.copy()
        for part in parts:
            encoded = part.encode("utf-8", "surrogatepass")
            digest.update(len(encoded).to_bytes(8, "big") + encoded)
        return digest.hexdigest()

    return key


def _joined(parts: Iterable[str]) -> bytes:
    """The parts as UTF-8, each after its length in 8 bytes."""
    encoded = [part.encode("utf-8", "surrogatepass") for part in parts]
    return b"".join([piece for part in encoded for piece in (len(part).to_bytes(8, "big"), part)])
