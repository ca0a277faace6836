"""KTO by TRL's own trainer: balanced batches, a KL term from mismatched answers, no second model, masks."""

import math
from dataclasses import replace

import pytest

from counterplay.core.errors import UserError
from counterplay.core.nouns import Message
from counterplay.finetune.batches import FixedBatches, alike
from counterplay.finetune.kto import KTORow
from counterplay.finetune.rows import Lineage
from counterplay.finetune.train import train_kto
from counterplay.finetune.write import read_dataset, write_dataset
from tests.finetune.trainings import ALL, KilledError, killing_at, same_weights, weights


def rows(kit, good=3, bad=3):
    made = []
    for i, label in enumerate([True] * good + [False] * bad):
        prompt = kit.trajectory(f"t{i}" * (i % 4 + 1)).prefix(1).messages
        call = kit.call("refund", "r", order=7, amount=5 if label else 50 + i)
        answer = (call, Message.tool("done " * 8, "r"), kit.say("Done." if label else f"I am done with {i}."))
        made.append(KTORow(prompt, answer, label, kit.tools, 0.9, (True, False, True), 4, 4.0 * label, Lineage(task=f"t{i}")))
    return made


@pytest.fixture(scope="module")
def answers(kit, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "kto"
    write_dataset(rows(kit), folder, split=ALL)
    return folder


def test_desirable_answers_become_likelier(model_dir, answers, tmp_path):
    seen = []
    report = train_kto(model_dir, answers, tmp_path / "out", epochs=6, learning_rate=1e-2, batch_size=2, on_step=seen.append)
    assert (report.steps, report.rows, report.sequences) == (18, 6, 6)
    assert seen[0].loss == pytest.approx(0.5, abs=1e-5), "1 - sigmoid(0): policy and reference start equal"
    assert all({"rewards/chosen", "rewards/rejected", "kl"} <= set(step.metrics) for step in seen), "both labels in every batch"
    assert max(step.metrics["kl"] for step in seen) > 0, "the KL term is computed"
    assert seen[-1].metrics["rewards/margins"] > 0.1
    assert report.metrics["rewards/margins"] > 0.1
    assert report.trained_tokens < report.tokens / 2


def test_the_loss_is_the_papers_on_sampled_tokens_alone(model_dir, answers, tokenizer, tmp_path):
    """A step's loss under the checkpoint before it, by hand: equation 7, and the KL of each prompt with the answer before it."""
    import torch
    from transformers import AutoModelForCausalLM

    from counterplay.finetune.masks import IGNORED, tokenised

    seen = []
    options = {"steps": 3, "batch_size": 6, "learning_rate": 2e-2, "checkpoint_steps": 1, "beta": 0.2}
    train_kto(model_dir, answers, tmp_path / "out", on_step=seen.append, **options)
    before, after = (AutoModelForCausalLM.from_pretrained(at) for at in (model_dir, tmp_path / "out" / "checkpoints" / "checkpoint-2"))
    _, records = read_dataset(answers)
    made = []
    for record in records:
        conversation, flags = [*record["prompt"], *record["completion"]], [False] * len(record["prompt"]) + record["completion_trained"]
        (row,) = tokenised(tokenizer, conversation, record["tools"], flags)
        start = next(at for at, label in enumerate(row["labels"]) if label != IGNORED)
        made.append((row["input_ids"][:start], row["input_ids"][start:], row["labels"][start:], record["label"]))
    order = alike([len(prompt) + len(ids) for prompt, ids, _, _ in made], [label for *_, label in made])
    ordered = [made[i] for i in order]

    def ratio(prompt, ids, labels):
        found = []
        for model in (after, before):
            with torch.no_grad():
                scores = torch.log_softmax(model(input_ids=torch.tensor([prompt + ids])).logits[0], -1)
            found.append(sum(scores[len(prompt) + at - 1, ids[at]].item() for at in range(len(ids)) if labels[at] != IGNORED))
        return found[0] - found[1]

    ratios = [ratio(prompt, ids, labels) for prompt, ids, labels, _ in ordered]
    others = [ratio(prompt, *ordered[i - 1][1:3]) for i, (prompt, *_) in enumerate(ordered)]
    kl = max(0.0, sum(others) / len(others))
    assert seen[2].metrics["kl"] == pytest.approx(kl, rel=1e-3, abs=1e-3)
    signed = [0.2 * (value - kl) if label else 0.2 * (kl - value) for value, (*_, label) in zip(ratios, ordered, strict=True)]
    assert max(map(abs, signed)) > 0.05
    assert seen[2].loss == pytest.approx(sum(1 - 1 / (1 + math.exp(-x)) for x in signed) / len(signed), rel=1e-3)


@pytest.fixture
def trained_on(model_dir, kit, tmp_path, monkeypatch):
    """The ready rows of answers, all different, to these prompts, with labels in turn."""

    def ready(prompts, size):
        answers = zip(rows(kit, 0, len(prompts)), prompts, strict=True)
        made = [replace(row, prompt=kit.trajectory(name).prefix(1).messages) for row, name in answers]
        write_dataset([replace(row, label=bool(at % 2)) for at, row in enumerate(made)], tmp_path / "data", split=ALL)
        given = []
        monkeypatch.setattr("counterplay.finetune.training.kto.train", lambda _recipe, _run, rows, **_: given.extend(rows))
        train_kto(model_dir, tmp_path / "data", tmp_path / "out", steps=1, batch_size=size)
        return given

    return ready


@pytest.mark.parametrize(("prompts", "size"), [("aabbccdd", 2), ("abbbbbbb", 4), ("aaab", 8)])
def test_the_kl_compares_with_an_answer_to_another_prompt(trained_on, prompts, size):
    """Both labels of one state have one length and lie side by side: neither is the other's companion."""
    given = trained_on(prompts, size)
    prompts_of = {tuple(row["completion_ids"]): row["prompt_ids"] for row in given}
    assert len(prompts_of) == len(given) == len(prompts), "else this shows nothing"
    assert all(prompts_of[tuple(row["KL_completion_ids"])] != row["prompt_ids"] for row in given)


def test_answers_to_one_prompt_alone_are_compared_with_one_another(trained_on):
    given = trained_on("aaaa", 4)
    assert [row["KL_completion_ids"] for row in given] == [given[place - 1]["completion_ids"] for place in range(4)]


def test_the_rarer_label_weighs_as_much_in_all(model_dir, kit, tmp_path):
    write_dataset(rows(kit, good=2, bad=6), tmp_path / "data", split=ALL)
    report = train_kto(model_dir, tmp_path / "data", tmp_path / "out", steps=1, batch_size=4, lora=True)
    assert (report.recipe.desirable_weight, report.recipe.undesirable_weight) == (3.0, 1.0)
    assert set(weights(report.out_dir)) == set(weights(model_dir))


def test_a_killed_training_resumes_to_the_same_weights(model_dir, answers, tmp_path):
    options = {"epochs": 2, "batch_size": 2, "learning_rate": 1e-2, "checkpoint_steps": 2}
    straight = train_kto(model_dir, answers, tmp_path / "straight", **options)
    with pytest.raises(KilledError):
        train_kto(model_dir, answers, tmp_path / "out", on_step=killing_at(5), **options)
    resumed = train_kto(model_dir, answers, tmp_path / "out", resume=True, **options)
    assert same_weights(straight.out_dir, resumed.out_dir)


def test_bad_input_is_refused_before_anything_is_loaded(model_dir, answers, kit, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UserError, match="at least 2, or the KL term"):
        train_kto(model_dir, answers, out, batch_size=1)
    with pytest.raises(UserError, match="at least 2, or the KL term"):
        train_kto(model_dir, answers, out, batch_size=4, micro_batch=1)
    with pytest.raises(UserError, match="divisor of 4"):
        train_kto(model_dir, answers, out, batch_size=4, micro_batch=3)
    with pytest.raises(UserError, match="nothing is truncated"):
        train_kto(model_dir, answers, out, max_length=50)
    write_dataset(rows(kit, good=4, bad=0), tmp_path / "onesided", split=ALL)
    with pytest.raises(UserError, match="rows of both labels"):
        train_kto(model_dir, tmp_path / "onesided", out)
    assert not out.exists()


def test_every_stretch_holds_both_labels_and_like_lengths():
    lengths = [100 - i for i in range(90)] + [3 * i for i in range(30)]
    labels = [False] * 90 + [True] * 30
    order = alike(lengths, labels)
    assert sorted(order) == list(range(120))
    batches = [order[at : at + 8] for at in range(0, 120, 8)]
    assert {sum(labels[i] for i in batch) for batch in batches} == {2}
    for wanted in (True, False):
        mine = [lengths[i] for i in order if labels[i] is wanted]
        assert mine == sorted(mine, reverse=True)


def test_fixed_batches_keep_their_rows_in_an_order_of_the_epoch():
    sampler = FixedBatches(19, 4, seed=0)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert sorted(first) == sorted(second) == list(range(19))
    assert first != second
    for order in (first, second):
        batches = [order[at : at + 4] for at in range(0, 19, 4)]
        assert all(batch == list(range(batch[0], batch[0] + len(batch))) and batch[0] % 4 == 0 for batch in batches)
        assert batches[-1] == [16, 17, 18]
