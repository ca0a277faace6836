"""The check that verifier authors run in their own tests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from counterplay.core.errors import UserError
from counterplay.core.journal import ask_all, verifier_identity
from counterplay.core.nouns import Score, Trajectory
from counterplay.core.protocols import Verifier, fingerprint_of
from counterplay.verifiers.check import SAME, Report, check, named
from counterplay.verifiers.hostile import hostile

__all__ = ["Report", "check_verifier"]

_PREFIXES = 4


def check_verifier(
    verifier: Verifier, trajectories: Sequence[Trajectory] | None = None, *, recorded: Path | str | None = None, huge: bool = True
) -> Report:
    """Check that `verifier` may be used in searches. Raises UserError that names every problem, and where it was seen.

    It is asked about `trajectories`, prefixes of them, and a set of hostile ones: empty, 2,000 steps, messages of 1 MB (these two
    unless `huge` is False), other scripts, lone surrogates, arguments that are no JSON or of another type. It must

    * answer with a number in [0, 1], a Score or None, and raise nothing;
    * answer alike when asked again, in another order, about many at once, in threads (where it waits for nothing), and in batches;
    * leave its input as it was;
    * have a name and a version, and show its settings in its fingerprint;
    * change its version when its answers change: `recorded` is a JSON file of answers by version, made where it is missing. Keep it
      under version control beside the test. None: not checked.
    """
    report, scores = _run(verifier, list(trajectories or ()), huge=huge)
    problems = [*report.problems, *report.warnings[:1]] if not report.version else list(report.problems)
    if recorded is not None and not problems:
        problems += _compared(Path(recorded), f"{report.version} {fingerprint_of(verifier)}", scores)
    if problems:
        raise UserError("\n  - ".join([f"verifier {report.name} is not fit for use:", *problems]), "none of these")
    return report


def _run(verifier: Verifier, trajectories: list[Trajectory], *, huge: bool) -> tuple[Report, dict[str, float | None]]:
    """The check, in a thread of its own so that a test may be asynchronous."""
    probes = hostile(huge=huge)

    async def run() -> tuple[Report, dict[str, float | None]]:
        report = await check(verifier, trajectories, prefixes=_PREFIXES, probes=probes, together=None)
        asked = named(trajectories, _PREFIXES, probes)
        answers = await ask_all(verifier, list(asked.values()), verifier_identity(verifier))
        return report, {label: answer.value if isinstance(answer, Score) else None for label, answer in zip(asked, answers, strict=True)}

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(lambda: asyncio.run(run())).result()


def _compared(path: Path, identity: str, scores: Mapping[str, float | None]) -> list[str]:
    """Where the answers differ from those recorded for the same version and settings; adds those of a new one to the file."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if identity not in known:
        path.write_text(json.dumps({**known, identity: scores}, indent=1) + "\n", encoding="utf-8")
        return []
    before = known[identity]
    changed = [label for label, value in scores.items() if label in before and not _same(before[label], value)]
    if not changed:
        return []
    where = f"{before[changed[0]]} then, {scores[changed[0]]} now, on {changed[0]!r}"
    return [f"its answers have changed and its version has not ({identity}): {where}, and {len(changed) - 1} more; give it a new version"]


def _same(one: float | None, two: float | None) -> bool:
    return one == two or (one is not None and two is not None and abs(one - two) <= SAME)
