"""A real server and a model that was never taught to judge: it ignores structured output, seeds and log-probabilities."""

from pathlib import Path

import pytest

from counterplay.core.errors import VerifierError
from counterplay.core.journal import ask_all
from counterplay.verifiers.judges import ChatModel, Judge, TypedJudge
from tests.serving import serving
from tests.verifiers.judging import GOOD, attempt, said

MODEL = Path(__file__).parents[2] / "examples" / "ledger" / "model"


async def test_a_model_that_can_t_judge_gives_errors_and_no_numbers(tmp_path):
    with serving(tmp_path / "log") as url:
        async with ChatModel(str(MODEL), base_url=url, max_tokens=12, retries=0) as model:
            found = [
                *await ask_all(Judge(model), [GOOD, attempt(said("I have no idea."))]),
                *await ask_all(TypedJudge(model), [GOOD]),
            ]
    assert all(isinstance(each, VerifierError) for each in found)
    assert "no judgement that can be read" in str(found[0])
    assert "no answer that can be read" in str(found[2])
    assert (model.tally.calls, model.tally.repairs, model.tally.failures, model.tally.unmetered) == (6, 3, 0, 0)
    assert model.tally.usage.input_tokens > 6 * 200
    assert 6 <= model.tally.usage.output_tokens <= 6 * 12


@pytest.mark.parametrize("kind", [Judge, TypedJudge])
async def test_a_server_that_is_not_there_is_an_error(kind):
    async with ChatModel("m", base_url="http://127.0.0.1:9/v1", retries=0) as model:
        (found,) = await ask_all(kind(model), [GOOD])
    assert isinstance(found, VerifierError)
    assert model.tally.failures == 1
