"""Where effects come from: a TOML table, MCP annotations, or the decorator that makes tools of typed Python functions."""

from __future__ import annotations

import inspect
import os
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model

from counterplay.core.canonical import dumps
from counterplay.core.effects import EXTERNAL, Effect, EffectKind
from counterplay.core.errors import UserError
from counterplay.core.nouns import ToolSpec, Trajectory
from counterplay.replay.world import ToolError

F = TypeVar("F", bound=Callable[..., Any])
_MARK = "__counterplay_tool__"


class ToolEffect(BaseModel):
    """One row of a table. `resource` is an expression over the call's arguments, e.g. `order:{order_id}`; empty is everything."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    effect: EffectKind
    resource: str = ""


class EffectTable(BaseModel):
    """What each tool does to the world, by tool name. Tools that are not in it are external."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tools: dict[str, ToolEffect] = Field(default_factory=dict)

    @classmethod
    def from_toml(cls, source: str | os.PathLike[str]) -> EffectTable:
        """Read a file (a path), or TOML text (anything with a line break or a `[`):

            [tools.get_order]
            effect = "read"
            resource = "order:{order_id}"

        Raises UserError where it can't be read as a table of effects.
        """
        is_text = isinstance(source, str) and ("\n" in source or "[" in source)
        name = "the table of effects" if is_text else str(source)
        try:
            text = str(source) if is_text else Path(source).read_text(encoding="utf-8")
            return cls.model_validate(tomllib.loads(text))
        except OSError as error:
            raise UserError(f"{name} can't be read: {error.strerror}", "a TOML file") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{name} is not TOML: {error}", "[tools.NAME] with effect and resource") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise UserError(f"{name}, at {where}: {first['msg']}, got {first['input']!r}", "effect, and resource if it has one") from error

    @classmethod
    def from_mcp(cls, tools: Iterable[Mapping[str, Any]]) -> EffectTable:
        """Read the tool definitions of an MCP server's `tools/list`. What has no annotations is external."""
        rows = {}
        for definition in tools:
            effect = Effect.from_mcp(definition.get("annotations") or {})
            rows[str(definition.get("name"))] = ToolEffect(effect=effect.kind, resource=effect.resource)
        return cls(tools=rows)

    @classmethod
    def from_spellings(cls, spellings: Mapping[str, str]) -> EffectTable:
        """Read `{tool: "read(order:{order_id})"}`, as recordings keep it. Raises ValueError on another spelling."""
        effects = {name: Effect.parse(text) for name, text in spellings.items()}
        return cls(tools={name: ToolEffect(effect=effect.kind, resource=effect.resource) for name, effect in effects.items()})

    def effects(self) -> dict[str, Effect]:
        return {name: Effect(row.effect, row.resource) for name, row in self.tools.items()}

    def apply(self, tools: Iterable[ToolSpec]) -> tuple[ToolSpec, ...]:
        """The same tools with the effects of this table; those that it does not name keep their own."""
        known = self.effects()
        return tuple(replace(tool, effect=known.get(tool.name, tool.effect)) for tool in tools)

    def apply_to(self, trajectory: Trajectory) -> Trajectory:
        """The same trajectory, with the same key, under this table."""
        return replace(trajectory, tools=self.apply(trajectory.tools))


@dataclass(frozen=True)
class _Declared:
    spec: ToolSpec
    arguments: type[BaseModel]


def tool(*, effect: str | Effect = EXTERNAL, name: str | None = None) -> Callable[[F], F]:
    """Declare a typed function or method as a tool: `@tool(effect="read(order:{order_id})")`.

    Its schema comes from the annotations, its description from the docstring. Raises UserError on a parameter without annotation.
    """
    declared = Effect.parse(effect) if isinstance(effect, str) else effect

    def mark(function: F) -> F:
        title = name or function.__name__
        arguments = _argument_model(function, title)
        schema = arguments.model_json_schema()
        schema.pop("title", None)
        spec = ToolSpec.function(title, inspect.getdoc(function) or "", schema, declared)
        setattr(function, _MARK, _Declared(spec, arguments))
        return function

    return mark


def tool_specs(world: object) -> tuple[ToolSpec, ...]:
    """The tools declared on a class or an instance, in the order of their definition, base classes first."""
    return tuple(entry.spec for _, entry in _declared(world).values())


def call_tool(world: object, name: str, arguments: Mapping[str, Any]) -> str:
    """Call a declared tool with checked and converted arguments: the whole of a World's `call`.

    A text is the result as it is, anything else is rendered as JSON. Raises ToolError, for the agent to read, on an
    unknown tool and on arguments that don't fit.
    """
    found = _declared(world).get(name)
    if found is None:
        raise ToolError(f"Error: unknown tool {name!r}.")
    attribute, entry = found
    try:
        checked = entry.arguments.model_validate(dict(arguments))
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'arguments'}: {e['msg']}" for e in error.errors())
        raise ToolError(f"Error: {name} was called wrongly: {problems}") from None
    values = {field: getattr(checked, field) for field in type(checked).model_fields}
    result = getattr(world, attribute)(**values)
    return result if isinstance(result, str) else dumps(TypeAdapter(Any).dump_python(result, mode="json"))


def _declared(world: object) -> dict[str, tuple[str, _Declared]]:
    kind = world if isinstance(world, type) else type(world)
    found: dict[str, tuple[str, _Declared]] = {}
    for base in reversed(kind.__mro__):
        for attribute in vars(base):
            entry = getattr(getattr(kind, attribute, None), _MARK, None)
            if isinstance(entry, _Declared):
                found[entry.spec.name] = (attribute, entry)
    return found


def _argument_model(function: Callable[..., Any], title: str) -> type[BaseModel]:
    hints = inspect.get_annotations(function, eval_str=True)
    fields: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name == "self":
            continue
        if parameter.name not in hints:
            raise UserError(f"parameter {parameter.name!r} of tool {title} has no type", "an annotation on every parameter of a tool")
        default = ... if parameter.default is inspect.Parameter.empty else parameter.default
        fields[parameter.name] = (hints[parameter.name], default)
    return create_model(title, __config__=ConfigDict(extra="forbid"), **fields)
