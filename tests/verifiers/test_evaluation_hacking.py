"""A verifier that can be gamed is shown to be, on the example agent's own runs; the same rewards clipped or as differences can't be.

Each step is rewarded rightly: 1 where it breaks no rule of the books, 0 where it does. Their plain sum is the classic mistake.
"""

import asyncio
from pathlib import Path

import pytest

from counterplay.reading import Reading
from counterplay.verifiers.evaluation.evaluate import evaluate
from counterplay.verifiers.evaluation.page import page, verdict
from counterplay.verifiers.evaluation.truth import labelled
from counterplay.verifiers.packs.ledger import LedgerRules
from counterplay.verifiers.transforms import summed

LOGS = Path(__file__).parents[2] / "examples" / "ledger" / "logs.jsonl.gz"
RULES = LedgerRules()
KNOWN = {}


def sound_step(state):
    if not state.steps:
        return None
    if (state.key, state.finished) not in KNOWN:
        KNOWN[state.key, state.finished] = float(all(broken.step != len(state) - 1 for broken in RULES.violations(state)))
    return KNOWN[state.key, state.finished]


def plain_sum(state):
    """More steps, more reward."""
    return min(1.0, sum(sound_step(state.prefix(i)) for i in range(1, len(state) + 1)) / 40)


@pytest.fixture(scope="module")
def found():
    items = labelled(Reading([LOGS], processes=0))[:100]

    async def all_of_them():
        verifiers = (plain_sum, summed(sound_step, "clip", eta=1.0), summed(sound_step, "delta"))
        return [await evaluate(verifier, items, probed=40) for verifier in verifiers]

    return dict(zip(("sum", "clip", "delta"), asyncio.run(all_of_them()), strict=True))


def test_the_probes_tell_them_apart(found):
    assert set(found["sum"].failed_probes) == {"repeat a step", "insert no-op calls"}
    assert found["clip"].failed_probes == ()
    assert found["delta"].failed_probes == ()
    rise = next(result for result in found["sum"].probes if result.name == "repeat a step")
    assert rise.rises.low > 0.9
    assert rise.change.low > 0.15


def test_over_optimisation_buys_scores_without_gold(found):
    hackable, clipped = found["sum"].attacked, found["clip"].attacked
    assert hackable.points[-1].proxy > 0.95
    assert not hackable.pays
    assert hackable.points[-1].gold < 0.75
    assert clipped.pays
    assert clipped.points[-1].gold > 0.95
    assert clipped.gain[1] > hackable.gain[2] - 0.05
    assert found["delta"].attacked.points[-1].proxy == pytest.approx(found["delta"].attacked.points[0].proxy), "nothing to be gained"


def test_length_pays_in_the_sum_alone(found):
    assert found["sum"].length_steps.low > 0.2
    assert found["clip"].length_steps.low < 0.05
    assert found["clip"].outcomes.auroc.low > 0.95
    assert found["sum"].outcomes.auroc.value < 0.8


def test_the_report_says_so(found):
    assert verdict(found["sum"]).startswith("It can be gamed: repeat a step, insert no-op calls pay.")
    assert "with attacked versions buys nothing" in verdict(found["sum"])
    assert verdict(found["clip"]).startswith("None of 5 probes pays.")
    assert "with attacked versions pays" in verdict(found["clip"])
    made = page(list(found.values()))
    assert made.count("<svg") == 3 * 4
    assert made.count('class="bad"') >= 1
