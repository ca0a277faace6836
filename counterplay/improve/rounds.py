"""Rounds of work, search, training and examination, until one brings no gain.

ReST-EM (Singh et al. 2023), STaR (Zelikman et al. 2022) and rStar-Math (Guan et al. 2025) in one loop: a round's model works, what it got
wrong is searched, and the next model is trained on all that went well. A process killed at any moment goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from counterplay import console, loop
from counterplay.core.canonical import canonical, content_key, loads
from counterplay.core.errors import UserError
from counterplay.improve import report
from counterplay.improve.examining import examine, gain, success, telling
from counterplay.improve.kept import EVALUATION, Stages, files_hash, settle, write_json
from counterplay.improve.passes import search_failed
from counterplay.improve.settings import OURS, Improvement, traces_of
from counterplay.improve.training import export, spec_of, train, train_prm
from counterplay.improve.working import CALLS, check_leak, left_of, used_in, work

if TYPE_CHECKING:
    from counterplay.core.store import Store

LOGS = "logs.jsonl"
Make = Callable[[console.Ticker, bool], Mapping[str, Any]]


@dataclass(frozen=True)
class Round:
    """One round, 0 being the agent as it was. `success` is the share of `tasks` held-out tasks with its 95 % `interval`.

    `gain` and `over_base` are (difference, low, high) against the round before and round 0, paired by task; None in round 0. `verdict` is
    that of `finetune.evaluate.compare` on the round before, empty in round 0. `failed` of the `traces` it worked on were searched, `solved`
    of them with a better end found; `rows` and `pairs` is what it trained on. `unguided` says why its searches had no learned verifier
    though one was asked for. Model calls and tokens are those of work and search. `seconds` and `cpu_seconds` cover everything. `lineage`
    names by content what came from what.
    """

    number: int
    model: str
    success: float
    interval: tuple[float, float]
    tasks: int
    gain: tuple[float, float, float] | None = None
    over_base: tuple[float, float, float] | None = None
    verdict: str = ""
    search: str = ""
    unguided: str = ""
    traces: int = 0
    failed: int = 0
    solved: int = 0
    rows: int = 0
    pairs: int = 0
    model_calls: int = 0
    tokens: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    lineage: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Improved:
    """What came of it. `model` is that of the `chosen` round: the last surely better than the one chosen before it, from round 0 on.

    `stopped` says why it ended; empty while it goes on.
    """

    folder: Path
    rounds: tuple[Round, ...]
    chosen: int
    model: Path
    stopped: str


def improve(given: Improvement, out: Path, *, rounds: int | None = None, until_no_gain: bool = True, quiet: bool = False) -> Improved:
    """Improve `given.model` in folder `out`. The same call made again goes on where it stopped.

    It ends after so many `rounds` (None: no such limit), and with `until_no_gain` after a round that is not "better" than the one before
    by the verdict of `finetune.evaluate.compare`. Raises UserError where `out` was begun with other options, and where a training run is
    of a held-out task.
    """
    if rounds is None and not until_no_gain:
        raise UserError("got neither a number of rounds nor a rule to stop by", "--rounds N, or --until-no-gain")
    if rounds is not None and rounds < 1:
        raise UserError(f"got {rounds} rounds", "at least 1")
    settle(out, given.identity())
    with loop.opened(out / "store.duckdb") as store:
        going = _Going(given, out, store, quiet=quiet)
        made, stopped = [going.base()], ""
        while not stopped:
            made.append(going.round(len(made)))
            stopped = why_stop(made, rounds, until_no_gain=until_no_gain)
            improved = Improved(out, tuple(made), chosen := best_of(going.examined), going.models[chosen], stopped)
            _keep(improved, given)
    return improved


def why_stop(made: list[Round], rounds: int | None, *, until_no_gain: bool) -> str:
    """Why no further round follows; empty where one does."""
    last = made[-1]
    if until_no_gain and last.number and last.verdict != "better":
        return f"no evidence of a gain in round {last.number}"
    return f"{rounds} rounds" if rounds is not None and last.number >= rounds else ""


def best_of(examined: Mapping[int, Mapping[str, Any]]) -> int:
    """The last round that is surely better than the one chosen before it, beginning with round 0."""
    chosen = 0
    for number in sorted(examined)[1:]:
        if gain(examined[chosen], examined[number]).verdict == "better":
            chosen = number
    return chosen


class _Going:
    """The rounds of one folder. `key` is the content of all that was done so far: what a stage is known by."""

    def __init__(self, given: Improvement, out: Path, store: Store, *, quiet: bool) -> None:
        self.given, self.out, self.store, self.quiet = given, out, store, quiet
        self.key = content_key(canonical(given.identity()))
        self.examined: dict[int, Mapping[str, Any]] = {}
        self.models, self.hashes = {0: given.model}, {0: given.identity()["model"]}
        self.solved = 0

    def folder(self, number: int) -> Path:
        return self.out / "rounds" / f"{number:02d}"

    def base(self) -> Round:
        """Round 0: the agent as it is."""
        stages = Stages(self.folder(0))
        self._examined(stages, 0)
        return self._round(stages, 0)

    def round(self, number: int) -> Round:
        given, folder, agent = self.given, self.folder(number), self.models[number - 1]
        stages = Stages(folder)
        guide: Mapping[str, Any] = {}
        if given.prm != "none" and number > 1:
            guide = self._stage(stages, "prm", lambda tick, _: train_prm(self.store, given, folder, _noting(tick)))
        self._worked(stages, number, agent)
        failed = traces_of(self.store, number, "failed")
        taken = {**used_in(folder / CALLS), "seconds": stages.known["work"]["seconds"]} if given.plays(number) else {}
        prm = spec_of(given, folder)
        found = self._stage(
            stages,
            "search",
            lambda tick, _: search_failed(
                self.store, given, failed, agent, prm=prm, budget=left_of(given.plan.budget, taken), on_trace=tick.advance
            ),
        )
        self.solved += found["solved"]
        data = self._stage(stages, "export", lambda *_: export(self.store, given, number, folder, solved=self.solved))
        start = number - 1 if given.start == "previous" else 0
        self._trained(stages, number, start, data)
        self._examined(stages, number)
        lineage = {
            "agent": self.hashes[number - 1],
            "trained_from": self.hashes[start],
            "data": data["data"],
            "prm": prm or None,
            "passes": len(found["passes"]),
            "model": self.hashes[number],
        }
        calls, tokens = (taken.get(kind, 0) + found["used"][kind] for kind in ("model_calls", "tokens"))
        traces = len(traces_of(self.store, number))
        counts = {"traces": traces, "failed": found["failed"], "solved": found["solved"], "rows": data["rows"], "pairs": data["pairs"]}
        counts |= {"model_calls": int(calls), "tokens": int(tokens)}
        return self._round(stages, number, search=found["search"], unguided=guide.get("why", ""), **counts, lineage=lineage)

    def _worked(self, stages: Stages, number: int, agent: Path) -> None:
        """The runs of the round in the store, none of a held-out task."""
        given, logs = self.given, self.folder(number) / LOGS
        if given.plays(number):

            def play(tick: console.Ticker, _: bool) -> dict[str, Any]:
                done = work(given, number, agent, logs, tick.advance)
                return {**done, "runs": files_hash([logs])}

            self._stage(stages, "work", play, total=len(given.tasks_of(number)), left=[LOGS])
            if logs.stat().st_size:  # else the budget did not last for one run
                loop.ingest([logs], self.store, processes=0)
        else:
            self._stage(stages, "work", lambda tick, _: self._read(tick))
        prompts = telling(self.examined[0]["prompts"])
        check_leak(loop.select(self.store), given.held_out, prompts)

    def _read(self, tick: console.Ticker) -> dict[str, Any]:
        """The logs of round 1. Raises UserError where an agent of theirs has the name of one of these rounds."""
        added = loop.ingest(self.given.logs, self.store, on_item=tick.advance).traces_added
        ours = sorted({trace.agent for trace in loop.select(self.store) if trace.agent and trace.agent.startswith(OURS)})
        if ours:
            do = f"Give the agent in these logs another name: {OURS}NN are the runs that the rounds record."
            raise UserError(f"got logs of {', '.join(ours)}", "logs of another agent", do)
        return {"traces": added}

    def _trained(self, stages: Stages, number: int, start: int, data: Mapping[str, Any]) -> None:
        """The model of the round: trained from that of round `start`, or the one that worked, where nothing went well so far."""
        folder = self.folder(number)

        def make(tick: console.Ticker, cut_off: bool) -> dict[str, Any]:
            from counterplay.replay.transformers_policy import folder_hash

            train(self.given, self.models[start], folder, data["pairs"], tick.at, cut_off=cut_off)
            return {"model": folder_hash(folder / "model")}

        if data["rows"]:
            trained = self._stage(stages, "train", make, left=["model/config.json"])
            self.models[number], self.hashes[number] = folder / "model", trained["model"]
        else:
            self.models[number], self.hashes[number] = self.models[number - 1], self.hashes[number - 1]

    def _examined(self, stages: Stages, number: int) -> None:
        file = self.folder(number) / EVALUATION

        def make(tick: console.Ticker, _: bool) -> dict[str, Any]:
            write_json(file, examine(self.given, self.models[number], tick.advance))
            return {"evaluation": files_hash([file])}

        self._stage(stages, "examine", make, total=len(self.given.held_out), left=[EVALUATION])
        self.examined[number] = loads(file.read_text(encoding="utf-8"))

    def _round(self, stages: Stages, number: int, **known: Any) -> Round:
        examined = self.examined[number]
        alone = success(examined)
        over = gain(self.examined[number - 1], examined) if number else None
        return Round(
            number=number,
            model=str(self.models[number]),
            success=alone.rate,
            interval=alone.interval,
            tasks=alone.tasks,
            gain=None if over is None else (over.difference, *over.interval),
            over_base=self._over(0, number) if number else None,
            verdict="" if over is None else over.verdict,
            seconds=stages.spent("seconds"),
            cpu_seconds=stages.spent("cpu_seconds"),
            **known,
        )

    def _over(self, before: int, number: int) -> tuple[float, float, float]:
        found = gain(self.examined[before], self.examined[number])
        return (found.difference, *found.interval)

    def _stage(self, stages: Stages, name: str, make: Make, *, total: float | None = None, left: Iterable[str] = ()) -> Mapping[str, Any]:
        """The result of a stage, shown while it is made."""
        title = f"round {stages.folder.name}: {name}"

        def shown(cut_off: bool) -> Mapping[str, Any]:
            with console.ticking(title, total, quiet=self.quiet) as tick:
                return make(tick, cut_off)

        known = stages.known.get(name, {})
        result = stages.done(name, {"after": self.key}, shown, left=left)
        if not self.quiet and stages.known[name] is not known:
            console.err.print(f"[green]✓[/] {title}  [dim]{stages.known[name]['seconds']:.1f} s[/]", highlight=False)
        self.key = content_key(self.key, name, canonical(result))
        return result


def _noting(tick: console.Ticker) -> Callable[[int, int, float], None]:
    return lambda step, total, loss: tick.at(step, total, f"loss {loss:.3f}")


def _keep(improved: Improved, given: Improvement) -> None:
    """What is known so far, for people and for programs."""
    out = improved.folder
    write_json(out / "improve.json", {"format": 1, "asked": given.identity(), **console.plain(improved)})
    (out / "report.md").write_text(report.page(improved), encoding="utf-8")
    drawn = report.plot({"held-out success": [(one.success, *one.interval) for one in improved.rounds]})
    (out / "success.svg").write_text(drawn, encoding="utf-8")
