"""Wrong preference labels: are they counted rightly, and does DPO that knows of them lose less?

Pairs of the example agent (`label_smoothing_data`), of which a share is turned round on purpose. First what `finetune.noise` finds in the
labels alone, over many draws, beside simpler counts. Then DPO from the same start and seeds: with the labels as they should be, and with
wrong ones under three losses, plain DPO, conservative DPO (cross-entropy against smoothed labels, Mitchell 2023) and robust DPO (unbiased,
Chowdhury et al. 2024, arXiv:2403.00409), the last two given the estimate. Each is measured on pairs and on tasks that no training saw.

Run it as `python bench/label_smoothing.py [--quick] [--folder FOLDER] [--estimates-only] [--json]`; what the folder has is kept.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
from label_smoothing_data import MAX_STEPS, MAX_TOKENS, MODEL, WORLD, pairs

from counterplay import evaluation
from counterplay.finetune.noise import confident, margins, saturation, share_of
from counterplay.finetune.records import Record, make_records
from counterplay.finetune.rows import DPORow
from counterplay.finetune.training.dpo import train_dpo
from counterplay.finetune.training.recipe import PreferenceLoss
from counterplay.finetune.training.sides import pair_ids
from counterplay.finetune.write import write_dataset

OUT = Path(__file__).parent / "out" / "label_smoothing"
LOSSES: Mapping[str, PreferenceLoss] = {"plain": "sigmoid", "conservative": "conservative", "robust": "robust"}


@dataclass(frozen=True)
class Size:
    train_tasks: int = 2400
    heldout_tasks: int = 600
    pairs: int = 480
    measured: int = 120
    played: int = 100
    epochs: float = 1.0
    learning_rate: float = 1e-4
    beta: float = 1.0
    draws: int = 20
    seeds: int = 3
    shares: tuple[float, ...] = (0.2, 0.1, 0.3)


QUICK = Size(train_tasks=200, heldout_tasks=100, pairs=60, measured=30, played=16, epochs=1.0, draws=4, seeds=1, shares=(0.2,))


def flipped(rows: Sequence[DPORow], share: float, seed: int) -> list[DPORow]:
    """The rows, each turned round with probability `share`."""
    rng = random.Random(f"{seed}/{share}")
    return [replace(row, chosen=row.rejected, rejected=row.chosen) if rng.random() < share else row for row in rows]


# --- the estimate ----------------------------------------------------------------------------------------------------------------------


def estimates(rows: Sequence[DPORow], size: Size) -> list[dict[str, Any]]:
    """Over many draws of what is turned round: how far each count is off, and how often the interval holds the truth."""
    found = []
    for count in sorted({len(rows), size.pairs}):
        for share in (0.0, 0.1, 0.2, 0.3):
            drawn = [_estimate(rows[:count], share, seed) for seed in range(size.draws)]
            off = {name: [each[name] - each["truth"] for each in drawn] for name in ("estimate", "saturation", "confident", "disagreement")}
            found.append(
                {
                    "pairs": count,
                    "turned": share,
                    "estimate": statistics.fmean(each["estimate"] for each in drawn),
                    **{f"{name}_bias": statistics.fmean(values) for name, values in off.items()},
                    **{f"{name}_mean_error": statistics.fmean(map(abs, values)) for name, values in off.items()},
                    "within_5_points": statistics.fmean(abs(value) <= 0.05 for value in off["estimate"]),
                    "interval_holds": statistics.fmean(each["low"] <= each["truth"] <= each["high"] for each in drawn),
                    "width": statistics.fmean(each["high"] - each["low"] for each in drawn),
                    "seconds": statistics.fmean(each["seconds"] for each in drawn),
                }
            )
    return found


def _estimate(rows: Sequence[DPORow], share: float, seed: int) -> dict[str, float]:
    turned = flipped(rows, share, seed)
    records, began = [record for _, record in make_records(turned).kept], time.process_time()
    agrees = margins(records, seed=seed)
    share_found, low, high = share_of(agrees)
    return {
        "truth": sum(one.chosen != other.chosen for one, other in zip(rows, turned, strict=True)) / len(rows),
        "estimate": share_found,
        "saturation": saturation(agrees)[0],
        "confident": confident(agrees),
        "disagreement": float((agrees < 0).mean()),
        "low": low,
        "high": high,
        "seconds": time.process_time() - began,
    }


# --- training --------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Training:
    """DPO with one loss on pairs of which a share is turned round."""

    turned: float
    loss: str
    seed: int

    def run(self, rows: Sequence[DPORow], size: Size, folder: Path) -> float:
        """Leaves the tuned model in `folder`; the label smoothing that it was given, which is the estimate."""
        write_dataset(flipped(rows, self.turned, self.seed), folder / "data", split={"train": 1.0}, formats=("jsonl",))
        report = train_dpo(
            MODEL,
            folder / "data",
            folder / "model",
            epochs=size.epochs,
            learning_rate=size.learning_rate,
            beta=size.beta,
            loss=LOSSES[self.loss],
            seed=self.seed,
        )
        return report.recipe.label_smoothing or 0.0


def logprobs(model: Path, ids: Sequence[Mapping[str, Any]]) -> Any:
    """log P(chosen) - log P(rejected) of every pair."""
    import torch
    from transformers import AutoModelForCausalLM

    net = AutoModelForCausalLM.from_pretrained(model)
    found = []
    for row in ids:
        sides = []
        for side in ("chosen", "rejected"):
            answer = row[f"{side}_ids"]
            with torch.no_grad():
                logits = net(torch.tensor([[*row["prompt_ids"], *answer]])).logits[0, -len(answer) - 1 : -1].log_softmax(-1)
            sides.append(float(logits[range(len(answer)), answer].sum()))
        found.append(sides[0] - sides[1])
    return np.array(found)


@dataclass(frozen=True)
class Bench:
    """What all trainings share: where they are measured, and how the agent was before."""

    size: Size
    folder: Path
    held: Sequence[Mapping[str, Any]]
    before: Any

    def measured(self, model: Path) -> dict[str, float]:
        margin = self.size.beta * (logprobs(model, self.held) - self.before)
        pairs = {"pair_accuracy": float((margin > 0).mean()), "pair_loss": float(np.log1p(np.exp(-margin)).mean())}
        return {**pairs, "success": self.success(model)}

    def success(self, model: Path) -> float:
        tasks = evaluation.tasks_from_spec(f"counterplay.examples.ledger:tasks:played:{self.size.played}")
        played = evaluation.evaluate(
            {"tuned": f"transformers:{model}"}, WORLD, tasks, temperature=0.0, max_tokens=MAX_TOKENS, max_steps=MAX_STEPS
        )
        return asyncio.run(played).report.policies[0].rate


def trainings(rows: Sequence[DPORow], bench: Bench) -> list[dict[str, Any]]:
    """Every training, kept in a file as it ends."""
    file = bench.folder / f"trainings-{bench.size.pairs}-{bench.size.epochs:g}-{bench.size.learning_rate:g}-{bench.size.beta:g}.jsonl"
    done = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    size = bench.size
    some = [(0.0, "plain"), *((size.shares[0], loss) for loss in LOSSES)]
    rest = [(share, loss) for share in size.shares[1:] for loss in LOSSES]
    wanted = [Training(share, loss, seed) for each in (some, rest) for seed in range(size.seeds) for share, loss in each]
    for training in wanted:
        if any(asdict(training).items() <= one.items() for one in done):
            continue
        given = training.run(rows[: size.pairs], size, bench.folder)
        done.append({**asdict(training), "given": given, **bench.measured(bench.folder / "model")})
        with file.open("a") as stream:
            stream.write(json.dumps(done[-1]) + "\n")
        print(f"  {done[-1]}", flush=True)
    return done


_WORSE = {"pair_loss": 1, "pair_accuracy": -1, "success": -1}


def compared(done: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The means of every loss at every share, and what it lost against the right labels."""
    clean = _mean([one for one in done if one["turned"] == 0])
    found = [{"turned": 0.0, "loss": "plain", "given": 0.0, **clean}]
    for share in sorted({one["turned"] for one in done} - {0.0}):
        for loss in LOSSES:
            mine = [one for one in done if (one["turned"], one["loss"]) == (share, loss)]
            if mine:
                mean = _mean(mine)
                lost = {
                    f"lost_{name}": (mean[name] - clean[name]) * (1 if name == "pair_loss" else -1) for name in clean if name != "seeds"
                }
                given = statistics.fmean(one["given"] for one in mine)
                found.append({"turned": share, "loss": loss, "given": given, **mean, **lost})
    return found


def _mean(done: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    return {"seeds": len(done), **{name: statistics.fmean(one[name] for one in done) for name in _WORSE}}


# --- the whole -------------------------------------------------------------------------------------------------------------------------


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    cells = [[f"{row.get(c, ''):.3f}" if isinstance(row.get(c), float) else str(row.get(c, "")) for c in columns] for row in rows]
    widths = [max(len(c), *(len(row[i]) for row in cells)) for i, c in enumerate(columns)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in [list(columns), *cells])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--folder", type=Path, default=OUT)
    parser.add_argument("--beta", type=float, default=1.0, help="DPO's; at 0.1 margins stay small, where all losses have one gradient")
    parser.add_argument("--estimates-only", action="store_true", help="no training")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    size, folder = replace(QUICK if asked.quick else Size(), beta=asked.beta), asked.folder / ("quick" if asked.quick else "")
    rows, held = pairs(folder, "train", size.train_tasks, tau=0.8), pairs(folder, "heldout", size.heldout_tasks, tau=0.8)
    result: dict[str, Any] = {"pairs": len(rows), "heldout_pairs": len(held), "estimates": estimates(rows, size)}
    if not asked.estimates_only:
        result["trainings"] = compared(_trained(rows, held, size, folder))
    if asked.json:
        print(json.dumps(result))
        return
    counts = ("pairs", "turned", "estimate", "estimate_bias", "within_5_points", "interval_holds", "width", "seconds")
    ways = ("estimate", "saturation", "confident", "disagreement")
    print(table(result["estimates"], (*counts, *(f"{way}_mean_error" for way in ways))))
    measures = ("pair_loss", "pair_accuracy", "success")
    if "trainings" in result:
        print(table(result["trainings"], ("turned", "loss", "seeds", "given", *measures, *(f"lost_{name}" for name in measures))))


def _trained(rows: Sequence[DPORow], held: Sequence[DPORow], size: Size, folder: Path) -> list[dict[str, Any]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    records: list[Record] = [record for _, record in make_records(held[: size.measured]).kept]
    ids = [pair_ids(tokenizer, record) for record in records]
    return trainings(rows, Bench(size, folder, ids, logprobs(MODEL, ids)))


if __name__ == "__main__":
    main()
