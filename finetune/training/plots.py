"""What a training's metrics look like: one panel each, step by step, with a running mean."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from counterplay.finetune.training.folder import PLOT, read_metrics

_NOT_SHOWN = frozenset({"step", "total", "seconds", "epoch", "num_tokens"})
_FIRST = ("loss", "reward", "rewards/margins", "rewards/accuracies", "accuracy", "margin", "kl", "mean_token_accuracy", "rewards/chosen")
_PANELS, _COLUMNS = 6, 3


def plot(out: Path) -> Path | None:
    """Draw the metrics of the training in `out` as SVG beside them; None where matplotlib is not installed or no step was noted."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return None
    lines = read_metrics(out)
    names = _chosen(lines)
    if not names:
        return None
    columns = min(len(names), _COLUMNS)
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(4 * columns, 2.8 * rows))
    figure.subplots_adjust(left=0.18 / columns, right=1 - 0.05 / columns, bottom=0.2 / rows, top=1 - 0.12 / rows, wspace=0.25, hspace=0.4)
    for index, name in enumerate(names):
        axes = figure.add_subplot(rows, columns, index + 1)
        points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, color="0.75", linewidth=1, marker="." if len(points) == 1 else "")
        axes.plot(steps, _running_mean(values), color="C0", linewidth=1.6)
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=7)
        if index >= len(names) - columns:
            axes.set_xlabel("step", fontsize=8)
    path = out / PLOT
    figure.savefig(path, format="svg", metadata={"Date": None})
    return path


def _chosen(lines: Sequence[dict[str, Any]]) -> list[str]:
    """The metrics that vary, the most telling first."""
    seen: dict[str, set[Any]] = {}
    for line in lines:
        for name in set(line) - _NOT_SHOWN:
            if line[name] is not None:
                seen.setdefault(name, set()).add(line[name])
    telling = [name for name in _FIRST if name in seen]
    others = sorted(name for name, values in seen.items() if len(values) > 1 and name not in telling)
    return [*telling, *others][:_PANELS]


def _running_mean(values: Sequence[float]) -> list[float]:
    """Exponentially weighted over about a twentieth of all steps."""
    weight, mean, smooth = 2 / (max(1, len(values) // 20) + 1), values[0], []
    for value in values:
        mean += weight * (value - mean)
        smooth.append(mean)
    return smooth
