"""Results of tools as JSON data, and back through a type. Only what comes back as it was counts as replayable."""

from __future__ import annotations

import json
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError, PydanticUndefinedAnnotation, PydanticUserError
from pydantic_core import PydanticSerializationError, to_jsonable_python

from counterplay.core.canonical import dumps, loads
from counterplay.replay.agents.ambient import Interruption, ToolAnswer

_PLAIN = (str, int, bool, type(None))


class NotRestorable(Interruption):
    """A recorded result does not fit the type that the tool's function now says it returns."""


class Type:
    """The type that results are restored through; without one, or with one that pydantic can't read, as plain JSON data."""

    def __init__(self, annotation: Any = None) -> None:
        self._adapter: TypeAdapter[Any] | None = None
        if annotation is None or annotation is Any:
            return
        try:
            self._adapter = TypeAdapter(annotation)
        except (PydanticSchemaGenerationError, PydanticUndefinedAnnotation, PydanticUserError):
            return

    def restore(self, value: Any) -> Any:
        """A new value from JSON data. Raises NotRestorable where it does not fit."""
        if isinstance(value, _PLAIN) and self._adapter is None:
            return value
        text = dumps(value)
        if self._adapter is None:
            return loads(text)
        try:
            return self._adapter.validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            raise NotRestorable(f"got the recorded result {text[:200]}, wanted one that fits the return type: {first['msg']}") from None

    def answer(self, result: Any) -> ToolAnswer:
        """What a tool gave, as it is recorded."""
        try:
            value = to_jsonable_python(result)
            json.dumps(value, allow_nan=False)
        except (PydanticSerializationError, ValueError, TypeError, RecursionError):
            return ToolAnswer(shown(result), replayable=False)
        if not self._comes_back(result, value):
            return ToolAnswer(shown(result), replayable=False)
        return ToolAnswer(value)

    def _comes_back(self, result: Any, value: Any) -> bool:
        if type(result) in _PLAIN and self._adapter is None:
            return True
        try:
            restored = self.restore(value)
            if self._adapter is None:
                return _same(restored, result)
            return type(restored) is type(result) and dumps(to_jsonable_python(restored)) == dumps(value)
        except (NotRestorable, PydanticSerializationError, ValueError, TypeError):
            return False


def _same(left: Any, right: Any) -> bool:
    """Equal, and of the same types all the way down: an enum's member equals its text and is not one."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(_same(value, right[key]) for key, value in left.items())
    if isinstance(left, list):
        return len(left) == len(right) and all(map(_same, left, right))
    return bool(left == right)


def shown(value: Any) -> str:
    """A value that is no JSON data, for people to read."""
    try:
        return repr(value)
    except Exception as error:  # noqa: BLE001  the agent's own class: its failure to show itself is not the agent's
        return f"<{type(value).__name__}: {error!r}>"


def plain(value: Any) -> Any:
    """An argument as JSON data; what is none is named by its type, for its text may differ each time."""
    return to_jsonable_python(value, fallback=lambda odd: f"<{type(odd).__name__}>", serialize_unknown=True)
