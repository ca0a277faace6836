"""Where effects come from: a TOML table, MCP annotations, or the decorator that makes tools of typed Python functions."""

from __future__ import annotations

import inspect
import os
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model, field_validator, model_validator

from counterplay.core.canonical import dumps
from counterplay.core.effects import EXTERNAL, Effect, EffectKind
from counterplay.core.errors import UserError
from counterplay.core.nouns import ToolSpec, Trajectory
from counterplay.replay.agents.functions import MARK, watched
from counterplay.replay.world import ToolError

F = TypeVar("F", bound=Callable[..., Any])


class ToolEffect(BaseModel):
    """One row of a table. `resource` is an expression over the call's arguments, e.g. `order:{order_id}`; empty is everything.

    Also read: the spelling `read(order:{order_id})`, alone or as `effect`, and a list of resources for a tool that touches several.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    effect: EffectKind
    resource: str = ""

    @model_validator(mode="before")
    @classmethod
    def _spelled(cls, row: Any) -> Any:
        fields = {"effect": row} if isinstance(row, str) else row
        if not isinstance(fields, Mapping):
            return row
        effect, resource = fields.get("effect"), fields.get("resource")
        if isinstance(effect, str) and "(" in effect:
            parsed = Effect.parse(effect)
            if resource:
                raise ValueError(f"a resource is given twice, in {effect!r} and in {resource!r}")
            effect, resource = parsed.kind, parsed.resource
        if isinstance(resource, list) and all(isinstance(each, str) for each in resource):
            resource = ", ".join(resource)
        given = {name: value for name, value in (("effect", effect), ("resource", resource)) if value is not None}
        return {**fields, **given}

    @field_validator("resource")
    @classmethod
    def _expression(cls, resource: str) -> str:
        return Effect("read", resource).checked().resource


class EffectTable(BaseModel):
    """What each tool does to the world, by tool name. Tools that are not in it are external."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tools: dict[str, ToolEffect] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _rows(cls, table: Any) -> Any:
        """Fold rows (`[[tool]]` with a name) into the table by name."""
        if not isinstance(table, Mapping) or not isinstance(table.get("tool"), list):
            return table
        tools = dict(table.get("tools") or {})
        for number, row in enumerate(table["tool"], 1):
            name = row.get("name") if isinstance(row, Mapping) else None
            if not isinstance(name, str) or not name:
                raise ValueError(f"row {number} of [[tool]] names no tool: it needs name, effect and, if it has one, resource")
            if name in tools:
                raise ValueError(f"tool {name} is given twice")
            tools[name] = {key: value for key, value in row.items() if key != "name"}
        return {**{key: value for key, value in table.items() if key != "tool"}, "tools": tools}

    @classmethod
    def from_toml(cls, source: str | os.PathLike[str]) -> EffectTable:
        """Read a file (a path), or TOML text (anything with a line break or a `[`):

            [tools.get_order]
            effect = "read"
            resource = "order:{order_id}"

        or, as rows: `[[tool]]` with `name`, `effect` and `resource`. Raises UserError where it can't be read as a table of effects.
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
            where = f", at {'.'.join(map(str, first['loc']))}" if first["loc"] else ""
            what = first["msg"].removeprefix("Value error, ")
            got = "" if first["type"] == "value_error" else f", got {first['input']!r}"
            raise UserError(f"{name}{where}: {what}{got}", "effect, and resource if it has one") from error

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


def tool(*, effect: str | Effect = EXTERNAL, resource: str | Sequence[str] = "", name: str | None = None) -> Callable[[F], F]:
    """Declare a typed function or method as a tool: `@tool(effect="read", resource="order:{order_id}")`.

    `effect="read(order:{order_id})"` says the same in one; a list of resources is for a tool that touches several.
    Its schema comes from the annotations, its description from the docstring. Raises UserError on a parameter without annotation,
    on an effect that can't be read, on a resource made of an argument that the tool does not have, and on a generator function.
    Called inside of a recorded or re-enacted run, the tool is seen, and may be answered in place; elsewhere it is as it was.
    """
    declared = _declared_effect(effect, resource)

    def mark(function: F) -> F:
        title = name or function.__name__
        arguments = _argument_model(function, title)
        _check_fields(declared, arguments, title)
        schema = arguments.model_json_schema()
        schema.pop("title", None)
        spec = ToolSpec.function(title, inspect.getdoc(function) or "", schema, declared)
        seen = watched(function, title, declared)
        setattr(seen, MARK, _Declared(spec, arguments))
        return seen

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
            entry = getattr(getattr(kind, attribute, None), MARK, None)
            if isinstance(entry, _Declared):
                found[entry.spec.name] = (attribute, entry)
    return found


def _declared_effect(effect: str | Effect, resource: str | Sequence[str]) -> Effect:
    """One effect of the two arguments of `tool`."""
    expression = resource if isinstance(resource, str) else ", ".join(resource)
    wanted = "an effect, and a resource if it has one"
    try:
        declared = Effect.parse(effect) if isinstance(effect, str) else effect
        if declared.resource and expression:
            raise UserError(f"got a resource twice, in {str(declared)!r} and in {expression!r}", wanted)
        return (replace(declared, resource=expression) if expression else declared).checked()
    except ValueError as error:
        raise UserError(str(error), wanted) from error


def _check_fields(declared: Effect, arguments: type[BaseModel], title: str) -> None:
    unknown = [field for field in declared.fields if field.partition(".")[0].strip() not in arguments.model_fields]
    if unknown:
        known = ", ".join(arguments.model_fields) or "none"
        raise UserError(f"the resource of tool {title} names {unknown[0]!r}, which is no argument of it", f"one of its arguments: {known}")


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
