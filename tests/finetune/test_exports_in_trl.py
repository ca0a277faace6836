"""Every kind of dataset, loaded from its Parquet by `datasets`, takes steps in TRL's own trainer as it is."""

from itertools import pairwise

import pytest

from counterplay.finetune.kto import kto_rows
from counterplay.finetune.labels.rows import trl_records
from counterplay.finetune.labels.write import label_rows
from counterplay.finetune.pairs import dpo_rows
from counterplay.finetune.prm_rows import prm_rows
from counterplay.finetune.reward import reward_rows
from counterplay.finetune.trainers import quiet
from counterplay.finetune.trajectories import logged_rows
from counterplay.finetune.trajectory_pairs import trajectory_rows
from counterplay.finetune.write import read_dataset, write_dataset
from tests.finetune.forks import fork

ALL = {"train": 1.0}
STEPS = {"max_steps": 2, "per_device_train_batch_size": 2, "max_length": None, "logging_steps": 1, "save_strategy": "no"}
CPU = {"bf16": False, "gradient_checkpointing": False, "use_cpu": True, "report_to": "none", "disable_tqdm": True, "log_level": "error"}


@pytest.fixture
def trained(tokenizer, model_dir, tmp_path, monkeypatch):
    """Write rows, load them and train; the losses, and the loaded records."""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")

    def train(rows, trainer, config, **options):
        import datasets

        write_dataset(rows, tmp_path / "d", split=ALL, tokenizer=tokenizer)
        with quiet():
            loaded = datasets.load_dataset(str(tmp_path / "d"), split="train", cache_dir=str(tmp_path / "cache"))
            args = config(output_dir=str(tmp_path / "out"), **STEPS, **CPU, **options)
            made = trainer(model=str(model_dir), args=args, train_dataset=loaded, processing_class=tokenizer)
            made.train()
        losses = [entry["loss"] for entry in made.state.log_history if "loss" in entry]
        assert len(losses) == 2
        return losses, list(loaded), made

    return train


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
class TestTrainersOfTrl:
    def test_sft(self, kit, trained):
        from trl import SFTConfig, SFTTrainer

        losses, _, _ = trained(logged_rows([kit.trace("a"), kit.trace("b")]), SFTTrainer, SFTConfig)
        assert all(loss > 0 for loss in losses)

    @pytest.mark.parametrize("kind", ["step", "trajectory"])
    def test_dpo(self, kit, trained, kind):
        from trl import DPOConfig, DPOTrainer

        trees = [fork(kit, good=2, bad=2, task=f"t{i}") for i in range(2)]
        made = trajectory_rows(trees) if kind == "trajectory" else dpo_rows([kit.tree(), kit.tree(kit.state("b"), task="b")])
        losses, records, _ = trained(made, DPOTrainer, DPOConfig)
        assert losses[0] == pytest.approx(0.6931, abs=1e-3), "before the first step chosen and rejected are as likely as they were"
        assert all(record["chosen"] != record["rejected"] for record in records)

    def test_kto_takes_batches_of_both_labels_in_order(self, kit, trained):
        from trl import KTOConfig, KTOTrainer

        trees = [kit.tree(kit.trajectory(f"t{i}").prefix(1), task=f"t{i}") for i in range(4)]
        losses, records, trainer = trained(kto_rows(trees), KTOTrainer, KTOConfig)
        assert all(loss > 0 for loss in losses)
        assert [record["label"] for record in records] == [False, True] * 4 or [record["label"] for record in records] == [True, False] * 4
        batches = [batch["label"].tolist() for batch in trainer.get_train_dataloader()]
        assert all(sorted(batch) == [False, True] for batch in batches)

    def test_reward_pairs_bring_their_margin_into_the_loss(self, kit, trained):
        import torch
        from trl import RewardConfig, RewardTrainer

        harvest = reward_rows(dpo_rows([kit.tree(), kit.tree(kit.state("b"), task="b")]))
        losses, records, trainer = trained(harvest, RewardTrainer, RewardConfig, learning_rate=0.0)
        assert [record["margin"] for record in records] == [pytest.approx(5 / 6 - 1 / 6)] * 2
        batch = next(iter(trainer.get_train_dataloader()))
        assert batch["margin"].tolist() == pytest.approx([4 / 6] * 2)
        with torch.no_grad():
            fields = {name: batch[name] for name in ("input_ids", "attention_mask")}
            good, bad = trainer.model(**fields).logits.squeeze(-1).chunk(2)
        assert losses[0] == pytest.approx(float(torch.nn.functional.softplus(batch["margin"] - good + bad).mean()), abs=1e-3)


def test_labelled_steps_load_with_their_columns_and_are_what_the_labels_say(kit, tmp_path):
    import datasets

    trees = [fork(kit, good=2, bad=1, longer=1, task=f"t{i}") for i in range(2)]
    report = write_dataset(prm_rows(trees), tmp_path / "prm", split=ALL)
    kind, records = read_dataset(tmp_path / "prm")
    with quiet():
        loaded = datasets.load_dataset(str(tmp_path / "prm"), split="train", cache_dir=str(tmp_path / "cache"))
    assert (kind, report.rows, list(loaded)) == ("prm", {"train": len(records)}, records)
    expected = trl_records(label_rows("mc-soft", trees)[0])
    columns = ("prompt", "completions", "labels", "tools", "low", "high", "lines", "steps", "nodes", "kind", "task", "search", "grade")
    assert [{name: record[name] for name in columns} for record in records] == [
        {name: record[name] for name in columns} for record in expected
    ]
    row = max(records, key=lambda record: len(record["completions"]))
    assert [[m["role"] for m in step] for step in row["completions"]] == [["assistant", "tool"]] * 2 + [["assistant"]]
    assert all(b - a == 1 for a, b in pairwise(row["steps"]))
    hard = prm_rows(trees, labels="mc-soft", hard=0.5).rows
    assert {label for row in hard for label in row.labels} == {0.0, 1.0}
