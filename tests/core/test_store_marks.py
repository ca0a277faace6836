"""What a store remembers beside its content: salt, watermarks and counts of redactions; and none of it is content."""

import pytest

from counterplay.core.errors import StoreError
from counterplay.core.nouns import Message, Source, Trace, Trajectory
from counterplay.core.store import Store, writing


def logged(name):
    return Trace(name, Trajectory((), (Message.user(name),)), Source("test"))


def test_every_store_has_a_salt_of_its_own_and_keeps_it(tmp_path):
    with Store.open(":memory:") as one, Store.open(":memory:") as other:
        assert len(one.salt) == len(other.salt) == 32
        assert one.salt == one.salt != other.salt
    with Store.open(tmp_path / "s.duckdb") as store:
        salt = store.salt
    for read_only in (True, False):
        with Store.open(tmp_path / "s.duckdb", read_only=read_only) as store:
            assert store.salt == salt


def test_a_watermark_is_set_and_replaced(tmp_path):
    source = "langfuse://\udc80"
    with Store.open(tmp_path / "s.duckdb") as store:
        assert store.watermark(source) is None
        store.set_watermark(source, "1")
        store.set_watermark(source, "json:2")
        store.set_watermark("other", "9")
    with Store.open(tmp_path / "s.duckdb", read_only=True) as store:
        assert (store.watermark(source), store.watermark("other")) == ("json:2", "9")
        assert store.stats().watermarks == {source: "json:2", "other": "9"}
        for write in (lambda: store.set_watermark("a", "b"), lambda: store.count_redactions({"a": 1})):
            with pytest.raises(StoreError, match="read-only"):
                write()


def test_many_watermarks_are_set_as_one():
    with Store.open(":memory:") as store:
        store.set_watermarks({f"source {i}": str(i) for i in range(50)})
        store.set_watermarks({"source 7": "json:seven", "new\udc80": "1"})
        store.set_watermarks({})
        held = store.stats().watermarks
        assert len(held) == 51
        assert (held["source 7"], held["source 8"], held["new\udc80"]) == ("json:seven", "8", "1")


def test_watermarks_go_in_with_the_last_batch_as_they_are_when_the_items_end():
    marks = {"here": "start"}

    def items(store):
        for i in range(5):
            yield logged(f"t{i}")
            assert store.watermark("here") is None, "nothing is marked before the end"
        marks["here"] = "end"

    with Store.open(":memory:") as store:
        store.ingest(items(store), batch=2, watermarks=marks)
        assert store.watermark("here") == "end"
        store.ingest([], watermarks={"here": "later"})
        assert store.watermark("here") == "later"


def test_a_batch_that_fails_marks_nothing(monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    with Store.open(":memory:") as store:
        with monkeypatch.context() as changed:
            changed.setattr(writing, "set_watermarks", interrupted)
            with pytest.raises(KeyboardInterrupt):
                store.ingest([logged("a")], watermarks={"here": "1"})
        assert (store.traces(), store.watermark("here")) == ([], None)


def test_redactions_add_up():
    with Store.open(":memory:") as store:
        store.count_redactions({"email": 2, "openai-key": 1, "nothing": 0})
        store.count_redactions({"email": 3})
        assert store.stats().redactions == {"email": 5, "openai-key": 1}


def test_none_of_it_is_content():
    with Store.open(":memory:") as one, Store.open(":memory:") as other:
        one.ingest([logged("a")])
        other.ingest([logged("a")], watermarks={"here": "1"})
        other.count_redactions({"email": 1})
        assert one.salt != other.salt
        assert one.content_digest() == other.content_digest()
        assert other.verify() == []
