"""Runs unit tests inside the sandbox, each in a process of its own, and says of each whether it passed.

Started as a script with `runner tests-file seconds` and a secret as the first line of stdin; its lines on the true stdout begin with that
secret, all other output goes to stderr. Test names are read from the source, so that the code under test never runs in this process.
A test passes where it says so after its last line has run: leaving early passes nothing.
"""

from __future__ import annotations

import ast
import json
import os
import select
import signal
import sys
import time
from typing import Any


def names_in(source: str) -> list[str]:
    """The tests of a file in order: functions `test*`, methods `test*` of classes, and asserts and calls at top level (by line)."""
    found: list[str] = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test"):
            found.append(node.name)
        elif isinstance(node, ast.ClassDef):
            inner = [item.name for item in node.body if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef)]
            found += [f"{node.name}.{name}" for name in inner if name.startswith("test")]
        elif isinstance(node, ast.Assert) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
            found.append(f"line {node.lineno}")
    return found


def run_one(source: str, file: str, name: str) -> None:
    """Run one test of the file; raises where it fails."""
    line = int(name.removeprefix("line ")) if name.startswith("line ") else None
    tree = ast.parse(source, file)
    setup = [node for node in tree.body if not _is_check(node)]
    check = [node for node in tree.body if node.lineno == line and _is_check(node)]
    scope: dict[str, Any] = {"__name__": "tests", "__file__": file}
    exec(compile(ast.Module(setup, []), file, "exec"), scope)  # noqa: S102  the point of the sandbox
    if line is not None:
        exec(compile(ast.Module(check, []), file, "exec"), scope)  # noqa: S102
        return
    head, _, method = name.partition(".")
    if not method:
        _finish(scope[head]())
        return
    import unittest

    kind = scope[head]
    if issubclass(kind, unittest.TestCase):
        result = kind(method).run()
        bad = [text for _, text in (result.failures + result.errors)] if result else ["it did not run"]
        if bad:
            raise AssertionError(bad[0].strip().splitlines()[-1])
    else:
        _finish(getattr(kind(), method)())


def _is_check(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assert) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call))


def _finish(result: Any) -> None:
    if hasattr(result, "__await__"):
        import asyncio

        asyncio.run(_awaited(result))


async def _awaited(result: Any) -> None:
    await result


def run_pytest(file: str, say: Any) -> None:
    """Run the file under pytest, saying the outcome of each test as it is known."""
    import pytest

    class Listener:
        def pytest_collection_finish(self, session: Any) -> None:
            say({"tests": [item.nodeid for item in session.items]})

        def pytest_collectreport(self, report: Any) -> None:
            if report.failed:
                say({"tests": [report.nodeid or file]})
                say({"test": report.nodeid or file, "passed": False, "reason": _last_line(str(report.longrepr))})

        def pytest_runtest_logreport(self, report: Any) -> None:
            if report.failed:
                say({"test": report.nodeid, "passed": False, "reason": _crash(report)})
            elif report.when == "call" and report.passed:
                say({"test": report.nodeid, "passed": True, "reason": ""})
            elif report.skipped:
                say({"test": report.nodeid, "passed": None, "reason": "skipped"})

    pytest.main(["-q", "-p", "no:cacheprovider", "--rootdir", os.getcwd(), file], plugins=[Listener()])  # noqa: PTH109


def _crash(report: Any) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(crash.message if crash else report.longrepr)[:300]


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1][:300] if lines else ""


def in_a_process(work: Any, seconds: float) -> list[dict[str, Any]]:
    """What `work(say)` says in a process of its own that is ended after `seconds`."""
    read, write = os.pipe()
    token = os.urandom(16).hex().encode()  # so that what is written to every open file at random is not taken for an answer
    child = os.fork()
    if not child:
        os.close(read)
        os.setpgid(0, 0)
        try:
            work(lambda said: os.write(write, token + json.dumps(said).encode() + b"\n"))
        finally:
            sys.stderr.flush()
            os._exit(0)
    os.close(write)
    data, deadline = b"", time.monotonic() + seconds
    while select.select([read], [], [], max(0.0, deadline - time.monotonic()))[0]:
        more = os.read(read, 1 << 16)
        if not more:
            break
        data += more
    else:
        data += b"\n" + token + b'{"late": true}\n'
    for kill in (os.killpg, os.kill):
        try:
            kill(child, signal.SIGKILL)
        except OSError:
            continue
    os.waitpid(child, 0)
    os.close(read)
    return [json.loads(line.removeprefix(token)) for line in data.splitlines() if line.startswith(token)]


def main() -> None:
    runner, file, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
    secret = sys.stdin.readline().strip()
    true_stdout = os.dup(1)
    os.dup2(2, 1)

    def say(said: dict[str, Any]) -> None:
        os.write(true_stdout, f"{secret} {json.dumps(said)}\n".encode())

    sys.path.insert(0, os.getcwd())  # noqa: PTH109
    with open(file, encoding="utf-8") as opened:  # noqa: PTH123
        source = opened.read()
    if runner == "pytest":
        answers = in_a_process(lambda tell: run_pytest(file, tell), seconds)
        if not any("tests" in answer for answer in answers):
            late = {"late": True} in answers
            say({"tests": [file]})
            say({"test": file, "passed": False, "reason": _unfinished(seconds, late=late)})
        for answer in answers:
            say(answer)
        return
    names = names_in(source)
    say({"tests": names})
    for name in names:
        say({"test": name, **_outcome(source, file, name, seconds, true_stdout)})


def _outcome(source: str, file: str, name: str, seconds: float, true_stdout: int) -> dict[str, Any]:
    def work(tell: Any) -> None:
        os.close(true_stdout)
        try:
            run_one(source, file, name)
        except BaseException as error:  # noqa: BLE001  also SystemExit: a test that leaves has not passed
            reason = f"{type(error).__name__}: {error}".strip(": ")
            tell({"passed": False, "reason": reason[:300]})
        else:
            tell({"passed": True, "reason": ""})

    said = in_a_process(work, seconds)
    if said and "passed" in said[0]:
        return said[0]
    return {"passed": False, "reason": _unfinished(seconds, late=bool(said))}


def _unfinished(seconds: float, *, late: bool) -> str:
    return f"not done after {seconds:g} s" if late else "its process ended before the test did"


if __name__ == "__main__":
    main()
