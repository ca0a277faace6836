"""Functions declared with `@tool`, called by an agent's own code."""

import asyncio
import datetime as dt
import inspect
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from functools import wraps
from typing import Any, NamedTuple

import pytest
from pydantic import BaseModel

from counterplay.core.effects import Effect
from counterplay.core.errors import UserError
from counterplay.core.nouns import Message, ToolCall
from counterplay.replay.agents.ambient import Interruption, ToolAnswer, intercepting
from counterplay.replay.agents.calls import inside_tool, restored_error
from counterplay.replay.agents.values import NotRestorable
from counterplay.replay.effects import call_tool, tool, tool_specs
from counterplay.replay.live import LiveEnvironment, initial
from counterplay.replay.world import ToolError
from tests.replay.agents.seen import Seen

EXECUTED = []


@pytest.fixture(autouse=True)
def _none_executed():
    EXECUTED.clear()


class Order(BaseModel):
    number: int
    due: dt.date | None = None


@dataclass
class Point:
    x: int
    tags: tuple[str, ...] = ()


class Special(Order):
    extra: int = 0


@tool(effect="read(order:{number})")
def get_order(number: int, *, detail: bool = False) -> Order:
    """Look an order up."""
    EXECUTED.append(number)
    return Order(number=number, due=dt.date(2026, 1, 2))


@tool(effect="write")
async def move(point: Point, by: int = 1) -> Point:
    EXECUTED.append(by)
    await asyncio.sleep(0)
    return Point(point.x + by, ("moved",))


@tool()
def fail(kind: str) -> str:
    raise FAILURES[kind]


class OwnError(Exception):
    pass


FAILURES = {
    "key": KeyError("x"),
    "os": FileNotFoundError(2, "none", "f"),
    "own": OwnError("mine"),
    "tool": ToolError("no"),
    "bare": ValueError(),
}


class Desk:
    @tool(effect="pure", name="sum")
    def add(self, a: int, b: int = 2) -> int:
        EXECUTED.append((a, b))
        return a + b


def test_outside_of_a_run_a_tool_is_the_function_it_was():
    assert get_order(3).number == 3
    assert asyncio.run(move(Point(1))) == Point(2, ("moved",))
    assert inspect.iscoroutinefunction(move)
    assert (get_order.__name__, get_order.__doc__) == ("get_order", "Look an order up.")
    assert list(inspect.signature(get_order).parameters) == ["number", "detail"]


async def test_calls_are_shown_by_name_and_executed_once():
    seen = Seen()
    with intercepting(seen):
        assert get_order(7) == Order(number=7, due=dt.date(2026, 1, 2))
        assert get_order(number=8, detail=True).number == 8
        assert await move(Point(1), 2) == Point(3, ("moved",))
        assert Desk().add(1) == 3
        assert Desk().add(1, b=5) == 6
    assert [(r.name, dict(r.arguments), str(r.effect)) for r in seen.tool_requests] == [
        ("get_order", {"number": 7}, "read(order:{number})"),
        ("get_order", {"number": 8, "detail": True}, "read(order:{number})"),
        ("move", {"point": {"x": 1, "tags": []}, "by": 2}, "write"),
        ("sum", {"a": 1}, "pure"),
        ("sum", {"a": 1, "b": 5}, "pure"),
    ]
    assert [a.value for a in seen.tool_answered_with] == [
        {"number": 7, "due": "2026-01-02"},
        {"number": 8, "due": "2026-01-02"},
        {"x": 3, "tags": ["moved"]},
        3,
        6,
    ]
    assert all(a.replayable and a.error is None and a.latency_s >= 0 and a.started_at_us > 1.7e15 for a in seen.tool_answered_with)
    assert EXECUTED == [7, 8, 2, (1, 2), (1, 5)]


async def test_answers_in_place_are_rebuilt_and_nothing_is_executed():
    order, point = {"number": 9, "due": "2026-01-03"}, {"x": 5, "tags": ["a", "b"]}
    seen = Seen(tools=[ToolAnswer(order), ToolAnswer(point), ToolAnswer(41)])
    with intercepting(seen):
        assert get_order(9) == Order(number=9, due=dt.date(2026, 1, 3))
        assert await move(Point(1)) == Point(5, ("a", "b"))
        assert Desk().add(1) == 41
    assert EXECUTED == []
    assert seen.tool_answered_with == []


def test_a_rebuilt_value_is_the_agents_own():
    @tool()
    def rows() -> list[dict[str, int]]:
        return []

    recorded = [{"a": 1}]
    with intercepting(Seen(tools=[ToolAnswer(recorded)] * 2)):
        rows()[0]["a"] = 2
        assert rows() == [{"a": 1}]
    assert recorded == [{"a": 1}]


@pytest.mark.parametrize("kind", ["key", "os", "own", "tool", "bare"])
def test_errors_are_recorded_and_raised_again(kind):
    seen = Seen()
    with intercepting(seen), pytest.raises(Exception) as first:
        fail(kind)
    (answer,) = seen.tool_answered_with
    assert answer.error == f"{type(first.value).__name__}: {first.value}"
    assert answer.replayable
    with intercepting(Seen(tools=[answer])), pytest.raises(Exception) as again:
        fail(kind)
    assert type(again.value) is (ToolError if kind == "own" else type(first.value))
    assert str(again.value) == str(first.value)


def test_errors_that_can_not_be_made_from_their_text_are_tool_errors():
    for text, shown in [
        ("UnicodeDecodeError: x", "x"),
        ("no such form", "no such form"),
        ("Other: a: b", "a: b"),
        ("KeyboardInterrupt: ", ""),
    ]:
        assert (type(made := restored_error(text, ToolError)), str(made)) == (ToolError, shown)


def result(value, annotation=Any):
    def give():
        return value

    give.__annotations__["return"] = annotation
    seen = Seen()
    with intercepting(seen):
        assert tool()(give)() is value
    return seen.tool_answered_with[0]


class Colour(StrEnum):
    RED = "red"


class Named(NamedTuple):
    name: str
    number: int


class Quiet(str):
    __slots__ = ()


class Silent:
    def __repr__(self):
        raise RuntimeError


@pytest.mark.parametrize(
    ("value", "annotation", "replayable"),
    [
        ({"a": [1, 2.5, None]}, Any, True),
        ("text", str, True),
        (None, None, True),
        ((1, 2), tuple[int, int], True),
        ((1, 2), Any, False),
        ({1: "a"}, dict[int, str], True),
        ({1: "a"}, Any, False),
        ([dt.date(2026, 1, 1)], list[dt.date], True),
        ([dt.date(2026, 1, 1)], Any, False),
        (Decimal("1.50"), Decimal, True),
        (b"\xff", bytes, False),
        (float("nan"), float, False),
        (object(), Any, False),
        (Silent(), Any, False),
        (Special(number=1, extra=2), Order, False),
        (Special(number=1, extra=2), Special, True),
        (3, str, False),
        (iter([1]), Any, False),
        (Colour.RED, Any, False),
        ({"colours": [Colour.RED]}, Any, False),
        ({"colours": [Colour.RED]}, dict[str, list[Colour]], True),
        (Named("x", 1), Any, False),
        (Quiet("x"), str, False),
        (Silent, type[Silent], False),
    ],
)
def test_what_does_not_come_back_as_it_was_is_not_replayable(value, annotation, replayable):
    answer = result(value, annotation)
    assert answer.replayable is replayable
    if not replayable and not isinstance(value, Silent | type):
        assert answer.value == repr(value)


def test_a_result_that_no_longer_fits_its_type_interrupts():
    with intercepting(Seen(tools=[ToolAnswer({"number": "not one"})])), pytest.raises(NotRestorable, match="number") as caught:
        get_order(1)
    assert isinstance(caught.value, Interruption)


async def test_a_tool_inside_a_tool_is_not_seen_and_models_know_where_they_are():
    where = []

    @tool()
    async def outer(n: int) -> int:
        where.append(inside_tool())
        got = await asyncio.to_thread(get_order, n)
        return got.number + Desk().add(1)

    seen = Seen()
    with intercepting(seen):
        assert await outer(4) == 7
        where.append(inside_tool())
        Desk().add(1)
    assert [r.name for r in seen.tool_requests] == ["outer", "sum"]
    assert where == [True, False]
    assert EXECUTED == [4, (1, 2), (1, 2)]


async def test_calls_side_by_side_keep_their_own_answers():
    seen = Seen()
    with intercepting(seen):
        await asyncio.gather(*[move(Point(at), at) for at in range(20)])
    by = {a.value["x"] for a in seen.tool_answered_with}
    assert by == {2 * at for at in range(20)}


async def test_a_cancelled_tool_gave_nothing_to_give_again():
    @tool()
    async def slow() -> str:
        await asyncio.sleep(5)
        return ""

    seen = Seen()
    with intercepting(seen):
        task = asyncio.create_task(slow())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert [(a.error, a.replayable) for a in seen.tool_answered_with] == [("CancelledError: ", False)]


def test_an_interruption_is_no_error_of_the_tool():
    class Ended(Interruption):
        pass

    def interrupt(_request):
        raise Ended

    @tool()
    def ends() -> str:
        raise Ended

    seen = Seen(tools=[interrupt])
    with intercepting(seen):
        with pytest.raises(Ended):
            get_order(1)
        with pytest.raises(Ended):
            ends()
    assert (EXECUTED, seen.tool_answered_with) == ([], [])


def test_arguments_that_do_not_fit_are_the_functions_own_error():
    seen = Seen()
    with intercepting(seen), pytest.raises(TypeError, match="number"):
        get_order()
    assert seen.tool_requests == []


def test_a_decorator_that_gives_an_argument_hides_no_call():
    def with_connection(function):
        @wraps(function)
        def call(*args: str, **kwargs: str) -> str:
            return function("connection", *args, **kwargs)

        return call

    @tool(effect="external")
    @with_connection
    def pay(connection: str, text: str, note: str = "") -> str:
        EXECUTED.append(text)
        return "paid"

    assert pay("outside of a run") == "paid"
    EXECUTED.clear()
    seen = Seen(tools=[ToolAnswer("as recorded")] * 2)
    with intercepting(seen):
        assert pay(text="x") == "as recorded"
        assert pay("x") == "as recorded"
    assert EXECUTED == []
    assert dict(seen.tool_requests[0].arguments) == {"text": "x"}


def test_more_arguments_and_odd_ones_are_shown_as_they_can_be():
    @tool()
    def free(a: Any, **more: Any) -> str:
        return ""

    seen = Seen()
    with intercepting(seen):
        free(object(), x=1, y={"z": {3}})
    assert dict(seen.tool_requests[0].arguments) == {"a": "<object>", "x": 1, "y": {"z": [3]}}


def test_generator_functions_are_refused():
    for source in ("def g() -> object:\n yield 1", "async def g() -> object:\n yield 1"):
        space: dict[str, Any] = {}
        exec(source, space)
        with pytest.raises(UserError, match="generator"):
            tool()(space["g"])


class Orders:
    """A world whose tools are declared functions."""

    prompt = (Message.user("go"),)
    tools = ()

    def __init__(self):
        self.orders = {1: "open"}
        self.tools = tool_specs(self)

    @tool(effect="read(order:{number})")
    def look(self, number: int) -> str:
        return self.orders[number]

    def call(self, name, arguments):
        return call_tool(self, name, arguments)


async def test_worlds_of_a_search_are_not_the_agents():
    """A search steps its worlds while an agent runs, and an interceptor asks one for the answer to its agent's call."""
    action = Message.assistant(tool_calls=[ToolCall("c1", "look", '{"number": 1}')])
    environment, go = LiveEnvironment(Orders), asyncio.Event()

    async def search():
        await go.wait()
        return await environment.step(initial(Orders), action)

    stepping = asyncio.create_task(search())
    seen = Seen(tools=[lambda r: ToolAnswer(Orders().call(r.name, r.arguments))])
    with intercepting(seen):
        go.set()
        step = await stepping
        assert seen.tool_requests == []
        assert Orders().look(1) == "open"
    assert step.observations[0].content == "open"
    assert [r.name for r in seen.tool_requests] == ["look"]
    blocking = LiveEnvironment(Orders, blocking=True)
    assert (await blocking.step(initial(Orders), action)).observations[0].content == "open"


def test_an_agent_that_calls_by_name_is_seen_so_that_nothing_external_is_done_twice():
    seen = Seen(tools=[ToolAnswer("recorded")])
    with intercepting(seen):
        assert Orders().call("look", {"number": 1}) == "recorded"
    assert seen.tool_requests[0].effect == Effect.parse("read(order:{number})")
