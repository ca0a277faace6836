"""Effects: their spelling, the resources they touch, and what overlaps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterplay.core.effects import EXTERNAL, PURE, Effect, overlap, within

resources = st.text(st.characters(codec="ascii", exclude_characters="{}"), max_size=10).map(str.strip)
concrete = st.sampled_from(["*", "a", "a:1", "a:1:x", "a:2", "b", "ab"])


@given(st.sampled_from(["pure", "read", "write", "external"]), resources)
def test_spelling_reads_back(kind, resource):
    assert Effect.parse(str(Effect(kind, resource))) == Effect(kind, resource)


def test_constants_and_default():
    assert Effect() == EXTERNAL == Effect.parse(" external ")
    assert Effect.parse("pure") == PURE


@pytest.mark.parametrize("text", ["", "reads(x)", "read(x", "read x", "pure)", "Read(x)"])
def test_other_spellings_are_errors(text):
    with pytest.raises(ValueError, match="wanted pure, read"):
        Effect.parse(text)


@pytest.mark.parametrize(
    ("annotations", "kind"),
    [
        ({"readOnlyHint": True}, "read"),
        ({"readOnlyHint": True, "openWorldHint": True}, "read"),
        ({"openWorldHint": False}, "write"),
        ({"readOnlyHint": False, "openWorldHint": False, "destructiveHint": False}, "write"),
        ({"readOnlyHint": False}, "external"),
        ({"readOnlyHint": "true"}, "external"),
        ({"readOnlyHint": True, "destructiveHint": True}, "read"),
        ({"idempotentHint": True, "destructiveHint": False}, "external"),
        ({"openWorldHint": False, "destructiveHint": True, "idempotentHint": True}, "write"),
        ({"read_only_hint": True, "readOnlyHint": None}, "read"),
        ({"open_world_hint": False}, "write"),
        ({}, "external"),
    ],
)
def test_mcp_annotations(annotations, kind):
    assert Effect.from_mcp(annotations).kind == kind


def test_the_resource_of_a_call():
    order = Effect("write", "order:{order_id}:{line}")
    assert order.touches({"order_id": 17, "line": "a"}) == ("order:17:a",)
    assert order.touches({"order_id": 17}) == ("*",), "a missing argument touches everything"
    assert order.touches(None) == ("*",)
    assert Effect("read").touches({"a": 1}) == ("*",)
    assert Effect("read", "books").touches({}) == ("books",)


@pytest.mark.parametrize(
    ("resource", "arguments", "wanted"),
    [
        ("account:{from}, account:{to}", {"from": "A", "to": "b"}, ("account:a", "account:b")),
        ("order:{ids}", {"ids": [1, "2", 1]}, ("order:1", "order:2")),
        ("user:{user.id}", {"user": {"id": "U1"}}, ("user:u1",)),
        ("flight:{flights.no}:{flights.day}", {"flights": [{"no": 1, "day": 5}]}, ("flight:1:5",)),
        ("flight:{flights.no}", {"flights": [{"no": 1}, {"no": 2}]}, ("flight:1", "flight:2")),
        ("flight:{flights.no}", {"flights": [{"no": 1}, {}]}, ("*",)),
        ("seat:{rows}:{letters}", {"rows": [1, 2], "letters": ["a", "b"]}, ("seat:1:a", "seat:1:b", "seat:2:a", "seat:2:b")),
        ("a:{x}, b", {"x": 1}, ("a:1", "b")),
        ("a:{x}", {"x": list(range(1000))}, ("*",)),
        ("a:{x}:{y}", {"x": list(range(100)), "y": list(range(100))}, ("*",)),
        ("a:{x", {"x": 1}, ("*",)),
        (",", {}, ("*",)),
    ],
)
def test_a_call_may_touch_several_things(resource, arguments, wanted):
    assert Effect("write", resource).touches(arguments) == wanted


@pytest.mark.parametrize("value", [None, "", "  ", [], {}, {"id": 1}, "*", "a*", [1, None], float("nan"), float("inf")])
def test_what_names_nothing_touches_everything(value):
    assert Effect("read", "order:{id}").touches({"id": value}) == ("*",)


@pytest.mark.parametrize(
    ("one", "other"), [(17, "17"), (17, 17.0), ("W1", " w1 "), ("007", 7), ("17.0", 17), (True, "TRUE"), ("é", "e\u0301"), ("\uff21", "a")]
)
def test_two_writings_of_one_name_are_one_resource(one, other):
    order = Effect("read", "Order : {id}")
    assert order.touches({"id": one}) == order.touches({"id": other})
    assert overlap(order.touches({"id": one})[0], "order")


def test_colons_in_a_value_never_hide_an_overlap():
    assert overlap(*Effect("read", "file:{p}").touches({"p": "a:b"}), *Effect("read", "file:{p}:{q}").touches({"p": "a", "q": "b"}))


@pytest.mark.parametrize("text", ["read(order:{order_id)", "write(order:})", "read({})", "external({{x}})"])
def test_a_resource_with_a_lone_brace_is_an_error(text):
    with pytest.raises(ValueError, match="wanted names, colons"):
        Effect.parse(text)


def test_the_arguments_of_a_resource():
    assert Effect("read", "a:{x}:{y.z}, b:{x}").fields == ("x", "y.z")


@given(concrete, concrete)
def test_overlap_is_symmetric_and_follows_the_colons(left, right):
    assert overlap(left, right) == overlap(right, left)
    parts = [text.split(":") for text in (left, right)]
    shorter = min(map(len, parts))
    assert overlap(left, right) == ("*" in (left, right) or parts[0][:shorter] == parts[1][:shorter])


@given(concrete, concrete)
def test_what_lies_within_overlaps_and_two_that_hold_each_other_are_one(inner, outer):
    if within(inner, outer):
        assert overlap(inner, outer)
        assert not within(outer, inner) or inner == outer
