"""The math pack: which part is the answer, which answers are equal, and that no expression hangs or escapes."""

import asyncio
import os
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest

from counterplay.core.errors import VerifierError
from counterplay.core.journal import ask
from counterplay.verifiers.packs import maths
from counterplay.verifiers.packs.base import ByPrefix
from counterplay.verifiers.packs.maths import MathAnswer, equivalent, extract
from tests.verifiers.pack_shapes import call, ended, say, trajectory

pytest.importorskip("math_verify", reason="math-verify is not installed (the extra `math`)")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"First \boxed{1}, so \boxed{\frac{1}{2}} it is.", r"\frac{1}{2}"),
        (r"\boxed{\text{A}_{1", r"\text{A}_{1"),
        (r"\boxed{}", None),
        ("The answer is 12. Or 13 with luck.", "12"),
        ("The final answer is: $x^2$ for 3 people", "x^2"),
        ("The answer is 3 or 4", None),
        ("The answer is Paris.", "Paris"),
        ("Answer: 1,234.5 EUR", "1,234.5"),
        ("2 + 2 makes 4", "4"),
        ("With $a$ and then $b+1$.", "b+1"),
        ("I don't know", None),
        ("v2 of x86", None),
        ("", None),
        ("it is 12%.", "12%"),
    ],
)
def test_which_part_is_the_answer(text, answer):
    assert extract(text) == answer


@pytest.mark.parametrize(
    ("gold", "given", "same"),
    [
        ("1/2", "0.5", True),
        (r"\frac{1}{2}", "0.5", True),
        ("0.5", "0.50000000001", True),
        ("100000", "1e5", True),
        ("100000", "1.0e5 ", True),
        ("10^5+x", "$1e5+x$", True),
        ("1,234", "1234.0", True),
        (r"\{1,2\}", r"\{2, 1\}", True),
        ("(a+b)^2", "$a^2+2ab+b^2$", True),
        ("3", "x=3", True),
        ("2", r"\{1,2,3\}", False),
        ("12", "13", False),
        ("Paris", " paris ", True),
        ("Paris", "London", False),
        ("3", "__import__('os').system('exit')", False),
    ],
)
def test_which_answers_are_equal(gold, given, same):
    assert equivalent(gold, given) is same


async def test_an_outcome_verifier_with_a_reason():
    right = ended(trajectory(say("Let me think: 7."), say(r"So \boxed{0.50}")))
    score = await ask(MathAnswer("1/2"), right)
    assert (score.value, score.reason) == (1.0, "answer '0.50' equals '1/2'")
    assert (await ask(MathAnswer(3), right)).reason == "answer '0.50' is not '3'"
    assert await ask(MathAnswer("1/2"), right.prefix(1)) is None, "no opinion on a prefix"
    assert (await ask(MathAnswer("1/2"), ended(trajectory(say("no idea"))))).reason == "there is no final answer"
    silent = ended(trajectory(say("7"), call("look")))
    assert (await ask(MathAnswer(7), silent)).value == 1.0, "the last message with text"


async def test_an_answer_that_is_submitted_by_a_tool():
    state = ended(trajectory(say("41"), call("submit", {"answer": "the answer is 42", "sure": True})))
    assert (await ask(MathAnswer(42, submit="submit", argument="answer"), state)).value == 1.0
    assert (await ask(MathAnswer(42, submit="submit"), state)).value == 0.0, "which of two arguments it is must be said"
    assert (await ask(MathAnswer(42, submit="other"), state)).reason == "there is no final answer"


async def test_gold_by_task():
    one, two = trajectory(say("1"), prompt="1 = ?"), trajectory(say("2"), prompt="2 = ?")
    pack = MathAnswer(ByPrefix.of([(one, "1"), (two, "2")]))
    assert (await ask(pack, ended(one))).value == (await ask(pack, ended(two))).value == 1.0
    assert await ask(pack, ended(trajectory(say("3"), prompt="3 = ?"))) is None, "no gold, no opinion"


async def test_no_expression_hangs_and_the_next_one_is_answered():
    hard = ended(trajectory(say(r"\boxed{2**3**4**5**6}")))
    pack = MathAnswer("17", timeout_s=0.5)
    with pytest.raises(VerifierError, match=r"verifier math failed.*took over 0\.5 s"):
        await ask(pack, hard)
    opinions = await pack.batch([hard, ended(trajectory(say("17"))), trajectory(say("17")), ended(trajectory(say("$16+1$")))])
    assert [type(opinion).__name__ for opinion in opinions] == ["VerifierError", "Score", "NoneType", "Score"]
    assert (opinions[1].value, opinions[3].value) == (1.0, 1.0)


async def test_any_thread_and_any_loop():
    """math-verify's own timeouts raise in threads, or swallow the answer; here all threads give the answer of the main one."""
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda i: equivalent(rf"\frac{{1}}{{{i}}}", f"{i}/{i * i}"), range(1, 9))) == [True] * 8
    states = [ended(trajectory(say(f"${i}+1$"))) for i in range(8)]
    scores = await asyncio.gather(*(ask(MathAnswer(5), state) for state in states))
    assert [score.value for score in scores] == [float(i == 4) for i in range(8)]
    found = []
    thread = threading.Thread(target=lambda: found.append(asyncio.run(ask(MathAnswer(5), states[4]))))
    thread.start()
    thread.join()
    assert found[0].value == 1.0


def test_the_process_ends_when_nobody_asks_any_more():
    assert equivalent("x+1", "1+x")
    process = maths._WORKER._process
    maths._WORKER.stop()
    assert process.poll() is not None
    assert equivalent("x+1", "1+x", timeout_s=0.4), "and starts again"
    process = maths._WORKER._process
    time.sleep(0.6)
    assert equivalent("x+2", "2+x"), "an alarm is over with its question"
    assert maths._WORKER._process is process
    maths._WORKER.stop()


def test_a_forked_process_asks_one_of_its_own():
    assert equivalent("x+1", "1+x")
    mine = maths._WORKER._process.pid
    reader, writer = os.pipe()
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # from 3.12 on it warns where there are threads
        child = os.fork()
    if child == 0:
        right = equivalent("x+2", "2+x") and maths._WORKER._process.pid != mine
        maths._WORKER.stop()
        os.write(writer, b"right" if right else b"wrong")
        os._exit(0)
    os.close(writer)
    assert os.read(reader, 9) == b"right"
    os.close(reader)
    os.waitpid(child, 0)
    assert maths._WORKER._process.pid == mine
    assert equivalent("x+3", "3+x"), "and the parent's is untouched"
