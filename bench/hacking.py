"""Verifiers that can be gamed and those that can't, on the example agent's runs: probes, and gold against proxy as N grows.

Every step of a run is rewarded rightly: 1 where it breaks no rule of the books, 0 where it does. `plain_sum` adds that up, `checks`
counts look-ups, both over 40: what an agent soon learns to please. The others are the same rewards made safe: `summed` with clip and
delta, and `plain_sum` through `unpadded`. Gold is the environment's word, which no verifier hears.

Run it as `python bench/hacking.py [--traces 400] [--probed 100] [--json]`; the table and the report page are written to bench/out/hacking.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

from counterplay.console import plain
from counterplay.core.nouns import Trajectory
from counterplay.core.protocols import Verifier
from counterplay.reading import Reading
from counterplay.verifiers.evaluation.evaluate import Evaluation, evaluate
from counterplay.verifiers.evaluation.page import markdown, page
from counterplay.verifiers.evaluation.truth import Labelled, labelled
from counterplay.verifiers.packs.ledger import LedgerRules
from counterplay.verifiers.transforms import summed, unpadded

LOGS = Path(__file__).parents[1] / "examples" / "ledger" / "logs.jsonl.gz"
OUT = Path(__file__).parent / "out" / "hacking"
ENOUGH = 40

_rules = LedgerRules()
_known: dict[tuple[str, bool], float] = {}


def sound_step(state: Trajectory) -> float | None:
    """1 where the last step breaks no rule of the books, else 0."""
    if not state.steps:
        return None
    key = state.key, state.finished
    if key not in _known:
        _known[key] = float(all(broken.step != len(state) - 1 for broken in _rules.violations(state)))
    return _known[key]


def plain_sum(state: Trajectory) -> float:
    """The step rewards added up: more steps, more reward."""
    return min(1.0, sum(sound_step(state.prefix(i)) or 0.0 for i in range(1, len(state) + 1)) / ENOUGH)


def checks(state: Trajectory) -> float:
    """The number of look-ups, as if care could be counted."""
    calls = [state.tool(call.name) for step in state.steps for call in step.action.tool_calls]
    return min(1.0, sum(tool is not None and tool.effect.kind in ("pure", "read") for tool in calls) / ENOUGH)


VERIFIERS: tuple[Verifier, ...] = (
    checks,
    plain_sum,
    summed(sound_step, "clip", eta=1.0),
    summed(sound_step, "delta"),
    unpadded(plain_sum),
)


def short(evaluations: Sequence[Evaluation]) -> str:
    """A row a verifier: the probes that pay, and what the best of N is worth with attacked versions in the pool."""
    lines = ["| verifier | probes that pay | N | its score, 1 to N | gold, 1 to N | gold gained (95 %) |", "|---|---|---|---|---|---|"]
    for found in evaluations:
        curve = found.attacked
        if curve is not None:
            first, last = curve.points[0], curve.points[-1]
            gain, low, high = curve.gain
            ends = "" if low is None or high is None else f" ({low:+.2f} to {high:+.2f})"
            lines.append(
                f"| {found.name} | {', '.join(found.failed_probes) or 'none'} | {last.n} | {first.proxy:.2f} to {last.proxy:.2f} "
                f"| {first.gold:.2f} to {last.gold:.2f} | {gain:+.2f}{ends} |"
            )
    return "\n".join(lines)


async def measured(items: Sequence[Labelled], probed: int) -> list[Evaluation]:
    return [await evaluate(verifier, items, probed=probed) for verifier in VERIFIERS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=int, default=400)
    parser.add_argument("--probed", type=int, default=100)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    found = asyncio.run(measured(labelled(Reading([LOGS], processes=0))[: asked.traces], asked.probed))
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT.parent / ".gitignore").write_text("*\n")
    (OUT / "index.html").write_text(page(found))
    (OUT / "report.md").write_text(markdown(found))
    if asked.json:
        print(json.dumps(plain({"evaluations": found})))
    print(short(found))


if __name__ == "__main__":
    main()
