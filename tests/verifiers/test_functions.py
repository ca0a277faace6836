"""What a verifier is known by, given by itself: names, versions that follow the code, settings in the fingerprint."""

import importlib
import subprocess
import sys
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import pytest

from counterplay.core.errors import VerifierError
from counterplay.core.journal import ask, ask_all, verifier_identity
from counterplay.core.nouns import Message, Score, Step, Trajectory
from counterplay.core.protocols import fingerprint_of
from counterplay.verifiers.functions import batched, behaviour, verifier
from counterplay.verifiers.stepwise import stepwise

LINES = [Trajectory((), (Message.user("go"),), tuple(Step(Message.assistant("x" * j)) for j in range(i))) for i in range(4)]


@verifier
def plain(trajectory):
    return float(len(trajectory) > 1)


@verifier(version="7", name="short")
async def named(trajectory):
    return Score(1.0 if len(trajectory) < 3 else 0.0, "length")


class Kind(Enum):
    ONE = 1


@verifier
@dataclass(frozen=True)
class Limit:
    most: int = 2
    words: tuple[str, ...] = ("a", "b")
    kind: Kind = Kind.ONE
    table: dict[str, int] = field(default_factory=dict)
    client: object = field(default_factory=object, compare=False)

    def __call__(self, trajectory):
        return 1.0 if len(trajectory) <= self.most else 0.0


async def test_a_function_is_known_by_its_name_and_its_code():
    assert verifier_identity(plain) == ("plain", behaviour(plain))
    assert len(plain.version) == 8
    assert fingerprint_of(plain) == f"plain@{plain.version}"
    assert await ask(plain, LINES[2]) == Score(1.0, "", "plain", plain.version)
    assert await ask(named, LINES[2]) == Score(1.0, "length", "short", "7")


async def test_a_dataclass_carries_its_settings():
    assert verifier_identity(Limit()) == ("Limit", Limit.version)
    assert fingerprint_of(Limit()) == f"Limit@{Limit.version}(most=2, words=['a', 'b'], kind=Kind.ONE, table={{}})"
    others = [Limit(3), Limit(words=("a",)), Limit(table={"x": 1})]
    assert len({fingerprint_of(limit) for limit in [Limit(), *others]}) == 4
    assert fingerprint_of(Limit(table={"x": 1, "y": 2})) == fingerprint_of(Limit(table={"y": 2, "x": 1}))
    assert (await ask(Limit(1), LINES[2])).value == 0.0


def test_long_settings_are_digests_and_nameless_ones_are_refused():
    @verifier(version="1")
    @dataclass(frozen=True)
    class Rules:
        text: object

        def __call__(self, _):
            return 1.0

    one, two = fingerprint_of(Rules("x" * 10_000)), fingerprint_of(Rules("x" * 9_999 + "y"))
    assert one != two
    assert len(one) < 100
    assert fingerprint_of(Rules(Limit(5))) != fingerprint_of(Rules(Limit(6)))
    assert fingerprint_of(Rules(stepwise(plain))) != fingerprint_of(Rules(stepwise(named)))
    with pytest.raises(TypeError, match=r"got setting 'text', a object without a text of its own"):
        fingerprint_of(Rules(object()))


def test_what_a_class_says_of_itself_stands():
    @verifier
    class Own:
        name, version = "mine", "9"
        fingerprint = "mine@9(x)"

        def __call__(self, _):
            return 1.0

    assert verifier_identity(Own()) == ("mine", "9")
    assert fingerprint_of(Own()) == "mine@9(x)"


HOUSE = {
    "house/__init__.py": "",
    "house/limits.py": "MOST = 3\nOTHER = 1\n\n\ndef within(n):\n    return n <= MOST\n",
    "house/rules.py": '''"""Rules."""
import math
from counterplay.verifiers.functions import verifier
from .limits import within

WORDS = ("a", "b")

@verifier
def short(trajectory):
    """Short ones."""
    # a comment
    return float(within(len(trajectory)) and _polite(trajectory) and math.pi > 3)


def _polite(trajectory):
    return all(word not in WORDS for word in trajectory.steps)
''',
}


def version_of(folder: Path, changes=(), house=HOUSE) -> str:
    for name, text in house.items():
        for old, new in changes:
            text = text.replace(old, new)  # noqa: PLW2901
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text(text)
    for name in [name for name in sys.modules if name.partition(".")[0] == "house"]:
        del sys.modules[name]
    importlib.invalidate_caches()
    import linecache

    linecache.clearcache()
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    try:
        return importlib.import_module("house.rules").short.version
    finally:
        sys.dont_write_bytecode = before
        sys.path.remove(str(folder))


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ([("# a comment", "# another, longer comment"), ('"""Short ones."""', '"""Very short ones."""')], True),
        ([("float(within", "float(\n        within")], True),
        ([("OTHER = 1", "OTHER = 2")], True),
        ([("math.pi > 3", "math.pi > 2")], False),
        ([('WORDS = ("a", "b")', 'WORDS = ("a",)')], False),
        ([("return all(", "return any(")], False),
        ([("MOST = 3", "MOST = 4")], False),
        ([("n <= MOST", "n < MOST")], False),
    ],
)
def test_the_version_follows_what_the_code_does_wherever_it_stands(tmp_path, changes, same):
    assert (version_of(tmp_path / "one") == version_of(tmp_path / "two", changes)) is same


@pytest.mark.parametrize(
    ("imported", "within", "called"),
    [
        ("from . import limits", "", "limits.within"),
        ("import house.limits", "", "house.limits.within"),
        ("import house.limits as bounds", "", "bounds.within"),
        ("", "from .limits import within as fits", "fits"),
        ("", "from house import limits", "limits.within"),
    ],
)
def test_a_helper_counts_however_it_is_imported(tmp_path, imported, within, called):
    rules = HOUSE["house/rules.py"].replace("from .limits import within", imported).replace("within(", f"{called}(")
    house = {**HOUSE, "house/rules.py": rules.replace("    # a comment", f"    {within}")}
    first = version_of(tmp_path / "one", house=house)
    assert version_of(tmp_path / "two", [("OTHER = 1", "OTHER = 2")], house) == first
    assert version_of(tmp_path / "three", [("n <= MOST", "n < MOST")], house) != first
    assert version_of(tmp_path / "four", [("MOST = 3", "MOST = 4")], house) != first


def test_versions_are_the_same_in_every_process():
    code = (
        "def f(t): return 1.0 if t in {'a','b','c'} else 0.0\n"
        "from counterplay.verifiers.functions import behaviour; from tests.verifiers import test_functions as m\n"
        "print(behaviour(f), m.plain.version, m.Limit.version)"
    )
    root = Path(__file__).parents[2]
    runs = [
        subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed})
        for seed in "12"
    ]
    assert runs[0].stdout == runs[1].stdout
    assert runs[0].stdout.split()[1:] == [plain.version, Limit.version]


def test_what_a_function_closes_over_counts():
    def least(n):
        @verifier
        def enough(trajectory):
            return float(len(trajectory) >= n)

        return enough

    assert least(1).version != least(2).version
    assert least(1).version == least(1).version


async def test_a_function_of_many_is_a_verifier_of_one():
    asked = []

    @batched(version="2")
    def lengths(trajectories):
        asked.append(len(trajectories))
        return [ValueError("too long") if len(t) == 3 else len(t) / 10 for t in trajectories]

    assert verifier_identity(lengths) == ("lengths", "2")
    answers = await ask_all(lengths, LINES)
    assert [answer.value for answer in answers[:3]] == [0.0, 0.1, 0.2]
    assert isinstance(answers[3], VerifierError)
    assert asked == [4]
    assert (await ask(lengths, LINES[1])).value == 0.1
    with pytest.raises(VerifierError, match="too long"):
        await ask(lengths, LINES[3])

    @batched()
    async def later(trajectories):
        return [0.5 for _ in trajectories]

    assert [answer.value for answer in await ask_all(later, LINES)] == [0.5] * 4
    assert len(later.version) == 8
