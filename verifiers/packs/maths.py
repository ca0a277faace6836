r"""The math pack: is the final answer the right one, whatever form it is written in?

`1/2`, `0.5` and `\frac{1}{2}` are one answer. Which part of a text is the answer is decided here; whether two answers are equal is
asked of math-verify, in a process of its own, so that it may be used in any thread or event loop and no expression can hang.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from counterplay.core.errors import UserError, VerifierError
from counterplay.core.nouns import Score, Trajectory
from counterplay.verifiers.packs.base import ByPrefix, Pack

_ANCHOR = re.compile(r"(?:final\s+)?(?:answer|result|solution)\s*(?:is|are|=|:)+\s*:?", re.IGNORECASE)
_MATH = re.compile(r"\$\$(.{1,999}?)\$\$|\$(.{1,999}?)\$|\\\((.{1,999}?)\\\)|\\\[(.{1,999}?)\\\]", re.DOTALL)
_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+|(?<=\d))(?:[eE][-+]?\d+)?%?(?![\w])")
_PLAIN = re.compile(r"\s*\$?\s*[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d{1,3})?\s*\$?\s*", re.ASCII)
_INSTALL = "Install it: pip install 'counterplay[math]'"
_DIGITS = Decimal("0.000001")


@dataclass(frozen=True, eq=False)
class MathAnswer(Pack):
    r"""An outcome verifier: 1 where the final answer equals the gold, 0 where it does not or there is none; no opinion on prefixes.

    `gold` is one answer for every trajectory, or what finds it: `ByPrefix.from_traces(traces, "answer")`, or a callable that gives
    None where it does not know, which is no opinion. The answer is the last `\boxed{...}` of the last message with text, else what
    follows the last "answer is", else the last formula, else the last number; or, with `submit`, the argument of the last call of
    that tool (`argument`, or its only one). Several alternatives ("3 or 4") are no answer.

    Raises VerifierError where comparing takes more than `timeout_s` or fails, and UserError where math-verify is not installed.
    """

    name: ClassVar[str] = "math"
    gold: str | float | ByPrefix[Any] | Callable[[Trajectory], Any]
    submit: str | None = None
    argument: str | None = None
    timeout_s: float = 5.0

    async def __call__(self, trajectory: Trajectory, /) -> Score | None:
        if not trajectory.finished:
            return None
        return await asyncio.to_thread(self._judge, trajectory)

    async def batch(self, trajectories: Sequence[Trajectory]) -> list[Score | Exception | None]:
        """Opinions in the order of the trajectories; an exception for each that could not be compared."""
        return await asyncio.to_thread(lambda: [self._caught(each) for each in trajectories])

    def answer(self, trajectory: Trajectory) -> str | None:
        """The final answer of a trajectory as it was written; None where there is none."""
        if self.submit is None:
            texts = (step.action.content_text for step in reversed(trajectory.steps))
            return extract(next((text for text in texts if text.strip()), ""))
        calls = (call for step in reversed(trajectory.steps) for call in reversed(step.action.tool_calls) if call.name == self.submit)
        args = next((call.args or {} for call in calls), {})
        value = args.get(self.argument) if self.argument else next(iter(args.values()), None) if len(args) == 1 else None
        return None if value is None else extract(str(value)) or str(value)

    def _caught(self, trajectory: Trajectory) -> Score | Exception | None:
        try:
            return self._judge(trajectory) if trajectory.finished else None
        except Exception as error:  # noqa: BLE001  an opinion that failed is given out as its exception
            return error

    def _judge(self, trajectory: Trajectory) -> Score | None:
        gold = self.gold(trajectory) if callable(self.gold) else self.gold
        if gold is None:
            return None
        given = self.answer(trajectory)
        if given is None:
            return self.score(0.0, "there is no final answer")
        equal = equivalent(str(gold), given, timeout_s=self.timeout_s)
        return self.score(float(equal), f"answer {given[:80]!r} {'equals' if equal else 'is not'} {str(gold)[:80]!r}")


def extract(text: str) -> str | None:
    """The final answer that a text gives, as it is written there; None where it gives none, or several alternatives."""
    boxed = _last_boxed(text)
    if boxed is not None:
        return boxed or None
    anchors = list(_ANCHOR.finditer(text))
    if anchors:
        tail = text[anchors[-1].end() :].strip().split("\n")[0].strip()
        if re.search(r"\s(?:or|oder|ou)\s", tail):
            return None
        return _formula(tail) or _number_in(tail, last=False) or tail.strip(" .*_") or None
    return _formula(text) or _number_in(text, last=True)


def equivalent(gold: str, given: str, *, timeout_s: float = 5.0) -> bool:
    """Whether two answers are the same mathematics; plain numbers are compared to six decimals without asking anybody."""
    numbers = _plain_number(gold), _plain_number(given)
    if numbers[0] is not None and numbers[1] is not None:
        return abs(numbers[0] - numbers[1]) < _DIGITS / 2
    result = _WORKER.ask(_powers(gold), _powers(given), timeout_s)
    if "error" in result:
        raise VerifierError(f"got answer {given[:80]!r}, which can't be compared with {gold[:80]!r}: {result['error']}")
    return bool(result["equal"])


def _last_boxed(text: str) -> str | None:
    r"""What the last `\boxed{}` holds, braces matched; None where there is none."""
    start = max(text.rfind(r"\boxed{"), text.rfind(r"\fbox{"))
    if start < 0:
        return None
    depth, begin = 0, text.index("{", start)
    for index in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[index], 0)
        if depth == 0:
            return text[begin + 1 : index].strip()
    return text[begin + 1 :].strip()


def _formula(text: str) -> str | None:
    found = [next(part for part in match.groups() if part) for match in _MATH.finditer(text)]
    return found[-1].strip() if found else None


def _number_in(text: str, *, last: bool) -> str | None:
    found = [match[0] for match in _NUMBER.finditer(text)]
    return found[-1 if last else 0] if found else None


def _plain_number(text: str) -> Decimal | None:
    if _PLAIN.fullmatch(text) is None:
        return None
    return Decimal(text.strip().strip("$").strip().replace(",", ""))


def _powers(text: str) -> str:
    """Scientific notation as a product, which is how math-verify reads it."""
    return re.sub(r"(?<![\w.])(\d+(?:\.\d+)?)[eE]([-+]?\d{1,3})(?!\w)", r"\1*10^(\2)", text)


class _Worker:
    """One process for all who ask, started when first asked and again after it was ended by a question."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0
        self._inherited: subprocess.Popen[str] | None = None

    def ask(self, gold: str, given: str, timeout_s: float) -> dict[str, Any]:
        question = json.dumps({"gold": gold, "answer": given, "timeout_s": timeout_s})
        with self._lock:
            process = self._started()
            reply = _exchange(process, question)
            if reply is None:
                self.stop()
                got = f"got answer {given[:80]!r}, and comparing it with {gold[:80]!r} took over {timeout_s:g} s or 2 GiB"
                raise VerifierError(got, "an answer in closed form", "Raise timeout_s, or leave the trajectory out.")
            return reply

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None and self._owner == os.getpid():
            process.kill()
            process.communicate()

    def after_fork(self) -> None:
        """In a forked process: another thread may have held the lock, and the process that was started is the parent's."""
        self._lock, self._inherited, self._process = threading.Lock(), self._process, None

    def _started(self) -> subprocess.Popen[str]:
        if self._process is not None and self._owner == os.getpid():
            return self._process
        if find_spec("math_verify") is None:
            raise UserError("got the math pack without math-verify", "the extra `math`", _INSTALL)
        script = str(Path(__file__).with_name("maths_worker.py"))
        process = subprocess.Popen(  # noqa: S603  our own file
            [sys.executable, "-P", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._process, self._owner = process, os.getpid()
        ready = _read(process)
        if ready is None or "missing" in ready:
            self.stop()
            raise UserError(f"got math-verify, which fails on import: {(ready or {}).get('missing', 'its process ended')}", "", _INSTALL)
        return process


def _exchange(process: subprocess.Popen[str], question: str) -> dict[str, Any] | None:
    try:
        process.stdin.write(question + "\n")  # type: ignore[union-attr]
        process.stdin.flush()  # type: ignore[union-attr]
    except OSError:
        return None
    return _read(process)


def _read(process: subprocess.Popen[str]) -> dict[str, Any] | None:
    """The next line of the process; None where it has ended."""
    line = process.stdout.readline()  # type: ignore[union-attr]
    return json.loads(line) if line else None


_WORKER = _Worker()
atexit.register(_WORKER.stop)
os.register_at_fork(after_in_child=_WORKER.after_fork)
