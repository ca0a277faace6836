"""Reward models by TRL's own trainer: margins in the loss, and a folder that is a verifier."""

import pytest

from counterplay.core.errors import UserError
from counterplay.core.nouns import Message, Step, Trajectory
from counterplay.finetune.reward import RewardRow
from counterplay.finetune.rows import Lineage
from counterplay.finetune.train import train_reward
from counterplay.finetune.write import write_dataset
from counterplay.verifiers.learned import load
from tests.finetune.trainings import ALL, KilledError, killing_at, same_weights, weights


def line(kit, i, amount):
    state = kit.state(f"t{i}").extend(kit.step(kit.call("refund", "r", order=7, amount=amount), "ok", call_id="r"))
    return state.extend(
        Step(Message.assistant("Done." if amount == 5 else "The amount of the order."), terminated=True, reward=float(amount == 5))
    )


def rows(kit, count=6, margin=0.5):
    made = []
    for i in range(count):
        good, bad = line(kit, i, 5), line(kit, i, 50)
        sides = (state.messages[2:] for state in (good, bad))
        made.append(
            RewardRow(
                good.messages[:2], *sides, tools=kit.tools, margin=margin, trained=((True, False, True),) * 2, lineage=Lineage(task=f"t{i}")
            )
        )
    return made


@pytest.fixture(scope="module")
def pairs(kit, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "reward"
    write_dataset(rows(kit), folder, split=ALL)
    return folder


def test_a_reward_model_is_a_verifier(model_dir, pairs, kit, tmp_path):
    from transformers import AutoModelForSequenceClassification

    seen = []
    report = train_reward(model_dir, pairs, tmp_path / "out", epochs=8, learning_rate=1e-2, batch_size=3, on_step=seen.append)
    assert seen[0].loss > seen[-1].loss
    assert report.metrics["accuracy"] == 1.0
    assert type(AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")).__name__ == "Qwen3ForSequenceClassification"
    verifier = load(f"prm:{tmp_path / 'out'}")
    good, bad = line(kit, 77, 5), line(kit, 77, 50)
    right, wrong = verifier.batch([good, bad])
    assert verifier.name == "orm"
    assert right.value > wrong.value + 0.2
    assert verifier(good.prefix(1)) is None, "no opinion on what is not finished"


def test_training_reads_where_the_verifier_reads(model_dir, pairs, kit, tmp_path):
    """The verifier's value is the sigmoid of what transformers' own classification model says of the training row."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from counterplay.finetune.training.reward import _ids
    from counterplay.finetune.write import read_dataset
    from counterplay.verifiers.learned.rendering import StepRenderer

    train_reward(model_dir, pairs, tmp_path / "out", steps=2, learning_rate=1e-2)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    _, (record, *_) = read_dataset(pairs)
    ids = _ids(StepRenderer(AutoTokenizer.from_pretrained(tmp_path / "out")), record, "chosen")
    with torch.no_grad():
        wanted = model(input_ids=torch.tensor([ids])).logits[0, 0].sigmoid().item()
    number = int(record["task"][1:])
    assert load(f"prm:{tmp_path / 'out'}")(line(kit, number, 5)).value == pytest.approx(wanted, abs=1e-5)


def test_the_margin_is_in_the_loss(model_dir, kit, tmp_path):
    """-log sigmoid(r - r' - m): with a head of the same seed, rewards alike and other margins, the losses differ as the formula says."""
    import math

    found = {}
    for margin in (0.0, 2.0):
        write_dataset(rows(kit, margin=margin), tmp_path / f"data-{margin}", split=ALL)
        seen = []
        train_reward(model_dir, tmp_path / f"data-{margin}", tmp_path / f"out-{margin}", steps=1, batch_size=6, on_step=seen.append)
        found[margin] = seen[0]
    gap = found[0.0].metrics["margin"]
    assert found[2.0].metrics["margin"] == pytest.approx(gap, abs=1e-6)
    assert abs(gap) < 0.1, "before training both sides are much alike"
    assert found[0.0].loss == pytest.approx(math.log1p(math.exp(-gap)), abs=5e-3)
    assert found[2.0].loss == pytest.approx(math.log1p(math.exp(2.0 - gap)), abs=5e-3)


def test_padding_that_ends_a_text_is_not_taken_for_padding(model_dir, pairs, kit, tmp_path):
    """A tokenizer whose padding is its end token: the reward is still read at the end token."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path / "same"
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder)
    AutoModelForCausalLM.from_pretrained(model_dir).save_pretrained(folder)
    seen = {}
    for name, start in (("same", folder), ("plain", model_dir)):
        steps = []
        train_reward(start, pairs, tmp_path / f"out-{name}", steps=2, learning_rate=1e-2, on_step=steps.append)
        seen[name] = steps[-1].metrics["mean_reward"]
    assert seen["same"] == pytest.approx(seen["plain"], abs=1e-5)


def test_a_killed_training_resumes_to_the_same_weights(model_dir, pairs, tmp_path):
    options = {"epochs": 2, "batch_size": 3, "learning_rate": 1e-2, "checkpoint_steps": 2, "lora": True}
    straight = train_reward(model_dir, pairs, tmp_path / "straight", **options)
    with pytest.raises(KilledError):
        train_reward(model_dir, pairs, tmp_path / "out", on_step=killing_at(3), **options)
    resumed = train_reward(model_dir, pairs, tmp_path / "out", resume=True, **options)
    assert "score.weight" in weights(straight.out_dir)
    assert same_weights(straight.out_dir, resumed.out_dir)


def test_bad_input_is_refused(model_dir, pairs, kit, tmp_path):
    with pytest.raises(UserError, match="nothing is truncated"):
        train_reward(model_dir, pairs, tmp_path / "out", max_length=40)
    state = Trajectory(kit.tools, (Message.user("hi"),))
    same = [RewardRow(state.messages, (kit.say("a"),), (kit.say("a"),), lineage=Lineage(task="t"))]
    write_dataset(same, tmp_path / "same", split=ALL)
    with pytest.raises(UserError, match="two sides that read the same"):
        train_reward(model_dir, tmp_path / "same", tmp_path / "out")
