"""Reports as a person reads them."""

from __future__ import annotations

from typing import Any

from counterplay import console
from counterplay.loop import Localised, Replayed


def replayed(report: Replayed) -> list[Any]:
    """Per tool and in all the share of observations reproduced, then the first divergence of each unfaithful trace."""
    rows = [
        (tool.tool or "(user)", tool.observations, tool.reproduced, _share(tool.reproduced, tool.observations)) for tool in report.tools
    ]
    rows.append(("all", report.observations, report.reproduced, _share(report.reproduced, report.observations)))
    rows.append(("outcomes", report.outcomes, report.outcomes_reproduced, _share(report.outcomes_reproduced, report.outcomes)))
    tables: list[Any] = [console.table(f"fidelity over {report.traces} traces", ["tool", "logged", "reproduced", "share"], rows)]
    if report.divergences:
        names = ["trace", "step", "tool", "kind", "got", "wanted"]
        shown = [[_cut(divergence[name]) for name in names] for divergence in report.divergences[:20]]
        tables.append(console.table(f"first divergences ({len(report.divergences)} traces)", names, shown))
    return tables


def localised(report: Localised) -> Any:
    rows = [(p.task or p.trace, p.step, p.mass, _cut(p.action), p.reason) for p in report.pivots]
    return console.table(f"pivotal steps: {report.found} of {report.traces}", ["task", "step", "mass", "what the agent did", "why"], rows)


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "-"


def _cut(value: Any, length: int = 60) -> Any:
    return value if not isinstance(value, str) or len(value) <= length else value[: length - 1] + "…"
