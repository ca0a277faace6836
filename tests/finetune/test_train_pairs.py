"""DPO on pairs whose sides hold tool results: nothing but what the model sampled counts, proven by hand."""

import json

import pytest

from counterplay.core.errors import UserError
from counterplay.core.nouns import Message
from counterplay.finetune.rows import DPORow, Lineage
from counterplay.finetune.train import train_dpo
from counterplay.finetune.write import read_dataset, write_dataset
from tests.finetune.trainings import ALL, KilledError, killing_at, same_weights


def way(kit, amount, words):
    """To the end in two actions: a refund, what the tool said to it, and a last word."""
    call = kit.call("refund", f"r{amount}", order=7, amount=amount)
    return call, Message.tool(f"the order is refunded amount {amount} done done " * 2, f"r{amount}"), kit.say(words)


def rows(kit, count=4):
    made = []
    for i in range(count):
        prompt = kit.trajectory(f"t{i}" * (i + 1)).prefix(1).messages
        sides = way(kit, 5, "Done."), way(kit, 50 + i, "I refund the amount and am done with the order.")
        made.append(
            DPORow(prompt, *sides, tools=kit.tools, probability=0.9, trained=((True, False, True),) * 2, lineage=Lineage(task=f"t{i}"))
        )
    return made


@pytest.fixture(scope="module")
def pairs(kit, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "pairs"
    write_dataset(rows(kit), folder, split=ALL)
    return folder


def by_hand(tokenizer, record, side):
    """The ids of prompt and side, and the positions of what was sampled: each assistant turn up to its end token."""
    conversation = [*record["prompt"], *record[side]]
    text = tokenizer.apply_chat_template(conversation, tools=record["tools"], tokenize=False)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    opening = tokenizer("<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]
    close = tokenizer.convert_tokens_to_ids("<|im_end|>")
    starts = [at + len(opening) for at in range(len(ids)) if ids[at : at + len(opening)] == opening]
    turns = [range(start, ids.index(close, start) + 1) for start in starts][-2:]
    return ids[: turns[-1][-1] + 1], [at for turn in turns for at in turn]


def logps(model, ids, positions):
    import torch

    found = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0].float(), -1)
    return sum(found[at - 1, ids[at]] for at in positions)


def grad_norm(model, loss):
    import torch

    loss.backward()
    return torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm().item()


def test_the_loss_and_its_gradient_are_those_of_the_sampled_tokens_alone(model_dir, pairs, tokenizer, tmp_path):
    """One step on all pairs: log-probabilities and gradient against transformers' own model, token by token."""
    import torch
    from transformers import AutoModelForCausalLM

    seen = []
    report = train_dpo(model_dir, pairs, tmp_path / "out", steps=1, batch_size=4, label_smoothing=0.0, on_step=seen.append)
    _, records = read_dataset(pairs)
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    totals = {"chosen": [], "rejected": []}
    trained = 0
    for record in records:
        for side, values in totals.items():
            ids, positions = by_hand(tokenizer, record, side)
            values.append(logps(model, ids, positions))
            trained += len(positions)
    chosen, rejected = (torch.stack(values) for values in totals.values())
    assert seen[0].metrics["logps/chosen"] == pytest.approx(chosen.mean().item(), rel=1e-5)
    assert seen[0].metrics["logps/rejected"] == pytest.approx(rejected.mean().item(), rel=1e-5)
    assert report.trained_tokens == trained < report.tokens
    margins = (chosen - chosen.detach()) - (rejected - rejected.detach())
    loss = -torch.nn.functional.logsigmoid(0.1 * margins).mean()
    assert seen[0].metrics["grad_norm"] == pytest.approx(grad_norm(model, loss), rel=1e-4)


def formula(loss, delta, lengths, smoothing, beta=0.1):
    """The losses as their papers write them. `lengths` are the trained tokens of chosen and rejected."""
    import torch
    from torch.nn.functional import logsigmoid

    ratio = delta[0] - delta[1]
    mean = delta[0] / lengths[0] - delta[1] / lengths[1]
    return {
        "sigmoid": lambda: -logsigmoid(beta * ratio),
        "conservative": lambda: -(1 - smoothing) * logsigmoid(beta * ratio) - smoothing * logsigmoid(-beta * ratio),
        "robust": lambda: (-(1 - smoothing) * logsigmoid(beta * ratio) + smoothing * logsigmoid(-beta * ratio)) / (1 - 2 * smoothing),
        "hinge": lambda: torch.relu(1 - beta * ratio),
        "ipo": lambda: (mean - 1 / (2 * beta)) ** 2,
        "sigmoid_norm": lambda: -logsigmoid(beta * mean),
    }[loss]().mean()


@pytest.mark.parametrize("loss", ["sigmoid", "conservative", "robust", "hinge", "ipo", "sigmoid_norm"])
def test_losses_are_those_of_their_papers(model_dir, pairs, tokenizer, tmp_path, loss):
    """Once policy and reference differ: a step's loss is the formula of the log-ratios under the checkpoint before it."""
    import torch
    from transformers import AutoModelForCausalLM

    seen = []
    options = {"steps": 3, "batch_size": 4, "learning_rate": 2e-2, "loss": loss, "checkpoint_steps": 1}
    smoothing = 0.2 if loss in {"conservative", "robust"} else None
    train_dpo(model_dir, pairs, tmp_path / "out", label_smoothing=smoothing, on_step=seen.append, **options)
    before, after = (AutoModelForCausalLM.from_pretrained(at) for at in (model_dir, tmp_path / "out" / "checkpoints" / "checkpoint-2"))
    _, records = read_dataset(pairs)
    delta, lengths = [], []
    with torch.no_grad():
        for side in ("chosen", "rejected"):
            tokens = [by_hand(tokenizer, record, side) for record in records]
            delta.append(torch.stack([logps(after, *one) - logps(before, *one) for one in tokens]))
            lengths.append(torch.tensor([len(positions) for _, positions in tokens]))
    assert abs((delta[0] - delta[1]).mean()) > 0.05, "the step moved the policy"
    assert seen[2].loss == pytest.approx(formula(loss, delta, lengths, smoothing).item(), rel=1e-3)


def test_a_killed_training_on_masked_pairs_resumes_to_the_same_weights(model_dir, pairs, tmp_path):
    options = {"steps": 4, "batch_size": 2, "learning_rate": 1e-2, "checkpoint_steps": 2}
    straight = train_dpo(model_dir, pairs, tmp_path / "straight", **options)
    with pytest.raises(KilledError):
        train_dpo(model_dir, pairs, tmp_path / "out", on_step=killing_at(3), **options)
    resumed = train_dpo(model_dir, pairs, tmp_path / "out", resume=True, **options)
    assert same_weights(straight.out_dir, resumed.out_dir)
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]


def test_pairs_that_would_train_wrongly_are_refused_by_name(model_dir, kit, pairs, tmp_path):
    from dataclasses import replace

    with pytest.raises(UserError, match="got loss 'dpo'"):
        train_dpo(model_dir, pairs, tmp_path / "out", loss="dpo")
    with pytest.raises(UserError, match="which has none"):
        train_dpo(model_dir, pairs, tmp_path / "out", loss="ipo", label_smoothing=0.1)
    with pytest.raises(UserError, match=r"label smoothing 0\.5"):
        train_dpo(model_dir, pairs, tmp_path / "out", label_smoothing=0.5)
    with pytest.raises(UserError, match="beta 0"):
        train_dpo(model_dir, pairs, tmp_path / "out", beta=0.0)
    (row, *_) = rows(kit)
    write_dataset([replace(row, trained=((True, False, True), (False,) * 3))], tmp_path / "unsampled", split=ALL)
    with pytest.raises(UserError, match=r"row t0/.* has a side of which nothing was sampled"):
        train_dpo(model_dir, tmp_path / "unsampled", tmp_path / "out")
    write_dataset([replace(row, trained=((True, True), (True, True)))], tmp_path / "short", split=ALL)
    with pytest.raises(UserError, match="2 training flags for 3 messages"):
        train_dpo(model_dir, tmp_path / "short", tmp_path / "out")
    assert not (tmp_path / "out").exists()
