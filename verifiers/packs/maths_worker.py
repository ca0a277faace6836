"""The process in which mathematics is compared: one JSON question a line, one answer a line, and no third way out.

math-verify stops itself by signals, which work in a main thread alone and not inside one long power of integers. Here the alarm has
its default action, so the kernel ends the process when a question takes too long, whatever it was doing. The file is run by its path
and imports nothing of the toolkit.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sys
from typing import Any, TextIO

_MEMORY_BYTES = 2 << 30


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """Whether `answer` equals `gold`, and both as they were understood; `understood` is False where the answer is no mathematics."""
    from math_verify import parse, verify  # type: ignore[import-untyped]

    gold = parse(_delimited(question["gold"]), parsing_timeout=None)
    given = parse(_delimited(question["answer"]), parsing_timeout=None)
    if not gold:
        same = " ".join(question["gold"].casefold().split()) == " ".join(question["answer"].casefold().split())
        return {"equal": same, "understood": True}
    equal = bool(given) and bool(verify(gold, given, timeout_seconds=None, raise_on_error=True))
    return {"equal": equal, "understood": bool(given)}


def _delimited(text: str) -> str:
    """A formula that stands alone, in dollars, so that it is read as one; numbers, words and what has dollars stay as they are."""
    bare = text.strip()
    if "$" in bare or bare.startswith((r"\(", r"\[", r"\boxed")):
        return bare
    formula = "\\" in bare or (any(each.isalpha() for each in bare) and any(each in "+-*/^=<>(){}_" for each in bare))
    return f"${bare}$" if formula else bare


def _private_stdout() -> TextIO:
    """Where the answers go; whatever else is printed goes nowhere."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    return out


def _reply(out: TextIO, value: dict[str, Any]) -> None:
    out.write(json.dumps(value) + "\n")
    out.flush()


def main() -> None:
    out = _private_stdout()
    logging.disable(logging.CRITICAL)
    try:
        answer({"gold": "$1$", "answer": "$1$"})
    except ImportError as error:
        _reply(out, {"missing": str(error)})
        return
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    _reply(out, {"ready": True})
    for line in sys.stdin:
        question = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, question["timeout_s"])
        try:
            result = answer(question)
        except Exception as error:  # noqa: BLE001  whatever sympy raises on an odd expression is an answer: it can't be compared
            result = {"error": f"{type(error).__name__}: {error}"[:300]}
        signal.setitimer(signal.ITIMER_REAL, 0)
        _reply(out, result)


if __name__ == "__main__":
    main()
