"""Effects from tables, annotations and typed functions."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest

from counterplay.core.effects import EXTERNAL, Effect
from counterplay.core.errors import UserError
from counterplay.core.nouns import Message, ToolSpec, Trajectory
from counterplay.replay.effects import EffectTable, call_tool, tool, tool_specs
from counterplay.replay.testing import check_world
from counterplay.replay.world import ToolError, World
from tests.replay.shelf import Shelf

TABLE = '[tools.get_order]\neffect = "read"\nresource = "order:{order_id}"\n[tools.mail]\neffect = "external"\n'


def test_a_table_from_text_or_file(tmp_path):
    (tmp_path / "e.toml").write_text(TABLE)
    for source in (TABLE, tmp_path / "e.toml", str(tmp_path / "e.toml")):
        effects = EffectTable.from_toml(source).effects()
        assert effects == {"get_order": Effect("read", "order:{order_id}"), "mail": EXTERNAL}


@pytest.mark.parametrize(
    "table",
    [
        '[[tool]]\nname = "get_order"\neffect = "read"\nresource = "order:{order_id}"\n[[tool]]\nname = "mail"\neffect = "external"',
        '[tools]\nget_order = "read(order:{order_id})"\nmail = "external"',
        '[tools]\nmail = "external"\n[[tool]]\nname = "get_order"\neffect = "read(order:{order_id})"',
        '[tools.mail]\neffect = "external"\n[tools.get_order]\neffect = "read"\nresource = ["order:{order_id}"]',
    ],
)
def test_a_table_may_be_written_in_rows_in_one_line_or_with_a_list_of_resources(table):
    assert EffectTable.from_toml(table) == EffectTable.from_toml(TABLE)


def test_a_tool_may_touch_several_things():
    table = EffectTable.from_toml('[tools.move]\neffect = "write"\nresource = ["account:{source}", "account:{target}"]')
    assert table.effects()["move"].touches({"source": 1, "target": 2}) == ("account:1", "account:2")


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("[tools.x]\neffect = 'read'\nresource = 'order:{id'", r"tools\.x\.resource: got resource 'order:\{id'"),
        ("[tools]\nx = 'reads(y)'", r"tools\.x: got effect 'reads\(y\)'"),
        ("[tools.x]\neffect = 'read(a)'\nresource = 'b'", "a resource is given twice"),
        ("[tools.x]\neffect = 'read'\nresource = [1]", r"tools\.x\.resource.*valid string"),
        ("[[tool]]\neffect = 'read'", r"row 1 of \[\[tool\]\] names no tool"),
        ("[[tool]]\nname = 'x'\neffect = 'read'\n[[tool]]\nname = 'x'\neffect = 'write'", "tool x is given twice"),
        ("[[tool]]\nname = 'x'\neffect = 'red'", r"tools\.x\.effect.*'red'"),
        ("tools = 3\n", "tools.*valid dictionary"),
        ("[tools.x]\neffect = 'reads'", r"tools\.x\.effect.*'reads'"),
        ("[tools.x]\neffect = 'read'\nresourse = 'x'", "resourse"),
        ("[tools.x]\nresource = 'x'", "Field required"),
        ("[tool.x]\neffect = 'read'", "tool"),
        ("[tools", "not TOML"),
        ("nowhere.toml", "can't be read"),
    ],
)
def test_bad_tables_say_where(source, complaint):
    with pytest.raises(UserError, match=complaint):
        EffectTable.from_toml(source)


def test_mcp_annotations():
    tools = [
        {"name": "look", "annotations": {"readOnlyHint": True}},
        {"name": "keep", "annotations": {"readOnlyHint": False, "openWorldHint": False}},
        {"name": "send", "annotations": {"openWorldHint": True}},
        {"name": "unknown"},
    ]
    kinds = {name: effect.kind for name, effect in EffectTable.from_mcp(tools).effects().items()}
    assert kinds == {"look": "read", "keep": "write", "send": "external", "unknown": "external"}


def test_applying_a_table_keeps_the_key_and_the_other_effects():
    tools = (ToolSpec.function("get_order", "", {}), ToolSpec.function("other", "", {}, Effect("pure")))
    log = Trajectory(tools, (Message.user("x"),))
    better = EffectTable.from_toml(TABLE).apply_to(log)
    assert better.key == log.key
    assert [str(t.effect) for t in better.tools] == ["read(order:{order_id})", "pure"]
    assert EffectTable.from_spellings({"a": "read(b:{c})"}).effects() == {"a": Effect("read", "b:{c}")}


def test_the_decorator_takes_the_resource_beside_the_effect_or_within_it():
    @tool(effect="read", resource="order:{order_id}")
    def beside(self, order_id: int) -> str: ...

    @tool(effect="read(order:{order_id})")
    def within(self, order_id: int) -> str: ...

    @tool(effect=Effect("write"), resource=["order:{order.id}", "user:{user_id}"])
    def several(self, order: dict[str, int], user_id: str) -> str: ...

    class World:
        first, second, third = beside, within, several

    effects = [str(each.effect) for each in tool_specs(World)]
    assert effects == ["read(order:{order_id})", "read(order:{order_id})", "write(order:{order.id}, user:{user_id})"]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"effect": "reads"}, "got effect 'reads'"),
        ({"effect": "read(a)", "resource": "b"}, "a resource twice"),
        ({"effect": "read", "resource": "order:{ordr_id}"}, "'ordr_id', which is no argument.*order_id"),
        ({"effect": "read", "resource": "order:{order_id"}, "wanted names, colons"),
    ],
)
def test_a_declaration_that_could_never_hold_is_refused_where_it_is_made(options, complaint):
    with pytest.raises(UserError, match=complaint):

        @tool(**options)
        def get_order(self, order_id: int) -> str: ...


class Orders:
    """Orders by id."""

    prompt = (Message.user("Look after the orders."),)

    def __init__(self) -> None:
        self.orders: dict[int, str] = {1: "open"}
        self.tools = tool_specs(self)

    @tool(effect="read(order:{order_id})")
    def get_order(self, order_id: int) -> str:
        """The state of an order."""
        if order_id not in self.orders:
            raise ToolError(f"no order {order_id}")
        return self.orders[order_id]

    @tool(effect="write(order:{order_id})", name="set")
    def set_order(self, order_id: int, state: Literal["open", "paid"] = "paid", notes: list[str] | None = None) -> dict[int, str]:
        self.orders[order_id] = state + "".join(notes or [])
        return self.orders

    @tool()
    def mail(self) -> None: ...

    def call(self, name, arguments) -> str:
        return call_tool(self, name, arguments)


def test_typed_functions_are_tools():
    get, put, mail = tool_specs(Orders)
    assert get.parameters == {
        "additionalProperties": False,
        "properties": {"order_id": {"title": "Order Id", "type": "integer"}},
        "required": ["order_id"],
        "type": "object",
    }
    assert (get.name, str(get.effect), get.fields["function"]["description"]) == (
        "get_order",
        "read(order:{order_id})",
        "The state of an order.",
    )
    assert put.parameters["properties"]["state"]["enum"] == ["open", "paid"]
    assert put.name == "set"
    assert mail.effect == EXTERNAL
    assert isinstance(Orders(), World)


def test_calls_are_checked_and_rendered():
    world = Orders()
    assert call_tool(world, "get_order", {"order_id": 1}) == "open"
    assert call_tool(world, "set", {"order_id": 1}) == '{"1":"paid"}'
    for name, arguments, complaint in [
        ("set", {"order_id": "x"}, "order_id: Input should be a valid integer"),
        ("set", {"order_id": 1, "state": "lost"}, "state"),
        ("set", {"order_id": 1, "more": 1}, "more"),
        ("set", {}, "Field required"),
        ("get_order", {"order_id": 7}, "no order 7"),
        ("drop", {}, "unknown tool"),
    ]:
        with pytest.raises(ToolError, match=complaint):
            call_tool(world, name, arguments)
    assert check_world(Orders, [("get_order", {"order_id": 1}), ("set", {"order_id": 1}), ("get_order", {"order_id": 1})]).calls > 6


def test_a_parameter_without_a_type_is_refused():
    with pytest.raises(UserError, match="no type"):

        @tool()
        def bad(x): ...


def test_effects_of_a_base_class_come_first_and_an_override_wins():
    class More(Orders):
        @tool(effect="pure")
        def get_order(self, order_id: int) -> str:
            """Always new."""
            return "new"

        @tool(effect="read")
        def count(self) -> int:
            return len(self.orders)

    assert [t.name for t in tool_specs(More)] == ["get_order", "set", "mail", "count"]
    assert call_tool(More(), "get_order", {"order_id": 5}) == "new"
    assert call_tool(More(), "count", {}) == "1"
    assert replace(tool_specs(More)[0]).effect.kind == "pure"
    assert tool_specs(Shelf) == ()
