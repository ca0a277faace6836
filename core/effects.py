"""What calling a tool does to the world.

`pure` depends on nothing but its arguments, `read` looks at a resource, `write` changes one, `external` reaches outside
(mail, payment) and is never repeated. What is not declared is `external`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice, product
from typing import Any, Literal, TypeAlias, cast

EffectKind: TypeAlias = Literal["pure", "read", "write", "external"]

EVERYTHING = ("*",)
"""What a call touches of which nothing is known."""

_SPELLING = re.compile(r"(pure|read|write|external)(?:\((.*)\))?", re.DOTALL)
_FIELD = re.compile(r"\{([^{}]+)\}")
_WHOLE_NUMBER = re.compile(r"[+-]?\d{1,40}(\.0+)?")
_MOST = 256


@dataclass(frozen=True, slots=True)
class Effect:
    """`resource` is an expression over the call's arguments, such as `order:{order_id}`; empty means everything there is.

    Colons make levels: `order` holds `order:17`. A call may touch several things: `account:{from}, account:{to}` names two,
    a list makes one of each element (`order:{order_ids}`), and `{user.id}` looks into an object, or into each of a list of them.
    A write changes all that it touches, and its result may depend on all of it.
    """

    kind: EffectKind = "external"
    resource: str = ""

    @classmethod
    def parse(cls, text: str) -> Effect:
        """Read `pure`, `read(order:{order_id})`, `write(books)` or `external`. Raises ValueError on anything else."""
        found = _SPELLING.fullmatch(text.strip())
        if found is None:
            msg = f"got effect {text!r}, wanted pure, read(resource), write(resource) or external"
            raise ValueError(msg)
        return cls(cast("EffectKind", found[1]), (found[2] or "").strip()).checked()

    @classmethod
    def from_mcp(cls, annotations: Mapping[str, Any], resource: str = "") -> Effect:
        """Read MCP tool annotations, under the specification's defaults: not read-only, and open to the world.

        A tool that may reach the open world and is not read-only is external. `destructiveHint` and `idempotentHint` say what
        kind of change a change is; a change they leave it. Hints are a server's word: take them from servers that you trust.
        """
        if _hint(annotations, "readOnlyHint", "read_only_hint") is True:
            return cls("read", resource)
        if _hint(annotations, "openWorldHint", "open_world_hint") is False:
            return cls("write", resource)
        return cls("external")

    def __str__(self) -> str:
        return f"{self.kind}({self.resource})" if self.resource else self.kind

    def checked(self) -> Effect:
        """This effect. Raises ValueError where its resource is no expression: a brace without its fellow, or an empty one."""
        if self.resource and _parts(self.resource) is None:
            msg = f"got resource {self.resource!r}, wanted names, colons and {{arguments}}, e.g. order:{{order_id}}"
            raise ValueError(msg)
        return self

    @property
    def fields(self) -> tuple[str, ...]:
        """The arguments that the resource is made of, e.g. `order_id` or `user.id`."""
        return tuple(dict.fromkeys(_FIELD.findall(self.resource)))

    def touches(self, arguments: Mapping[str, Any] | None) -> tuple[str, ...]:
        """The concrete resources of one call, e.g. `("order:17",)`.

        `*`, everything, where an argument is missing, empty or no plain value. Letter case, outer white space and the
        writing of whole numbers do not tell resources apart, for a tool may not either.
        """
        parts = _parts(self.resource) if self.resource else None
        if not parts or arguments is None:
            return EVERYTHING
        found: dict[str, None] = {}
        for part in parts:
            made = _concrete(part, arguments)
            if made is None:
                return EVERYTHING
            found.update(dict.fromkeys(made))
        return tuple(found) if len(found) <= _MOST else EVERYTHING


PURE = Effect("pure")
EXTERNAL = Effect("external")


def overlap(left: str, right: str) -> bool:
    """Whether two concrete resources may be the same thing. `*` overlaps all; `order` overlaps `order:17`."""
    if "*" in (left, right) or left == right:
        return True
    return left.startswith(right + ":") or right.startswith(left + ":")


def within(inner: str, outer: str) -> bool:
    """Whether `outer` holds all of the concrete resource `inner`."""
    return outer in ("*", inner) or inner.startswith(outer + ":")


def _hint(annotations: Mapping[str, Any], *names: str) -> Any:
    return next((annotations[name] for name in names if annotations.get(name) is not None), None)


@lru_cache(maxsize=4096)
def _parts(resource: str) -> tuple[str, ...] | None:
    """The comma-separated parts of an expression; None where it is none."""
    bare = _FIELD.sub("", resource)
    if "{" in bare or "}" in bare:
        return None
    return tuple(part.strip() for part in re.split(r",(?![^{]*\})", resource) if part.strip())


def _concrete(part: str, arguments: Mapping[str, Any]) -> list[str] | None:
    """The resources that one part names in one call; None where it can't be told."""
    fields = _FIELD.findall(part)
    values = [[_word(value) for value in _values(arguments, name.strip().split("."))] for name in fields]
    if any(not options or None in options for options in values):
        return None
    return [_filled(part, iter(cast("tuple[str, ...]", chosen))) for chosen in islice(product(*values), _MOST + 1)]


def _filled(part: str, words: Iterator[str]) -> str:
    return ":".join(_plain(level) for level in _FIELD.sub(lambda _: next(words), part).split(":"))


def _values(value: Any, path: list[str]) -> Iterator[Any]:
    """What stands at `path`, in each element where there is a list; an object without it gives None."""
    if isinstance(value, list | tuple):
        for each in value:
            yield from _values(each, path)
    elif not path:
        yield value
    else:
        yield from _values(value.get(path[0]), path[1:]) if isinstance(value, Mapping) else (None,)


def _word(value: Any) -> str | None:
    """A plain value as part of a name; None where it names nothing, or everything."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return _plain(str(value)) if abs(value) < float("inf") else None
    if isinstance(value, str) and value.strip() and "*" not in value:
        return value
    return None


@lru_cache(maxsize=65536)
def _plain(level: str) -> str:
    """One level of a name, in the one form that all its writings share."""
    text = unicodedata.normalize("NFKC", level).strip().casefold()
    return str(int(float(text) if "." in text else int(text))) if _WHOLE_NUMBER.fullmatch(text) else text
