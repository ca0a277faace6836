"""The code pack: verifiers of a produced file or patch, by unit tests, by compiling, by linting, and by likeness to a known patch.

Everything that is not plain text comparison runs in the sandbox (`verifiers.sandbox`).
"""

from __future__ import annotations

import json
import math
import secrets
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from counterplay.core.errors import UserError, VerifierError
from counterplay.core.nouns import Score
from counterplay.verifiers.packs import patches
from counterplay.verifiers.packs.produced import LastBlock, OfProduced, Where
from counterplay.verifiers.sandbox import Isolation, Limits, Ran, run

_INSIDE = Path(__file__).with_name("testing_inside.py")
_TESTS = "counterplay_tests.py"
_RUNNER = "counterplay_runner.py"

PYTHON = LastBlock(("python", "py", "python3", ""))
PATCH = LastBlock(("diff", "patch", ""))


@dataclass(frozen=True, eq=False, kw_only=True)
class UnitTests(OfProduced):
    """The share of unit tests that pass; the reason names the first that fails.

    `reference` is the text of a Python test file. The produced text is put beside it as `file`, or, with `patch`, applied as a
    unified diff to `files`; one that does not fit scores 0. `runner` "plain" runs functions `test*`, test methods and top-level
    asserts and calls, each in a process of its own and for at most `test_s` seconds; "pytest" runs all under pytest, where that is
    installed, in one process and for at most `test_s` seconds together. No opinion where there are no tests.
    """

    name: ClassVar[str] = "unit_tests"
    version: ClassVar[str] = "1"

    where: Where = PYTHON
    file: str = "solution.py"
    files: Mapping[str, str] = field(default_factory=dict)
    patch: bool = False
    runner: Literal["plain", "pytest"] = "plain"
    test_s: float = 5.0
    limits: Limits = field(default_factory=lambda: Limits(wall_s=30.0, cpu_s=30.0))
    isolation: Isolation = "best"

    async def judge(self, text: str, reference: str, /) -> Score | None:
        try:
            given = patches.apply(text, self.files) if self.patch else {**self.files, self.file: text}
        except patches.WrongFormatError as error:
            return self.score(0.0, f"the patch does not apply: {error}")
        if any(not _inside(name) for name in given):
            return self.score(0.0, "the patch leads outside")
        secret = secrets.token_hex(16)
        ran = await run(
            [sys.executable, _RUNNER, self.runner, _TESTS, str(self.test_s)],
            files={**given, _TESTS: reference, _RUNNER: _INSIDE},
            stdin=f"{secret}\n",
            limits=self.limits,
            isolation=self.isolation,
        )
        return self._judged(ran, secret)

    def _judged(self, ran: Ran, secret: str) -> Score | None:
        said = [json.loads(line.removeprefix(secret)) for line in ran.stdout.splitlines() if line.startswith(secret)]
        names = [name for line in said for name in line.get("tests", ())]
        results: dict[str, dict[str, Any]] = {}
        for line in said:
            if "test" in line and results.get(line["test"], {}).get("passed") is not False:  # failed once, as in its teardown, is failed
                results[line["test"]] = line
        counted = [name for name in dict.fromkeys(names) if results.get(name, {}).get("passed", False) is not None]
        if not counted:
            if names or (ran.ok and said):
                return None
            raise VerifierError(f"the tests could not be run: {ran.ending}: {ran.stderr[-500:].strip()}", "a test file that can be read")
        passed = [name for name in counted if results.get(name, {}).get("passed")]
        if len(passed) == len(counted):
            return self.score(1.0, f"{_number(counted)} passed")
        first = next(name for name in counted if name not in passed)
        why = results.get(first, {}).get("reason") or f"it was not run: {ran.ending}"
        return self.score(len(passed) / len(counted), f"{len(passed)} of {_number(counted)} passed; {first}: {why}")


@dataclass(frozen=True, eq=False, kw_only=True)
class Compiles(OfProduced):
    """1 where the produced text compiles, else 0 with the compiler's message.

    `command` is run in the sandbox beside the text, which it finds as `file`; its exit status decides. Without one, Python compiles it.
    """

    name: ClassVar[str] = "compiles"
    version: ClassVar[str] = "1"
    compares: ClassVar[bool] = False

    where: Where = PYTHON
    file: str = "solution.py"
    command: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    isolation: Isolation = "best"

    async def judge(self, text: str, _reference: str = "", /) -> Score | None:
        check = f"import sys\nsource = open({self.file!r}, 'rb').read()\ntry:\n    compile(source, {self.file!r}, 'exec')\n"
        check += "except Exception as error:\n    sys.exit(f'{type(error).__name__}: {error}')"
        argv = self.command or (sys.executable, "-I", "-S", "-c", check)
        ran = await run(argv, files={self.file: text}, limits=self.limits, isolation=self.isolation)
        if ran.ok:
            return self.score(1.0, "it compiles")
        said = next((line for line in ran.stderr.strip().splitlines() if line.strip()), ran.ending)
        return self.score(0.0, f"it does not compile: {said[:300]}")


@dataclass(frozen=True, eq=False, kw_only=True)
class Lints(OfProduced):
    """1 minus ruff's findings per line that is not empty, at least 0; the reason names the first finding. 0 for a syntax error.

    `rules` are ruff's rule selectors. Raises UserError where ruff is not installed.
    """

    name: ClassVar[str] = "lints"
    version: ClassVar[str] = "1"
    compares: ClassVar[bool] = False

    where: Where = PYTHON
    rules: tuple[str, ...] = ("E4", "E7", "E9", "F")
    limits: Limits = field(default_factory=Limits)
    isolation: Isolation = "best"

    async def judge(self, text: str, _reference: str = "", /) -> Score | None:
        ruff = shutil.which("ruff", path=str(Path(sys.executable).parent)) or shutil.which("ruff")
        if ruff is None:
            raise UserError("got no ruff, which this verifier runs", "ruff on the path", "pip install ruff")
        argv = [ruff, "check", "--isolated", "--no-cache", "--output-format=json", f"--select={','.join(self.rules)}", "solution.py"]
        ran = await run(argv, files={"solution.py": text}, read=[Path(ruff)], limits=self.limits, isolation=self.isolation)
        if ran.exit not in {0, 1}:
            raise VerifierError(f"ruff: {ran.ending}: {ran.stderr[-300:].strip()}", "findings as JSON")
        findings = json.loads(ran.stdout or "[]")
        if not findings:
            return self.score(1.0, "no findings")
        broken = [found for found in findings if found["code"] in {None, "invalid-syntax"}]
        first = (broken or findings)[0]
        lines = max(1, sum(bool(line.strip()) for line in text.splitlines()))
        reason = f"{len(findings)} findings in {lines} lines; line {first['location']['row']}: {first['message']}"
        return self.score(0.0 if broken else 1.0 - len(findings) / lines, reason)


@dataclass(frozen=True, eq=False, kw_only=True)
class PatchSimilarity(OfProduced):
    """How alike the produced patch is to the one in `reference`: (r + 1) / 2, with r the ratio of matching characters in [0, 1], and
    r = -1 for a text that is not a unified diff.

    Wei et al. 2025, SWE-RL: Advancing LLM Reasoning via Reinforcement Learning on Open Software Evolution. So 0 is a wrong format alone,
    0.5 a patch that has nothing in common, 1 the same patch. Raises UserError where the reference is not a unified diff.
    """

    name: ClassVar[str] = "patch_similarity"
    version: ClassVar[str] = "1"
    what: ClassVar[str] = "patch"

    where: Where = PATCH

    async def judge(self, text: str, reference: str, /) -> Score | None:
        try:
            patches.parse(reference)
        except patches.WrongFormatError as error:
            raise UserError(f"got a reference that is not a unified diff: {error}", "the text of a patch") from error
        try:
            ratio = patches.similarity(text, reference)
        except patches.WrongFormatError as error:
            return self.score(0.0, f"not a unified diff: {error}")
        shown = math.floor(100 * ratio) / 100  # 1.00 is said of equal patches alone
        return self.score((ratio + 1) / 2, f"similarity {shown:.2f}")


def _inside(name: str) -> bool:
    return bool(name) and not name.startswith("/") and ".." not in Path(name).parts and "\0" not in name and name not in {_TESTS, _RUNNER}


def _number(names: list[str]) -> str:
    return "1 test" if len(names) == 1 else f"{len(names)} tests"
