"""Log-probabilities of logged actions are those that the policy itself gave when it took them."""

import math
from dataclasses import replace

import pytest

from counterplay.core.errors import UserError
from counterplay.core.nouns import Message, Step, Trajectory
from counterplay.examples.ledger.world import Ledger
from counterplay.finetune.action_logprobs import ActionScorer
from counterplay.replay.live import LiveEnvironment
from counterplay.replay.transformers_policy import TransformersPolicy
from tests.replay.tiny_model import NUMBERED, make_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def example():
    from pathlib import Path

    return Path(__file__).parents[2] / "examples" / "ledger" / "model"


async def test_they_are_what_the_policy_said_when_it_acted(example):
    policy, runs = TransformersPolicy(example, max_new_tokens=64, seed=3), []
    for number in (1, 3):
        environment = LiveEnvironment(lambda number=number: Ledger(f"heldout-{number:04d}"), max_steps=6)
        state, said = await environment.initial(), []
        while not state.finished:
            (proposal,) = await policy.propose(state, 1)
            said.append(proposal.logprob)
            state = state.extend(await environment.step(state, proposal.action))
        runs.append((state, said))
    policy.close()
    found = ActionScorer(example)([state for state, _ in runs])
    for (_, said), scores in zip(runs, found, strict=True):
        assert scores == pytest.approx(said, abs=1e-4)
    cooler = ActionScorer(example, temperature=0.5)([runs[0][0]])[0]
    assert sum(cooler) > sum(found[0])


def test_temperature_divides_the_logits(folder):
    """By hand, on a random model: the sum over tokens of log softmax(logits / T)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    state = Trajectory((), (Message.user("find a book"),), (Step(Message.assistant("order"), terminated=True),))
    ids = tokenizer.apply_chat_template([m.to_openai() for m in state.messages], return_dict=False)
    sent = tokenizer.apply_chat_template([m.to_openai() for m in state.prompt], add_generation_prompt=True, return_dict=False)
    assert ids[: len(sent)] == sent
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0].float() / 2.0
    while not tokenizer.decode(ids[-1:]).strip():
        ids = ids[:-1]
    wanted = sum(float(logits[at - 1].log_softmax(-1)[ids[at]]) for at in range(len(sent), len(ids)))
    assert ActionScorer(folder, temperature=2.0)([state])[0][0] == pytest.approx(wanted, abs=1e-3)


def test_many_at_once_is_one_by_one_and_what_was_not_sampled_has_none(folder):
    steps = tuple(Step(Message.assistant("order " * (i + 1)), (Message.user("and then?"),), sampled=i != 1) for i in range(4))
    states = [Trajectory((), (Message.user("find " * n),), steps[:n]) for n in (1, 4, 2, 0)]
    scorer = ActionScorer(folder)
    together = scorer(states)
    assert [len(row) for row in together] == [1, 4, 2, 0]
    assert together[1][1] is None
    for state, row in zip(states, together, strict=True):
        assert [score for score in scorer([state])[0] if score is not None] == pytest.approx(
            [score for score in row if score is not None], abs=1e-4
        )
    assert all(math.isfinite(score) and score < 0 for row in together for score in row if score is not None)
    assert together[1][0] == pytest.approx(scorer([replace(states[1], steps=steps[:1])])[0][0], abs=1e-4)


def test_what_cannot_be_scored_is_refused(folder, tmp_path):
    with pytest.raises(UserError, match="above 0"):
        ActionScorer(folder, temperature=0.0)
    with pytest.raises(UserError, match=r"config\.json"):
        ActionScorer(tmp_path)
    numbered = make_folder(tmp_path / "numbered", template=NUMBERED)
    steps = tuple(Step(Message.assistant("order"), (Message.user("and then?"),)) for _ in range(2))
    with pytest.raises(UserError, match="rewrites earlier messages"):
        ActionScorer(numbered)([Trajectory((), (Message.user("find"),), steps)])
