"""TRL's real trainers on datasets as they are written, with a model of 30,000 parameters."""

import json
import shutil

import pytest

from counterplay.core.errors import UserError
from counterplay.core.nouns import Message
from counterplay.finetune.batches import LengthBatches
from counterplay.finetune.pairs import dpo_rows
from counterplay.finetune.rows import DPORow, SFTRow
from counterplay.finetune.train import train_dpo, train_sft
from counterplay.finetune.trajectories import logged_rows
from counterplay.finetune.write import write_dataset
from tests.finetune.trainings import ALL, KilledError, killing_at, same_weights, weights


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def sft_data(kit, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "sft"
    rows = logged_rows([kit.trace(f"t{i}" * (i + 1)) for i in range(8)])
    write_dataset(rows, folder, split=ALL)
    return folder


@pytest.fixture(scope="module")
def dpo_data(kit, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "dpo"
    rows = dpo_rows([kit.tree(kit.trajectory(f"t{i}" * (i + 1)).prefix(1), task=f"t{i}") for i in range(6)])
    write_dataset(rows, folder, split=ALL)
    return folder


@pytest.fixture(scope="module")
def sft(model_dir, sft_data, tmp_path_factory):
    seen = []
    out = tmp_path_factory.mktemp("out") / "sft"
    report = train_sft(model_dir, sft_data, out, steps=6, learning_rate=1e-2, batch_size=4, checkpoint_steps=3, on_step=seen.append)
    return report, seen


def test_sft_learns_and_leaves_a_policy(sft, model_dir, sft_data):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    report, seen = sft
    assert (report.steps, report.rows, report.sequences) == (6, 8, 8)
    assert [s.step for s in seen] == [1, 2, 3, 4, 5, 6]
    assert seen[-1].loss < seen[0].loss - 0.5
    assert report.loss == seen[-1].loss
    tokenizer = AutoTokenizer.from_pretrained(report.out_dir)
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(model_dir).chat_template
    model = AutoModelForCausalLM.from_pretrained(report.out_dir)
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], add_generation_prompt=True, return_tensors="pt")
    assert model.generate(**ids, max_new_tokens=3, do_sample=False).shape[1] > ids["input_ids"].shape[1]
    lines = [json.loads(line) for line in (report.out_dir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert lines[0]["loss"] == seen[0].loss
    state = json.loads((report.out_dir / "training.json").read_text())
    assert state["recipe"]["learning_rate"] == 1e-2
    assert state["report"]["trained_tokens"] == report.trained_tokens < report.tokens


def test_the_loss_is_that_of_the_sampled_tokens_alone(sft, model_dir, sft_data, tokenizer):
    """The first step's loss, computed anew from the masks: nothing else entered it."""
    import torch
    from transformers import AutoModelForCausalLM

    from counterplay.finetune.masks import IGNORED, tokenised
    from counterplay.finetune.write import read_dataset

    _, records = read_dataset(sft_data)
    sequences = [s for r in records for s in tokenised(tokenizer, r["messages"], r["tools"], r["trained"])]
    sequences.sort(key=lambda s: -len(s["input_ids"]))
    batch = [sequences[i] for i in list(LengthBatches([len(s["input_ids"]) for s in sequences], 4, 0))[:4]]
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    total, count = 0.0, 0
    for sequence in batch:
        ids, labels = torch.tensor([sequence["input_ids"]]), torch.tensor(sequence["labels"][1:])
        logprobs = torch.log_softmax(model(input_ids=ids).logits[0, :-1].float(), -1)
        kept = labels != IGNORED
        total -= logprobs[kept].gather(1, labels[kept][:, None]).sum().item()
        count += int(kept.sum())
    assert sft[1][0].loss == pytest.approx(total / count, rel=1e-4)


def test_a_killed_training_resumes_to_the_same_weights(sft, model_dir, sft_data, tmp_path):
    options = {"steps": 6, "learning_rate": 1e-2, "batch_size": 4, "checkpoint_steps": 3}
    with pytest.raises(KilledError):
        train_sft(model_dir, sft_data, tmp_path / "out", on_step=killing_at(5), **options)
    with pytest.raises(UserError, match="another recipe"):
        train_sft(model_dir, sft_data, tmp_path / "out", resume=True, **{**options, "learning_rate": 1e-3})
    seen = []
    report = train_sft(model_dir, sft_data, tmp_path / "out", resume=True, on_step=seen.append, **options)
    assert [s.step for s in seen] == [4, 5, 6]
    lines = [json.loads(line)["step"] for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert lines == [1, 2, 3, 4, 5, 6]
    assert same_weights(sft[0].out_dir, report.out_dir)


def test_a_training_that_took_all_its_steps_takes_no_more(model_dir, sft_data, tmp_path):
    options = {"steps": 2, "learning_rate": 1e-2, "batch_size": 4, "checkpoint_steps": 1}
    first = train_sft(model_dir, sft_data, tmp_path / "out", **options)
    shutil.copytree(first.out_dir, tmp_path / "first")
    again = train_sft(model_dir, sft_data, tmp_path / "out", resume=True, **options)
    assert (again.steps, again.loss) == (2, first.loss)
    assert same_weights(tmp_path / "first", again.out_dir)
    assert len((again.out_dir / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_training_goes_on_with_its_own_rows_and_model_alone(model_dir, sft_data, kit, tmp_path):
    options = {"steps": 3, "learning_rate": 1e-2, "batch_size": 4, "checkpoint_steps": 1}
    with pytest.raises(KilledError):
        train_sft(model_dir, sft_data, tmp_path / "out", on_step=killing_at(2), **options)
    write_dataset(logged_rows([kit.trace(f"other{i}") for i in range(8)]), tmp_path / "data", split=ALL)
    shutil.copytree(model_dir, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes((model_dir / "model.safetensors").read_bytes()[:-4] + b"\0\0\0?")
    with pytest.raises(UserError, match="with another dataset;"):
        train_sft(model_dir, tmp_path / "data", tmp_path / "out", resume=True, **options)
    with pytest.raises(UserError, match="with another model;"):
        train_sft(tmp_path / "model", sft_data, tmp_path / "out", resume=True, **options)
    with pytest.raises(UserError, match="another recipe and another dataset and another model"):
        train_sft(tmp_path / "model", tmp_path / "data", tmp_path / "out", resume=True, **{**options, "steps": 4})
    shutil.copytree(model_dir, tmp_path / "moved")
    assert train_sft(tmp_path / "moved", sft_data, tmp_path / "out", resume=True, **options).steps == 3


def test_dpo_prefers_the_chosen_and_smooths_by_the_datasets_noise(model_dir, dpo_data, tmp_path):
    seen = []
    report = train_dpo(model_dir, dpo_data, tmp_path / "out", steps=4, learning_rate=1e-2, batch_size=3, on_step=seen.append)
    assert seen[0].loss == pytest.approx(0.6931, abs=1e-3), "policy and reference start equal"
    assert seen[-1].metrics["rewards/margins"] > 0
    assert report.recipe.label_smoothing == pytest.approx(1 / 252)
    assert (report.out_dir / "chat_template.jinja").is_file()


def test_lora_is_merged(model_dir, dpo_data, tmp_path):
    before = weights(model_dir)
    report = train_dpo(model_dir, dpo_data, tmp_path / "out", steps=2, learning_rate=1e-1, batch_size=3, lora=True)
    after = weights(report.out_dir)
    assert set(after) == set(before)
    moved = {name for name in before if not (before[name] == after[name]).all()}
    assert moved
    assert all("_proj" in name for name in moved)


def test_the_shared_prompt_changes_no_hidden_state(model_dir):
    import torch
    from transformers import AutoModelForCausalLM

    from counterplay.finetune.shared_prompt import share_prompts

    plain, shared = (AutoModelForCausalLM.from_pretrained(model_dir, attn_implementation="sdpa") for _ in range(2))
    assert share_prompts(shared)
    rows = [[5, 6, 7, 8, 9], [5, 6, 7], [20, 21, 22, 30], [5, 6, 10, 11, 12, 13, 14], [5, 6, 7, 8], [40, 21, 22, 31]]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    present = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    with torch.no_grad():
        wanted = plain.base_model(input_ids=ids, attention_mask=present).last_hidden_state
        got = shared.base_model(input_ids=ids, attention_mask=present, use_cache=False).last_hidden_state
    assert torch.allclose(wanted[present.bool()], got[present.bool()], atol=1e-5)


def test_architectures_with_windows_are_left_alone():
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from counterplay.finetune.shared_prompt import share_prompts

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = Qwen2Config(vocab_size=32, use_sliding_window=True, sliding_window=8, max_window_layers=0, **sizes)
    model = Qwen2ForCausalLM(config)
    assert not share_prompts(model)
    assert "forward" not in vars(model.base_model)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
def test_dpo_on_written_pairs_is_what_stock_trl_computes(model_dir, dpo_data, tmp_path):
    """The stock trainer on the Parquet files: it accepts them, and its first log-probabilities are ours."""
    import datasets
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    data = datasets.load_dataset(str(dpo_data), split="train", cache_dir=str(tmp_path / "cache"))
    quiet = {
        "report_to": "none",
        "disable_tqdm": True,
        "bf16": False,
        "activation_checkpointing": False,
        "use_cpu": True,
        "logging_steps": 1,
    }
    args = DPOConfig(output_dir=str(tmp_path / "stock"), max_length=None, max_steps=2, per_device_train_batch_size=6, **quiet)
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    stock = DPOTrainer(model=model, args=args, train_dataset=data, processing_class=tokenizer)
    stock.train()
    seen = []
    train_dpo(model_dir, dpo_data, tmp_path / "ours", steps=1, batch_size=6, on_step=seen.append)
    theirs = stock.state.log_history[0]
    assert seen[0].metrics["logps/rejected"] - seen[0].metrics["logps/chosen"] == pytest.approx(
        theirs["logps/rejected"] - theirs["logps/chosen"], abs=1.0
    ), "equal but for the line break after the end token"


def test_sft_on_written_rows_is_accepted_by_stock_trl(model_dir, sft_data, tmp_path):
    import datasets
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    data = datasets.load_dataset(str(sft_data), split="train", cache_dir=str(tmp_path / "cache"))
    quiet = {"report_to": "none", "disable_tqdm": True, "bf16": False, "activation_checkpointing": False, "use_cpu": True}
    args = SFTConfig(output_dir=str(tmp_path / "stock"), max_length=None, max_steps=2, **quiet)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    trainer = SFTTrainer(model=AutoModelForCausalLM.from_pretrained(model_dir), args=args, train_dataset=data, processing_class=tokenizer)
    assert trainer.train().global_step == 2


def test_bad_input_is_refused_before_anything_is_loaded(model_dir, sft_data, dpo_data, kit, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UserError, match="no model in"):
        train_sft(tmp_path / "nothing", sft_data, out)
    with pytest.raises(UserError, match="no dataset in"):
        train_sft(model_dir, tmp_path / "nothing", out)
    with pytest.raises(UserError, match="holds dpo rows"):
        train_sft(model_dir, dpo_data, out)
    with pytest.raises(UserError, match="nothing is truncated"):
        train_sft(model_dir, sft_data, out, max_length=50)
    with pytest.raises(UserError, match="nothing is truncated"):
        train_dpo(model_dir, dpo_data, out, max_length=50)
    unsampled = [SFTRow((Message.user("hi"), Message.assistant("ho")), (False, False))]
    write_dataset(unsampled, tmp_path / "unsampled", split=ALL)
    with pytest.raises(UserError, match="no message of the dataset"):
        train_sft(model_dir, tmp_path / "unsampled", out)
    with pytest.raises(UserError, match="holds the model that is trained"):
        train_sft(model_dir, sft_data, model_dir)
    assert not out.exists()
    out.mkdir()
    (out / "thesis.txt").write_text("years")
    with pytest.raises(UserError, match="is no training of counterplay"):
        train_sft(model_dir, sft_data, out, steps=1)
    assert (out / "thesis.txt").exists()
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (broken / name).write_bytes((model_dir / name).read_bytes())
    with pytest.raises(UserError, match="no causal language model that loads"):
        train_sft(broken, sft_data, tmp_path / "out2", steps=1)
    assert isinstance(dpo_rows([kit.tree()]).rows[0], DPORow)


def test_batches_hold_rows_of_like_length_in_an_order_of_their_epoch():
    lengths = [(i * 37) % 101 for i in range(203)]
    sampler = LengthBatches(lengths, 8, seed=1)
    first = list(sampler)
    assert sorted(first) == list(range(203))
    assert list(sampler) == first
    spread = [max(lengths[i] for i in b) - min(lengths[i] for i in b) for b in (first[k : k + 8] for k in range(0, 203, 8))]
    assert max(spread) <= 8
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert len(sampler) == 203
