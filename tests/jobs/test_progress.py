"""What lies beside a store under the name of a status is nobody's word unless a process that lives wrote it, whole."""

import json
import os
import sys
import time

import pytest

from counterplay.core.errors import CounterplayError, UserError
from counterplay.jobs import running
from counterplay.jobs.progress import Progress, read_status, status_file
from counterplay.parts import Asked
from counterplay.plan import Plan
from counterplay.searching import check_price
from tests.jobs import batch

GOOD = {"job": "j", "doing": "working", "states": {"pending": 1}, "errors": []}


@pytest.mark.parametrize(
    "odd",
    [{"pid": "a"}, {"pid": 10**20}, {"at_s": None}, {"states": 5}, {"states": {"a": "b"}}, {"errors": None}, {"states": None}],
)
def test_a_status_that_is_damaged_is_none(tmp_path, odd):
    Progress(tmp_path / "s.db", "j", {"pending": 1}).show()
    assert read_status(tmp_path / "s.db") is not None
    file = status_file(tmp_path / "s.db")
    file.write_text(json.dumps({**GOOD, "pid": os.getpid(), "at_s": time.time(), **odd}))
    assert read_status(tmp_path / "s.db") is None


def test_an_output_folder_that_is_a_file_is_said(tmp_path, monkeypatch):
    file = batch.make(tmp_path / "job", tasks=1)
    monkeypatch.syspath_prepend(file.parent)
    monkeypatch.delitem(sys.modules, "moves", raising=False)  # another test's
    job = batch.loaded(file, output={"folder": file.parent / "logs.jsonl"})
    with pytest.raises(CounterplayError, match=r"logs\.jsonl is no folder"):
        running.run(job)


@pytest.mark.parametrize("price", [(float("nan"), 1.0), (-1.0, 2.0), (1.0, float("inf"))])
def test_a_price_that_would_never_use_up_a_budget_is_refused(price):
    with pytest.raises(UserError, match="got the price"):
        check_price(Asked("openai:m", price=price), Plan("best_of_n", budget="usd=1"))
