"""What is taken out of a recording before it is written: keys that errors repeat, always; secrets and personal data, where asked."""

from __future__ import annotations

import os
import re
import secrets
import threading
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from counterplay.core.canonical import dumps, loads
from counterplay.core.token_ids import without_tokens
from counterplay.replay.agents.calls import named_error

if TYPE_CHECKING:
    from counterplay.connectors.redaction import Redactor

REDACTED_KEY = "[key:redacted]"

_CREDENTIALS = frozenset(("authorization", "proxy-authorization", "api-key", "x-api-key", "x-goog-api-key", "cookie"))
_SCHEMES = ("bearer", "basic", "digest")
_SHORTEST_KEY = 6
_SALT = secrets.token_bytes(16)
_SECRET_NAME = re.compile(r"(?:^|_)(?:KEY|TOKEN|SECRET|PASSWORD|CREDENTIALS)(?:$|_)", re.IGNORECASE)
_SHORTEST_SECRET = 8
_IDS = frozenset({"id", "tool_call_id", "tool_use_id", "call_id", "response_id", "item_id", "previous_response_id"})
_OURS = frozenset(
    {"counterplay", "kind", "run", "n", "at", "api", "url", "attempt", "status", "latency_s", "first_token_s", "effect", "name"}
)
_LEAST_FAILURE = 400


class Cleaner:
    """Cleans the events of tapes. Equal values become equal tokens in all that this process records.

    `kinds` is what is redacted everywhere (see `redaction_rules.KINDS`), None: nothing. Errors, and answers with a status of failure,
    which may repeat a key, are always cleaned of secrets and of what the environment holds under names such as OPENAI_API_KEY.
    """

    def __init__(self, kinds: Sequence[str] | None = None) -> None:
        """Raises UserError on an unknown kind."""
        self._kinds = kinds
        self._lock = threading.Lock()
        if kinds is not None:
            self._redactor  # noqa: B018  an unknown kind is named now

    def __call__(self, event: Mapping[str, Any]) -> Mapping[str, Any]:
        if self._kinds is not None:
            return self._everywhere(event)
        failed = event.get("status") is not None and event["status"] >= _LEAST_FAILURE
        suspect = [name for name in ("error", *(("response", "events") if failed else ())) if event.get(name) is not None]
        return {**event, **{name: self._error(event[name]) for name in suspect}} if suspect else event

    def named(self, failure: BaseException) -> str:
        """An error as recordings keep it, without secrets: so too those of the request that failed, which its errors carry."""
        text = named_error(failure)
        for word in _carried(failure):
            text = text.replace(word, REDACTED_KEY)
        return str(self._error(text))

    def _everywhere(self, event: Mapping[str, Any]) -> Mapping[str, Any]:
        found: dict[str, Any] = {}
        for name, value in event.items():
            if name in _OURS:
                found[name] = value
            elif name == "error":
                found[name] = self._error(value)
            elif name == "events":
                found.update(self._stream(value))
            else:
                found[name] = self._value(value)
        return found

    def _stream(self, text: str) -> dict[str, Any]:
        """A stream in which nothing is found as it is; else the answer that it makes up, since what is found may be cut by its chunks."""
        from counterplay.connectors.chat.streams import unwrapped

        whole, _ = unwrapped(text)
        clean = self._value(whole)
        return {"events": text} if clean == whole else {"response": clean}

    def _value(self, value: Any) -> Any:
        """Also of JSON as it stands, which stays byte for byte where nothing is found in it."""
        parsed = loads(value.decode()) if isinstance(value, bytes) else value
        with self._lock:
            clean = self._redactor.value(parsed, _IDS)
        clean = clean if clean == parsed else without_tokens(clean)
        return (value if clean == parsed else dumps(clean).encode()) if isinstance(value, bytes) else clean

    def _error(self, value: Any) -> Any:
        text = value.decode() if isinstance(value, bytes) else value
        for secret in _environment_secrets():
            text = text.replace(secret, REDACTED_KEY)
        with self._lock:
            text = self._redactor.text(text)
        return text.encode() if isinstance(value, bytes) else text

    @cached_property
    def _redactor(self) -> Redactor:
        """Made when something is to be looked through: most recordings never need it."""
        from counterplay.connectors.redaction import Redactor, rules_of

        return Redactor(_SALT, rules_of(("secrets",) if self._kinds is None else self._kinds))


def credentials(headers: Iterable[tuple[str, str]]) -> list[str]:
    """What a request was let in by, from its headers; longest first, so that none is taken for a part of another."""
    told = (value for name, value in headers if name.lower() in _CREDENTIALS)
    return _longest_first(word for value in told for word in re.split(r"[\s;=,]+", value) if word.lower() not in _SCHEMES)


def _carried(failure: BaseException) -> list[str]:
    """The credentials of the requests that an error, and those that led to it, carry: clients keep them there."""
    found: list[str] = []
    seen: set[int] = set()
    error: BaseException | None = failure
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        for holder in (error, getattr(error, "response", None)):
            kept = getattr(holder, "__dict__", {})
            headers = getattr(kept.get("request") or kept.get("_request"), "headers", {})
            found += credentials(headers.items())
        error = error.__cause__ or error.__context__
    return _longest_first(found)


def _longest_first(words: Iterable[str]) -> list[str]:
    return sorted({word for word in words if len(word) >= _SHORTEST_KEY}, key=len, reverse=True)


def _environment_secrets() -> list[str]:
    found = {value for name, value in os.environ.items() if _SECRET_NAME.search(name) and len(value) >= _SHORTEST_SECRET}
    return _longest_first(found)
