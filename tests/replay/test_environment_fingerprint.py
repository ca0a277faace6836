"""What an environment is made of, and what differs later: part by part, in words, and for the traces that it concerns."""

import asyncio
import json
import sys
import textwrap
from dataclasses import replace
from importlib import import_module, invalidate_caches

import pytest

from counterplay.connectors.chatlog import CONNECTOR
from counterplay.core.effects import Effect
from counterplay.core.errors import UserError
from counterplay.core.nouns import Message, Source, Step, ToolSpec, Trace, Trajectory
from counterplay.core.protocols import fingerprint_of
from counterplay.replay.effects import call_tool, tool, tool_specs
from counterplay.replay.environment_fingerprint import Difference, Fingerprint, drift, drift_of, environment_fingerprint, trace_drift
from counterplay.replay.live import LiveEnvironment
from counterplay.replay.recorder import Recorder, record
from tests.replay.shelf import Fixed, Shelf, act

WORLD = """
    import json
    from pathlib import Path

    from counterplay.core.nouns import Message
    from counterplay.replay.effects import call_tool, tool, tool_specs
    from shop.prices import price


    class Shop:
        prompt = (Message.user("sell"),)
        {fingerprint}

        def __init__(self):
            self.tools = tool_specs(self)

        @tool(effect="read(price:{{name}})")
        def get_price(self, name: str) -> int:
            "{described}"
            return {body}

        @tool(effect="pure")
        def greet(self) -> str:
            return "hello"

        def call(self, name, arguments):
            return call_tool(self, name, arguments)
"""


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """Writes the shop anew and gives its class."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(str(tmp_path))

    def forget():
        for name in [name for name in sys.modules if name.partition(".")[0] == "shop"]:
            del sys.modules[name]
        invalidate_caches()

    def write(*, body="price(name)", described="The price.", fingerprint="", prices=2):
        forget()
        folder = tmp_path / "shop"
        folder.mkdir(exist_ok=True)
        (folder / "__init__.py").write_text("")
        (folder / "prices.py").write_text(f"def price(name):\n    return len(name) * {prices}\n")
        (folder / "world.py").write_text(textwrap.dedent(WORLD.format(body=body, described=described, fingerprint=fingerprint)))
        return import_module("shop.world").Shop

    yield write
    forget()


def words(before, after):
    return [str(difference) for difference in drift(before, after)]


class TestParts:
    def test_a_world_is_its_module_its_tools_and_their_sources(self, shop):
        made_of = environment_fingerprint(shop()())
        assert set(made_of.code) == {"shop.world"}
        assert set(made_of.definitions) == set(made_of.sources) == {"get_price", "greet"}
        assert made_of == environment_fingerprint(shop()())
        assert made_of.key == environment_fingerprint(shop()()).key

    def test_a_changed_body_is_the_source_of_one_tool(self, shop):
        before = environment_fingerprint(shop()())
        after = environment_fingerprint(shop(body="price(name) + 1")())
        assert words(before, after) == ["the code of shop.world changed", "the source of tool get_price changed"]

    def test_a_changed_description_is_what_the_model_is_shown(self, shop):
        before = environment_fingerprint(shop()())
        assert "the definition of tool get_price changed" in words(before, environment_fingerprint(shop(described="In cents.")()))

    def test_packages_are_digested_whole_and_versions_told(self, shop):
        before = environment_fingerprint(shop()(), packages=["shop", "pydantic"])
        after = environment_fingerprint(shop(prices=3)(), packages=["shop", "pydantic"])
        assert words(before, after) == ["the code of shop changed"]
        assert set(before.packages) == {"pydantic"}  # the shop is in a folder, no distribution
        assert before.packages["pydantic"][0].isdigit()
        assert "package pydantic is 3.0, was 2.0" in words(
            Fingerprint(packages={"pydantic": "2.0"}), Fingerprint(packages={"pydantic": "3.0"})
        )

    def test_data_may_be_a_file_a_folder_or_a_function(self, shop, tmp_path):
        (tmp_path / "db").mkdir()
        (tmp_path / "db" / "rows.json").write_text("[1]")
        rows = [1]

        def taken():
            data = {"folder": tmp_path / "db", "file": tmp_path / "db" / "rows.json", "rows": lambda: rows}
            return environment_fingerprint(shop()(), data=data)

        before = taken()
        assert taken() == before
        (tmp_path / "db" / "rows.json").write_text("[1, 2]")
        rows.append(2)
        assert words(before, taken()) == ["data file changed", "data folder changed", "data rows changed"]

    def test_what_a_world_declares_is_told(self, shop):
        before = environment_fingerprint(shop(fingerprint='fingerprint = "1"')())
        after = environment_fingerprint(shop(fingerprint='fingerprint = "2"')())
        assert "the version that shop.world.Shop declares is 2, was 1" in words(before, after)

    def test_tools_come_and_go(self):
        one, two = Fingerprint(definitions={"a": "1", "b": "1"}), Fingerprint(definitions={"b": "1", "c": "1"})
        assert words(one, two) == ["the definition of tool a is gone", "the definition of tool c is new"]

    def test_what_one_side_knows_nothing_of_is_no_difference(self):
        assert drift(Fingerprint(data={"db": "1"}), Fingerprint(code={"m": "1"})) == ()

    def test_a_world_may_bring_its_own(self):
        class Known(Shelf):
            environment = Fingerprint(data={"db": "1"})

        assert environment_fingerprint(Known()) == Known.environment

    def test_sources_are_given_where_tools_are_elsewhere(self):
        class Behind:
            def get(self):
                return 1

        found = environment_fingerprint(Shelf(), sources={"get": Behind.get, "total": len})
        assert set(found.sources) == {"get"}  # a built-in has no source

    @pytest.mark.parametrize("wrong", [{"packages": ["no_such_package"]}, {"data": {"db": "no/such/file"}}])
    def test_what_does_not_exist_is_said(self, wrong):
        with pytest.raises(UserError, match=r"no_such_package|no/such/file"):
            environment_fingerprint(Shelf(), **wrong)

    def test_the_record_comes_back_and_foreign_ones_do_no_harm(self, shop):
        made_of = environment_fingerprint(shop()(), packages=["shop"])
        assert Fingerprint.from_record(json.loads(json.dumps(made_of.to_record()))) == made_of
        assert Fingerprint.from_record({"code": "text", "data": {"a": 1}, "else": 2}) == Fingerprint(data={"a": "1"})


def trace(*names, metadata=None, tools=()):
    steps = tuple(Step(act(name), (Message.tool("x", "c0"),)) for name in names)
    return Trace("t", Trajectory(tuple(tools), (Message.user("go"),), steps), Source("test"), metadata=metadata or {})


class TestTraces:
    before = Fingerprint(code={"m": "1"}, definitions={"a": "1", "b": "1"})
    after = Fingerprint(code={"m": "1"}, definitions={"a": "2", "b": "2"})

    def test_only_the_tools_that_a_trace_called_concern_it(self):
        stored = {"environment": self.before.to_record()}
        assert trace_drift(trace("b", metadata=stored), self.after) == (Difference("definition", "b", "1", "2"),)
        assert trace_drift(trace("other", metadata=stored), self.after) == ()

    def test_code_and_data_concern_every_trace(self):
        moved = Fingerprint(code={"m": "2"}, definitions=self.before.definitions)
        assert [d.kind for d in trace_drift(trace("other", metadata={"environment": self.before.to_record()}), moved)] == ["code"]

    def test_a_foreign_log_is_compared_by_the_tools_that_were_sent(self):
        old = ToolSpec.function("get", "Get it.", {})
        new = ToolSpec.function("get", "Get it, with its price.", {})
        world = type("World", (), {"tools": (new,)})()
        assert [str(d) for d in trace_drift(trace("get", tools=[old]), environment_fingerprint(world))] == [
            "the definition of tool get changed"
        ]

    def test_of_a_log_that_says_nothing_nothing_is_claimed(self):
        foreign = trace("get", metadata={"environment": {"git_commit": "abc"}})
        assert trace_drift(foreign, environment_fingerprint(Shelf())) == ()

    def test_over_many_traces_each_difference_names_those_it_concerns(self):
        stored = {"environment": self.before.to_record()}
        traces = [replace(trace(*called, metadata=stored), id=called[-1]) for called in (["a"], ["a", "b"], ["c"])]
        moved = Fingerprint(code={"m": "2"}, definitions={"a": "2", "b": "1"})
        assert drift_of(traces, lambda _: moved) == {
            "the code of m changed": ("a", "b", "c"),
            "the definition of tool a changed": ("a", "b"),
        }
        assert drift_of(traces, lambda _: self.before) == {}


class TestWhereItIsKept:
    def test_a_recording_holds_it(self, tmp_path):
        path = tmp_path / "log.jsonl"
        with Recorder(path) as recorder:
            asyncio.run(record(["t"], Shelf, Fixed(act("total"), act("finish")), recorder))
        kept = Fingerprint.from_record(json.loads(path.read_text())["metadata"]["environment"])
        assert kept == environment_fingerprint(Shelf())
        assert kept.declared == {"tests.replay.shelf.Shelf": "shelf-1"}

        async def read():
            return [item async for item in CONNECTOR.read(path)]

        (logged,) = asyncio.run(read())
        assert Fingerprint.of_trace(logged) == kept
        assert trace_drift(logged, kept) == ()

    def test_a_live_environment_is_named_by_it(self, shop):
        def named(**changes):
            kind = shop(**changes)
            return fingerprint_of(LiveEnvironment(kind))

        before = named()
        assert named() == before
        assert named(body="price(name) + 1") != before

    def test_a_declared_version_is_taken_at_its_word(self, shop):
        def named(**changes):
            return fingerprint_of(LiveEnvironment(shop(**changes)))

        assert named(fingerprint='fingerprint = "1"', body="7") == named(fingerprint='fingerprint = "1"')
        assert named(fingerprint='fingerprint = "2"') != named(fingerprint='fingerprint = "1"')

    def test_a_live_environment_shows_its_parts(self):
        environment = LiveEnvironment(Shelf)
        assert environment.made_of == environment_fingerprint(Shelf())
        assert Shelf.made["shelf"] == 2  # one to look at, one here


def test_effects_are_no_part_of_what_a_model_is_shown():
    one, other = (ToolSpec.function("get", "", {}, Effect(kind)) for kind in ("read", "write"))
    worlds = [type("World", (), {"tools": (each,)})() for each in (one, other)]
    assert environment_fingerprint(worlds[0]).definitions == environment_fingerprint(worlds[1]).definitions


def test_decorated_tools_have_a_source():
    class Counter:
        prompt = ()

        @tool(effect="pure")
        def count(self) -> int:
            return 1

        tools = property(tool_specs)

        def call(self, name, arguments):
            return call_tool(self, name, arguments)

    assert set(environment_fingerprint(Counter()).sources) == {"count"}
