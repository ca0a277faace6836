"""The counts of `shelf` start at zero in each test."""

import pytest

from tests.replay.shelf import Shelf


@pytest.fixture(autouse=True)
def _fresh_counts() -> None:
    Shelf.executed.clear()
    Shelf.made.clear()
