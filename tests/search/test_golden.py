"""Golden trees: JSON that carries its own configuration. Floats may differ in the last places, nothing else."""

import json
from pathlib import Path

import pytest

from counterplay.search.registry import SEARCHES
from tests.search.regenerate_golden import CASES, grow

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.json"))


def same(left: object, right: object, where: str = "tree") -> None:
    if isinstance(left, dict) and isinstance(right, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            same(left[key], right[key], f"{where}.{key}")
    elif isinstance(left, list) and isinstance(right, list):
        assert len(left) == len(right), where
        for i, (a, b) in enumerate(zip(left, right, strict=True)):
            same(a, b, f"{where}[{i}]")
    elif isinstance(left, float) or isinstance(right, float):
        assert left == pytest.approx(right, rel=1e-9), where
    else:
        assert left == right, where


@pytest.mark.parametrize("file", GOLDEN, ids=lambda file: file.stem)
async def test_the_tree_is_the_golden_one(file):
    golden = json.loads(file.read_text())
    same(await grow(golden["case"]), golden["tree"])


def test_every_search_has_a_golden_tree():
    assert {case["search"] for case in CASES.values()} == set(SEARCHES)


def test_every_case_has_its_file():
    assert {file.stem for file in GOLDEN} == set(CASES)
    assert all(json.loads(file.read_text())["case"] == CASES[file.stem] for file in GOLDEN)
