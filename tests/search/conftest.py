import pytest

from tests.search.game import Game


@pytest.fixture
def game() -> Game:
    return Game()
