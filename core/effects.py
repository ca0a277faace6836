"""What calling a tool does to the world.

`pure` depends on nothing but its arguments, `read` looks at a resource, `write` changes one, `external` reaches outside
(mail, payment) and is never repeated. What is not declared is `external`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

EffectKind: TypeAlias = Literal["pure", "read", "write", "external"]

_SPELLING = re.compile(r"(pure|read|write|external)(?:\((.*)\))?", re.DOTALL)
_FIELD = re.compile(r"\{([^{}]+)\}")


@dataclass(frozen=True, slots=True)
class Effect:
    """`resource` is an expression over the call's arguments, such as `order:{order_id}`; empty means everything there is."""

    kind: EffectKind = "external"
    resource: str = ""

    @classmethod
    def parse(cls, text: str) -> Effect:
        """Read `pure`, `read(order:{order_id})`, `write(books)` or `external`. Raises ValueError on anything else."""
        found = _SPELLING.fullmatch(text.strip())
        if found is None:
            msg = f"got effect {text!r}, wanted pure, read(resource), write(resource) or external"
            raise ValueError(msg)
        return cls(cast("EffectKind", found[1]), (found[2] or "").strip())

    @classmethod
    def from_mcp(cls, annotations: Mapping[str, Any], resource: str = "") -> Effect:
        """Read MCP tool annotations. A tool that may reach the open world and is not read-only is external."""
        if annotations.get("readOnlyHint") is True:
            return cls("read", resource)
        if annotations.get("openWorldHint") is False:
            return cls("write", resource)
        return cls("external")

    def __str__(self) -> str:
        return f"{self.kind}({self.resource})" if self.resource else self.kind

    def touches(self, arguments: Mapping[str, Any] | None) -> str:
        """The concrete resource of one call, e.g. `order:17`. `*` is everything, used where an argument is missing."""
        if not self.resource or arguments is None:
            return "*"
        fields = _FIELD.findall(self.resource)
        if any(name not in arguments for name in fields):
            return "*"
        return _FIELD.sub(lambda m: str(arguments[m[1]]), self.resource)


PURE = Effect("pure")
EXTERNAL = Effect("external")


def overlap(left: str, right: str) -> bool:
    """Whether two concrete resources may be the same thing. `*` overlaps all; `order` overlaps `order:17`."""
    if "*" in (left, right) or left == right:
        return True
    return left.startswith(right + ":") or right.startswith(left + ":")
