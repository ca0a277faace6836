"""The built page: found, held to what it may do by hashes of its own scripts and styles, and filled with data for a self-contained file."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from counterplay.core.errors import CounterplayError
from counterplay.viewing.answers import Answers
from counterplay.viewing.conversation import View

FILE = Path(__file__).parent / "page" / "index.html"
_ELEMENT = r"<{0}\b([^>]*)>(.*?)</{0}\s*>"
_BREAKING = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"}
_HEAD_END = "</head>"
_NOTHING = "'none'"


def built() -> str:
    """The page as it was built. Raises CounterplayError where this installation has none."""
    try:
        return FILE.read_text(encoding="utf-8")
    except FileNotFoundError:
        got = "the page was not built in this checkout"
        raise CounterplayError(got, str(FILE.name), "Build it once: cd viewer && npm ci && npm run build") from None


def policy(page: str, connect: str) -> str:
    """A Content-Security-Policy under which nothing runs but the page's own inline scripts, and nothing is fetched but from `connect`."""
    scripts = _hashes(text for kind, text in _inline(page, "script") if "application/json" not in kind)
    styles = _hashes(text for _, text in _inline(page, "style"))
    rules = {
        "default-src": "'none'",
        "script-src": scripts,
        "style-src": styles,
        "img-src": "data:",
        "connect-src": connect,
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def _inline(page: str, element: str) -> list[tuple[str, str]]:
    return re.findall(_ELEMENT.format(element), page, re.DOTALL | re.IGNORECASE)


def _hashes(texts: Iterable[str]) -> str:
    hashed = [f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in texts if text]
    return " ".join(dict.fromkeys(hashed)) or "'none'"


def as_json(value: Any) -> str:
    """JSON that any browser reads back exactly: lone surrogates and whatever is not ASCII as escapes."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def embeddable(value: Any) -> str:
    """JSON that can't end the element it stands in, whatever its texts hold."""
    return as_json(value).translate(_BREAKING)


def self_contained(page: str, embedded: Mapping[str, Any]) -> str:
    """The page with data in it, under a policy that lets nothing be fetched at all."""
    if page.count(_HEAD_END) != 1:
        raise CounterplayError(f"got a page with {page.count(_HEAD_END)} ends of its head", "one", "Build it again.")
    rules = f'<meta http-equiv="Content-Security-Policy" content="{policy(page, _NOTHING)}">'
    data = f'<script type="application/json" id="counterplay-data">{embeddable(embedded)}</script>'
    first = re.search(r"<head\b[^>]*>", page)
    place = first.end() if first else page.index(_HEAD_END)
    return f"{page[:place]}{rules}{page[place:]}".replace(_HEAD_END, data + _HEAD_END)


def of_trace(answers: Answers, trace_id: str) -> View:
    """What a file about one trace holds: the trace and the trees of its searches."""
    shown = answers.trace(trace_id)
    trees = [search["id"] for search in shown["searches"]]
    held = {_url("traces", trace_id): shown, **_trees(answers, trees)}
    return _embedded(answers, held, f"/traces/{quote(trace_id, safe='')}", traces=1, searches=len(trees))


def of_search(answers: Answers, search_id: str) -> View:
    """What a file about one search holds: its tree, and the trace it forked where the store has it."""
    held = _trees(answers, [search_id])
    trace = held[_url("searches", search_id)]["search"]["trace"]
    known = trace is not None and answers.index.row(trace) is not None
    if known:
        held[_url("traces", trace)] = answers.trace(trace)
    return _embedded(answers, held, f"/searches/{quote(search_id, safe='')}", traces=int(known), searches=1)


def _trees(answers: Answers, search_ids: Iterable[str]) -> View:
    held: View = {}
    for name in search_ids:
        held[_url("searches", name)] = answers.tree(name)
        held[_url("searches", name, "nodes")] = answers.nodes(name)
    return held


def _embedded(answers: Answers, held: View, start: str, *, traces: int, searches: int) -> View:
    meta = answers.meta()
    counts = {**dict.fromkeys(meta["counts"], 0), "traces": traces, "searches": searches}
    return {"format": 1, "answers": {"api/meta": {**meta, "counts": counts, "embedded": True}, **held}, "start": start}


def _url(*parts: str) -> str:
    """As `encodeURIComponent` writes it."""
    return "/".join(["api", *(quote(part, safe="!'()*-._~") for part in parts)])
