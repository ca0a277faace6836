"""JSON text and content keys."""

import json
from hashlib import blake2b

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from counterplay.core.canonical import canonical, chain_key, content_key, dumps, loads
from tests.core.generated import jsons, texts

parts = st.lists(st.text(st.characters(codec="utf-8"), max_size=8), max_size=4)


@given(jsons)
@example(10**40)
@example({"b": None, "a": "\udc80"})
@example([1.0, 1e400, -0.0, 0.1])
def test_dumps_keeps_value_and_order_and_fits_utf_8(value):
    text = dumps(value)
    assert loads(text) == value
    assert json.dumps(loads(text)) == json.dumps(value), "key order too"
    assert loads(text.encode().decode()) == value
    assert "\n" not in text


def test_dumps_leaves_readable_text_readable():
    assert dumps({"a": "é 💰"}) == '{"a":"é 💰"}'
    assert dumps("\ud800é") == '"\\ud800\\u00e9"', "only where UTF-8 can't hold it is everything escaped"


@given(st.dictionaries(texts, jsons, max_size=4), st.randoms())
def test_canonical_ignores_key_order_alone(value, rng):
    shuffled = dict(rng.sample(list(value.items()), len(value)))
    assert canonical(shuffled) == canonical(value)
    assert loads(canonical(value)) == value


def test_canonical_tells_values_apart():
    different = [None, 0, "0", "", [], {}, [0], {"a": None}, {"a": 0}, False, 0.0]
    assert len({canonical(value) for value in different}) == len(different)


@given(parts, parts)
def test_chain_key_is_the_same_however_it_is_reached(first, second):
    assert chain_key(chain_key("", *first), *second) == chain_key("", *first, *second) or not first
    key = chain_key("", "root")
    assert chain_key(chain_key(key, *first), *second) == chain_key(key, *first, *second)


def test_the_root_key_is_a_key_of_its_own_and_does_not_chain_as_empty():
    assert chain_key("") == blake2b(b"", digest_size=16).hexdigest()
    assert chain_key("", "a") != chain_key(chain_key(""), "a")
    assert chain_key("k") == "k"


@given(st.lists(parts, min_size=2, max_size=2, unique_by=tuple))
def test_different_parts_give_different_keys(pair):
    left, right = pair
    assert chain_key("", *left) != chain_key("", *right)
    assert content_key(*left) != content_key(*right)


@pytest.mark.parametrize(
    ("left", "right"), [(("ab", "c"), ("a", "bc")), (("a", ""), ("a",)), (("a", "b"), ("b", "a")), (("a\nb",), ("a", "b"))]
)
def test_boundaries_between_parts_count(left, right):
    assert content_key(*left) != content_key(*right)
    assert chain_key("", *left) != chain_key("", *right)


@given(parts)
def test_keys_are_32_hex_digits(some):
    assert all(len(key) == 32 and set(key) <= set("0123456789abcdef") for key in (chain_key("", *some), content_key(*some)))
