"""SFT by weight: the loss of every token times that of its row and message, by hand; weights of one change nothing."""

from dataclasses import replace

import pytest

from counterplay.core.errors import UserError
from counterplay.finetune.masks import segments, spliced
from counterplay.finetune.train import train_sft
from counterplay.finetune.trajectories import logged_rows
from counterplay.finetune.write import read_dataset, write_dataset
from tests.finetune.trainings import ALL, same_weights

STEPS = {0: 2.0, 1: 0.5, 2: 0.0}


def written(kit, folder, weigh):
    rows = logged_rows([kit.trace(f"t{i}" * (i + 1)) for i in range(4)]).rows
    write_dataset([weigh(i, row) for i, row in enumerate(rows)], folder, split=ALL)
    return folder


def weighed(i, row):
    """Other weights for rows, and in the first row for its three actions too."""
    actions = [at for at, flag in enumerate(row.trained) if flag]
    by_message = {at: STEPS[k] for k, at in enumerate(actions)}
    steps = tuple(by_message.get(at, 1.0) for at in range(len(row.messages))) if i == 0 else ()
    return replace(row, weight=(0.25, 1.75, 0.5, 1.5)[i], step_weights=steps)


def train(model_dir, data, out, **options):
    seen = []
    settings = {"steps": 1, "batch_size": 4, **options}
    report = train_sft(model_dir, data, out, on_step=seen.append, **settings)
    return seen, report


def test_the_loss_and_its_gradient_are_weighted_token_by_token(model_dir, kit, tokenizer, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    data = written(kit, tmp_path / "data", weighed)
    seen, report = train(model_dir, data, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    total, count = torch.zeros(()), 0
    for record in read_dataset(data)[1]:
        (segment,) = segments(tokenizer, record["messages"], record["tools"], record["trained"])
        ids, places = spliced(tokenizer, segment)
        logprobs = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0].float(), -1)
        steps = record["step_weights"] or [1.0] * len(record["messages"])
        for (start, end), message in zip(places, segment.messages, strict=True):
            total = total - record["weight"] * steps[message] * sum(logprobs[at - 1, ids[at]] for at in range(start, end))
            count += end - start
    loss = total / count
    assert seen[0].loss == pytest.approx(loss.item(), rel=1e-5)
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm().item()
    assert seen[0].metrics["grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert report.trained_tokens == count


def test_weights_of_one_are_the_plain_training(model_dir, kit, tmp_path):
    from counterplay.finetune.training import sft

    plain = written(kit, tmp_path / "plain", lambda _i, row: row)
    options = {"steps": 3, "learning_rate": 1e-2}
    _, one = train(model_dir, plain, tmp_path / "out-plain", **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sft, "_weights", lambda record: [1.0] * len(record["messages"]))
        _, other = train(model_dir, plain, tmp_path / "out-weighted", **options)
    assert same_weights(one.out_dir, other.out_dir)


def test_a_step_in_parts_is_the_step(model_dir, kit, tmp_path):
    data = written(kit, tmp_path / "data", weighed)
    norms = [train(model_dir, data, tmp_path / str(part), micro_batch=part)[0][0].metrics["grad_norm"] for part in (None, 1)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_weights_that_mean_nothing_are_refused_by_name(model_dir, kit, tmp_path):
    data = written(kit, tmp_path / "negative", lambda _i, row: replace(row, weight=-1.0))
    with pytest.raises(UserError, match="has a weight of -1"):
        train(model_dir, data, tmp_path / "out")
    data = written(kit, tmp_path / "short", lambda _i, row: replace(row, step_weights=(1.0,)))
    with pytest.raises(UserError, match="1 step weights for"):
        train(model_dir, data, tmp_path / "out")
