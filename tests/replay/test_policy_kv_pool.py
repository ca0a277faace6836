"""The prefix tree against a plain account of what was stored where."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from counterplay.replay.kv_pool import PrefixTree, common_prefix

TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=12)


def encoded(tokens):
    return np.array(tokens, np.int32).tobytes()


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 40), st.lists(TOKENS, max_size=40))
def test_a_match_is_always_what_was_stored_under_that_prefix(capacity, sequences):
    tree, held = PrefixTree(capacity), {}
    for tokens in sequences:
        known = len(tree.match(encoded(tokens)))
        slots = tree.allocate(len(tokens) - known)
        assert (slots is None) == (len(tokens) - known > capacity)
        if slots is not None:
            for at, slot in enumerate(slots.tolist(), start=known):
                held[slot] = tuple(tokens[: at + 1])
            tree.insert(encoded(tokens), known, slots)
        assert 0 <= len(tree) <= capacity
        for other in sequences:
            found = tree.match(encoded(other)).tolist()
            assert len(set(found)) == len(found)
            assert [held[slot] for slot in found] == [tuple(other[: at + 1]) for at in range(len(found))]


def test_what_was_used_last_stays():
    tree = PrefixTree(8)
    for tokens in ([1, 1, 1], [2, 2, 2]):
        tree.insert(encoded(tokens), 0, tree.allocate(3))
    tree.match(encoded([1, 1, 1]))
    tree.insert(encoded([3, 3, 3]), 0, tree.allocate(3))
    assert [len(tree.match(encoded(tokens))) for tokens in ([1, 1, 1], [2, 2, 2], [3, 3, 3])] == [3, 0, 3]


def test_slots_that_were_not_needed_are_free_again():
    tree = PrefixTree(6)
    tree.insert(encoded([1, 2, 3]), 0, tree.allocate(3))
    tree.insert(encoded([1, 2, 3]), 0, tree.allocate(3))
    assert len(tree) == 3


@given(TOKENS, TOKENS)
def test_common_prefix_counts_tokens(left, right):
    wanted = next((at for at, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
    assert common_prefix(encoded(left), encoded(right)) == wanted
