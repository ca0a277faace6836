"""Every pack under the check that verifier authors run in their own tests, on hostile and on real trajectories."""

import pytest

from counterplay.verifiers.packs.ledger_books import DoubleEntry
from counterplay.verifiers.packs.length import CosineLength, Repetition
from counterplay.verifiers.packs.maths import MathAnswer
from counterplay.verifiers.packs.policy import PolicyRules
from counterplay.verifiers.packs.state import LastAnswer, StateMatch
from counterplay.verifiers.packs.text import Citations, Grounded, Similarity
from counterplay.verifiers.packs.tools import ToolUse
from counterplay.verifiers.testing import check_verifier
from tests.verifiers.pack_shapes import ROOT, airline_runs

PACKS = [
    ToolUse(most=(("*", 20),)),
    PolicyRules.from_toml(ROOT / "examples/packs/airline.toml"),
    DoubleEntry.from_toml(ROOT / "examples/packs/books.toml"),
    MathAnswer("3"),
    Grounded(arguments=True),
    Citations(),
    Similarity("Thank you."),
    StateMatch({}, LastAnswer("get_user_details")),
    CosineLength(Similarity("Thank you."), 500),
    Repetition(),
]


@pytest.mark.parametrize("pack", PACKS, ids=lambda pack: pack.name)
def test_every_pack_is_fit_for_use(pack):
    report = check_verifier(pack, huge=pack.name != "math")
    assert report.problems == ()
    assert report.name == pack.name


@pytest.mark.parametrize("pack", [pack for pack in PACKS if pack.name != "math"], ids=lambda pack: pack.name)
def test_and_on_real_runs(pack):
    report = check_verifier(pack, [state for state, _ in airline_runs()[:4]], huge=False)
    assert report.opinions > 0
