"""The code pack: what is found in a trajectory, unit tests, compiling, linting, patches; hostile solutions score what they pass."""

import asyncio
import json
import runpy
from importlib.util import find_spec
from pathlib import Path
from random import Random

import pytest

from counterplay.core.errors import UserError, VerifierError
from counterplay.core.journal import ask_all
from counterplay.core.protocols import fingerprint_of
from counterplay.verifiers.check import check
from counterplay.verifiers.packs import code, patches
from counterplay.verifiers.packs.base import ByPrefix
from counterplay.verifiers.packs.produced import Argument, FirstOf, LastBlock, LastText, fenced
from counterplay.verifiers.sandbox import Limits, available
from tests.verifiers.produced_code import block, called, hostile, said

isolated = pytest.mark.skipif(not available(), reason="neither bubblewrap nor Landlock works on this machine")
ADD = "def add(a, b):\n    return a + b"
TESTS = """
import unittest
from solution import add

def test_small():
    assert add(1, 2) == 3

async def test_negative():
    assert add(-1, 1) == 0, "signs"

class TestLarge(unittest.TestCase):
    def test_large(self):
        self.assertEqual(add(10**9, 1), 10**9 + 1)

class TestPlain:
    def test_words(self):
        assert add("a", "b") == "ab"

assert add(0, 0) == 0
"""


# --- where it is ------------------------------------------------------------------------------------------------------------------


def test_blocks_are_read_as_markdown_has_them():
    text = "a\n```py x=1\none\n```\n~~~~\ntwo\n~~~\n~~~~\n``` not ` a fence\n````sh\n```\n````\n```\nopen"
    assert list(fenced(text)) == [("py", "one\n"), ("", "two\n~~~\n"), ("sh", "```\n")]


def test_the_last_of_what_is_asked_for():
    trajectory = said(block("one"), block("two", "js") + block("three", "Python"), "no block")
    assert LastBlock()(trajectory) == "three\n"
    assert LastBlock(("js",))(trajectory) == "two\n"
    assert LastBlock(("sql",))(trajectory) is None
    assert LastText()(trajectory) == "no block"
    assert FirstOf((LastBlock(("sql",)), LastText()))(trajectory) == "no block"
    assert LastBlock()(trajectory.prefix(1)) == "one\n"


def test_an_argument_of_a_tool_call():
    trajectory = called("write", '{"path": "a.py", "text": "x = 1"}')
    assert Argument("text")(trajectory) == "x = 1"
    assert Argument("text", tool="write")(trajectory) == "x = 1"
    assert Argument("text", tool="read")(trajectory) is None
    assert Argument("other")(trajectory) is None


def test_no_verifier_stumbles_over_a_hostile_trajectory():
    for trajectory in hostile():
        for where in (LastBlock(), Argument("text"), LastText(), FirstOf((Argument("sql"), LastBlock(("",))))):
            found = where(trajectory)
            assert found is None or isinstance(found, str)


# --- unit tests --------------------------------------------------------------------------------------------------------------------


@isolated
async def test_the_share_of_tests_that_pass():
    verifier = code.UnitTests(reference=TESTS)
    right = await verifier(said(block(ADD)))
    assert (right.value, right.reason, right.verifier) == (1.0, "5 tests passed", "unit_tests")
    wrong = await verifier(said(block("def add(a, b):\n    return abs(a) + abs(b) if isinstance(a, int) else a + b")))
    assert wrong.value == 0.8
    assert wrong.reason == "4 of 5 tests passed; test_negative: AssertionError: signs"


@isolated
async def test_nothing_yet_nothing_at_all_and_no_tests():
    verifier = code.UnitTests(reference=TESTS)
    assert await verifier(said("thinking")) is None
    assert (await verifier(said("gave up", ended=True))).value == 0.0
    assert await verifier(said(block(ADD)).prefix(0)) is None
    assert await code.UnitTests()(said(block(ADD))) is None
    assert await code.UnitTests(reference="x = 1")(said(block(ADD))) is None


HOSTILE = {
    "leaves early": "import os, sys\nprint('5 tests passed')\nos._exit(0)",
    "raises SystemExit": "raise SystemExit(0)",
    "answers on every open file": """import os
for fd in range(3, 64):
    try:
        os.write(fd, b'{"passed": true}\\n')
    except OSError:
        pass
os._exit(0)""",
    "kills its runner": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)",
    "kills everything": "import os, signal\nos.kill(-1, signal.SIGKILL)",
    "endless": "while True: pass",
    "fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "ten gigabytes": "x = bytearray(10 << 30)",
    "endless output": "while True: print('x' * 1000)",
    "crashes": "import ctypes\nctypes.string_at(0)",
    "does not compile": "def add(:",
    "replaces the tests": "open('counterplay_tests.py', 'w').write('def test_small(): pass\\n')\nraise SystemExit",
    "deletes everything": "import shutil\nshutil.rmtree('.', ignore_errors=True)\nraise SystemExit",
    "deep recursion": "def add(a, b): return add(a, b)",
    "reads the tests' folder upwards": "raise ValueError(open('/etc/passwd').read())",
}


@isolated
@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_solution_passes_nothing(name):
    limits = Limits(wall_s=60, cpu_s=3, memory_bytes=256 << 20, output_bytes=1 << 16, processes=32)
    verifier = code.UnitTests(reference="from solution import add\ndef test_small(): assert add(1, 2) == 3", test_s=0.5, limits=limits)
    score = await verifier(said(block(HOSTILE[name])))
    assert score.value == 0.0, score
    assert score.reason.startswith("0 of 1 test passed; test_small: ")
    assert "root:" not in score.reason


@isolated
async def test_one_test_that_never_ends_costs_only_itself():
    solution = "def add(a, b):\n    while a == 1: pass\n    return a + b"
    verifier = code.UnitTests(reference="from solution import add\nassert add(1, 2) == 3\nassert add(2, 2) == 4", test_s=0.5)
    score = await verifier(said(block(solution)))
    assert (score.value, score.reason) == (0.5, "1 of 2 tests passed; line 2: not done after 0.5 s")


@isolated
async def test_a_file_of_tests_that_can_t_be_read_is_an_error_not_a_score():
    with pytest.raises(VerifierError, match="could not be run"):
        await code.UnitTests(reference="def test_(:")(said(block(ADD)))


@isolated
@pytest.mark.skipif(not find_spec("pytest"), reason="pytest is not installed")
async def test_under_pytest_with_fixtures_and_parameters():
    tests = "import pytest\nfrom solution import add\n@pytest.mark.parametrize('n', range(4))\n"
    tests += "def test_n(n, tmp_path):\n    assert add(n, 1) != 3\n"
    tests += "@pytest.mark.skip\ndef test_skipped(): pass\n"
    verifier = code.UnitTests(reference=tests, runner="pytest", test_s=20)
    score = await verifier(said(block(ADD)))
    assert score.value == 0.75
    assert "test_n[2]: assert 3 != 3" in score.reason
    early = await verifier(said(block("import os\nos._exit(0)")))
    assert early.value == 0.0


@isolated
async def test_equal_texts_are_judged_once_a_batch_and_answers_stay_in_order(monkeypatch):
    judged = []
    true = code.UnitTests.judge

    async def counted(self, text, reference):
        judged.append(text)
        return await true(self, text, reference)

    monkeypatch.setattr(code.UnitTests, "judge", counted)
    verifier = code.UnitTests(reference=TESTS)
    trajectories = [said(block(ADD)), said("nothing"), said(block("def add(a, b): return 0")), said(block(ADD)), said("x", ended=True)]
    scores = await ask_all(verifier, trajectories)
    assert [score and score.value for score in scores] == [1.0, None, 0.4, 1.0, 0.0]
    assert len(judged) == 2


async def test_tests_of_each_task():
    by_task = ByPrefix.of([(said("x", question="add"), "assert 1"), (said("x", question="sub"), "assert 2")])
    verifier = code.UnitTests(reference=by_task)
    assert by_task(said("x", question="sub")) == "assert 2"
    assert await verifier(said(block(ADD), question="other")) is None
    assert fingerprint_of(verifier) != fingerprint_of(code.UnitTests(reference=ByPrefix.of([])))


def test_settings_are_in_the_fingerprint():
    seen = {fingerprint_of(code.UnitTests(reference=text, test_s=seconds)) for text in ("a", "b") for seconds in (1.0, 2.0)}
    assert len(seen) == 4
    assert fingerprint_of(code.Compiles()) == fingerprint_of(code.Compiles())
    assert fingerprint_of(code.Lints()) != fingerprint_of(code.Lints(rules=("E",)))


# --- compiling and linting -----------------------------------------------------------------------------------------------------------


@isolated
async def test_compiling():
    verifier = code.Compiles()
    assert (await verifier(said(block(ADD)))).value == 1.0
    broken = await verifier(said(block("def add(:\n")))
    assert broken.value == 0.0
    assert "SyntaxError" in broken.reason
    assert (await verifier(said(block("(" * 100_000)))).value == 0.0
    assert (await verifier(said(block("raise SystemExit(1)")))).value == 1.0
    told = code.Compiles(file="a.json", command=("python3", "-m", "json.tool", "a.json"), where=LastBlock(("json",)))
    assert [(await told(said(block(text, "json")))).value for text in ('{"a": 1}', "{a}")] == [1.0, 0.0]


@isolated
@pytest.mark.skipif(not find_spec("ruff"), reason="ruff is not installed")
async def test_linting():
    verifier = code.Lints()
    assert (await verifier(said(block(ADD)))).value == 1.0
    unused = await verifier(said(block("import os\nimport sys\n\nx = 1\ny = 2")))
    assert unused.value == 0.5
    assert unused.reason == "2 findings in 4 lines; line 1: `os` imported but unused"
    assert (await verifier(said(block("def add(:")))).value == 0.0


async def test_linting_without_ruff_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(code.shutil, "which", lambda *_, **__: None)
    with pytest.raises(UserError, match="ruff"):
        await code.Lints()(said(block(ADD)))


# --- patches ---------------------------------------------------------------------------------------------------------------------------

OLD = "".join(f"line {n}\n" for n in range(1, 21))
PATCH = """diff --git a/f.txt b/f.txt
index 1..2 100644
--- a/f.txt
+++ b/f.txt
@@ -2,3 +2,4 @@ heading
 line 2
-line 3
+line three
+line three and a half
 line 4
@@ -18,3 +19,2 @@
 line 18
-line 19
 line 20
"""


def test_a_patch_is_read_and_applied():
    (patch,) = patches.parse(PATCH)
    assert (patch.path, len(patch.hunks)) == ("f.txt", 2)
    after = patches.apply(PATCH, {"f.txt": OLD, "g": "kept"})
    assert after["f.txt"] == OLD.replace("line 3\n", "line three\nline three and a half\n").replace("line 19\n", "")
    assert after["g"] == "kept"
    assert patches.apply(PATCH, {"f.txt": "new\n" * 7 + OLD})["f.txt"].startswith("new\n" * 7 + "line 1\nline 2\nline three\n")


def test_a_later_hunk_is_looked_for_where_earlier_ones_moved_it():
    text = "--- a/f\n+++ b/f\n@@ -1 +1,6 @@\n x\n+1\n+2\n+3\n+4\n+5\n@@ -20,2 +25,3 @@\n x\n+mark\n x\n"
    assert patches.apply(text, {"f": "x\n" * 40})["f"].splitlines().index("mark") == 25


def test_files_that_a_patch_makes_removes_and_renames():
    made = "--- /dev/null\n+++ b/new.py\n@@ -0,0 +1,2 @@\n+a\n+b\n"
    gone = "--- a/old.py\n+++ /dev/null\n@@ -1 +0,0 @@\n-x\n\\ No newline at end of file\n"
    moved = "--- a/old.py\n+++ b/moved.py\n@@ -1 +1 @@\n-x\n+y\n"
    assert patches.apply(made + gone, {"old.py": "x"}) == {"new.py": "a\nb\n"}
    assert patches.apply(moved, {"old.py": "x\n"}) == {"moved.py": "y\n"}


@pytest.mark.parametrize(
    "text",
    ["", "no patch", "--- a/f\n+++ b/f\n", "--- a/f\n+++ b/f\n@@ -1,3 +1,3 @@\n a\n", "--- a/f\n+++ b/f\n@@ -1 +1 @@\n-a\n!b\n",
     "--- /dev/null\n+++ /dev/null\n@@ -1 +1 @@\n-a\n+b\n", "--- a/f\n+++ b/f\n@@ -1,1 +1,2 @@\n-a\n-b\n+c\n"],
)  # fmt: skip
def test_what_is_no_patch(text):
    with pytest.raises(patches.WrongFormatError):
        patches.parse(text)


def test_a_patch_that_does_not_fit():
    with pytest.raises(patches.WrongFormatError, match="does not fit"):
        patches.apply(PATCH, {"f.txt": OLD.replace("line 4", "line four")})
    with pytest.raises(patches.WrongFormatError, match="no file"):
        patches.apply(PATCH, {})


def test_applying_undoes_difflib():
    import difflib

    random = Random(7)
    for _ in range(60):
        old = [f"{random.randrange(5)}" for _ in range(random.randrange(30))]
        new = [line for line in old if random.random() > 0.2]
        for _ in range(random.randrange(1, 5)):
            new.insert(random.randrange(len(new) + 1), f"new {random.randrange(3)}")
        text = "\n".join(difflib.unified_diff(old, new, "a/f", "b/f", lineterm=""))
        assert patches.apply(text, {"f": "".join(f"{line}\n" for line in old)})["f"] == "".join(f"{line}\n" for line in new)


async def test_similarity_to_a_known_patch():
    verifier = code.PatchSimilarity(reference=PATCH)
    values = {}
    texts = {
        "same": PATCH,
        "near": PATCH.replace("three", "3"),
        "other file": PATCH.replace("f.txt", "g.txt"),
        "prose": "I changed line 3.",
    }
    for name, text in texts.items():
        values[name] = (await verifier(said(block(text, "diff")))).value
    assert values["same"] == 1.0
    assert 0.5 < values["near"] < 1.0
    assert values["other file"] == 0.5
    assert values["prose"] == 0.0
    assert (await verifier(said("nothing", ended=True))).reason == "it ended and produced no patch"
    with pytest.raises(UserError, match="unified diff"):
        await code.PatchSimilarity(reference="prose")(said(block(PATCH, "diff")))


def test_similarity_is_the_mean_over_all_files_of_difflib_s_ratio():
    import difflib

    hunk, long = "@@ -1 +1 @@\n-{}\n+{}\n", "ab" * 150
    one = "--- a/f\n+++ b/f\n" + hunk.format("abc", long) + "--- a/g\n+++ b/g\n" + hunk.format("x", "y")
    other = "--- a/f\n+++ b/f\n" + hunk.format("abc", long[1:])
    ratio = difflib.SequenceMatcher(None, f"-abc\n+{long}", f"-abc\n+{long[1:]}", autojunk=False).ratio()
    assert patches.similarity(one, other) == pytest.approx(ratio / 2)
    assert patches.similarity(other, one) > 0


def test_large_patches_are_compared_by_lines():
    body = "\n".join(f"+line {n} of a large file" for n in range(4000))
    text = f"--- /dev/null\n+++ b/f\n@@ -0,0 +1,4000 @@\n{body}\n"
    assert patches.similarity(text, text.replace("line 7 ", "line seven ")) == pytest.approx(1.0, abs=1e-2)


@isolated
async def test_a_patch_is_tested():
    files = {"pkg/calc.py": "def add(a, b):\n    return a - b\n", "pkg/__init__.py": ""}
    fix = "--- a/pkg/calc.py\n+++ b/pkg/calc.py\n@@ -1,2 +1,2 @@\n def add(a, b):\n-    return a - b\n+    return a + b\n"
    verifier = code.UnitTests(reference="from pkg.calc import add\nassert add(1, 2) == 3", files=files, patch=True, where=code.PATCH)
    assert (await verifier(said(block(fix, "diff")))).value == 1.0
    assert "does not apply" in (await verifier(said(block(fix.replace("a - b", "a * b"), "diff")))).reason
    outside = "--- /dev/null\n+++ b/../../owned\n@@ -0,0 +1 @@\n+x\n"
    assert (await verifier(said(block(outside, "diff")))).reason == "the patch leads outside"


@isolated
async def test_every_verifier_of_the_pack_is_fit_for_use():
    trajectories = [said("hm", block(ADD), "done", ended=True), *hostile()]
    for verifier in (code.Compiles(), code.PatchSimilarity(reference=PATCH), code.UnitTests(reference="assert 1")):
        answers = await asyncio.wait_for(ask_all(verifier, trajectories), 60)
        assert not [answer for answer in answers if isinstance(answer, Exception)]
    assert (await check(code.Compiles(), trajectories[:1])).problems == ()


@isolated
async def test_the_example():
    tests = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "packs" / "slugify.py"))["tests"]
    right = (
        "import re, unicodedata\ndef slugify(text):\n    plain = unicodedata.normalize('NFKD', text).encode('ascii', 'ignore').decode()\n"
    )
    right += "    return '-'.join(re.findall('[a-z0-9]+', plain.lower()))"
    assert (await tests(said(block(right)))).value == 1.0
    hasty = json.dumps({"content": "def slugify(text): return text.lower().replace(' ', '-')"})
    score = await tests(called("write_file", hasty))
    assert score.value == pytest.approx(1 / 3)
    assert score.reason.startswith("1 of 3 tests passed; test_words: AssertionError")
