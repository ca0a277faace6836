"""Effects: their spelling, the resources they touch, and what overlaps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterplay.core.effects import EXTERNAL, PURE, Effect, overlap

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
        ({}, "external"),
    ],
)
def test_mcp_annotations(annotations, kind):
    assert Effect.from_mcp(annotations).kind == kind


def test_the_resource_of_a_call():
    order = Effect("write", "order:{order_id}:{line}")
    assert order.touches({"order_id": 17, "line": "a"}) == "order:17:a"
    assert order.touches({"order_id": 17}) == "*", "a missing argument touches everything"
    assert order.touches(None) == "*"
    assert Effect("read").touches({"a": 1}) == "*"
    assert Effect("read", "books").touches({}) == "books"


@given(concrete, concrete)
def test_overlap_is_symmetric_and_follows_the_colons(left, right):
    assert overlap(left, right) == overlap(right, left)
    parts = [text.split(":") for text in (left, right)]
    shorter = min(map(len, parts))
    assert overlap(left, right) == ("*" in (left, right) or parts[0][:shorter] == parts[1][:shorter])
