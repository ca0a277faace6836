"""Unit tests as a verifier: `counterplay search ... --verifier slugify:tests` from this folder."""

from counterplay.verifiers.packs.code import UnitTests
from counterplay.verifiers.packs.produced import Argument, FirstOf, LastBlock

TESTS = """
from solution import slugify

def test_words():
    assert slugify("Hello, World!") == "hello-world"

def test_accents():
    assert slugify("Crème brûlée") == "creme-brulee"

def test_nothing():
    assert slugify("") == ""
"""

tests = UnitTests(
    reference=TESTS,
    where=FirstOf((Argument("content", tool="write_file"), LastBlock(("python", "py", "")))),
    test_s=2.0,
)
