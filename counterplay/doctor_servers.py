"""Asking a model server what it is: whether it answers, what it lists, and what it tells beside its answers."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from counterplay.doctor import Finding

if TYPE_CHECKING:
    import httpx2

_ASKED: Mapping[str, Any] = {"messages": [{"role": "user", "content": "Say one word."}], "temperature": 0}
_SKEW_S = 30.0
_REFUSED = 400
_SHOWN = 5


def server(base_url: str, *, model: str = "", timeout_s: float = 10.0) -> Iterator[Finding]:
    """A server: reachable, its models, one answer of one token with its latency, what it supports, and its clock."""
    import httpx2

    area = f"server {base_url}"
    key = os.environ.get("OPENAI_API_KEY")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    with httpx2.Client(base_url=base_url.rstrip("/"), headers=headers, timeout=timeout_s) as client:
        try:
            answer = client.get("/models")
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            do = "See that it runs, and that the address ends as the server wants it, mostly in /v1."
            yield Finding(area, "reachable", "broken", f"it does not answer: {error}", do)
            return
        yield _clock(area, answer)
        listed = _models(answer)
        if answer.status_code in (401, 403):
            yield Finding(area, "models", "broken", f"it answered {answer.status_code}", "Set OPENAI_API_KEY to a key that it takes.")
            return
        named = ", ".join(listed[:_SHOWN]) + (", …" if len(listed) > _SHOWN else "")
        yield Finding(area, "models", "well" if listed else "odd", named or f"it answered {answer.status_code} and lists none")
        asked = model or (listed[0] if listed else "")
        if model and listed and model not in listed:
            yield Finding(area, "model", "odd", f"{model} is not among those that it lists")
        if asked:
            try:
                yield from _answers(client, area, asked)
            except httpx2.HTTPError as error:
                yield Finding(
                    area, "answer", "broken", f"{asked} does not answer: {type(error).__name__}", "Give it more --timeout-s, or look there."
                )


def _answers(client: httpx2.Client, area: str, model: str) -> Iterator[Finding]:
    body = {**_ASKED, "model": model, "max_tokens": 1}
    began_s = time.perf_counter()
    answer = client.post("/chat/completions", json=body)
    took_s = time.perf_counter() - began_s
    found = _json(answer)
    choices = found.get("choices")
    if not answer.is_success or not isinstance(choices, list) or not choices:
        do = "Its log says why; whether it has that model is the first thing to look for."
        yield Finding(area, "answer", "broken", f"{model} was answered with {answer.status_code} and no choice", do)
        return
    yield Finding(area, "answer", "well", f"{model}: a token in {took_s:.2f} s")
    usage = found.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    told = "prompt_tokens" in usage
    yield Finding(
        area, "usage", "well" if told else "odd", "it tells tokens" if told else "it tells none: budgets in tokens and dollars can't bind"
    )
    again = _json(client.post("/chat/completions", json=body)).get("usage") or {}
    details = again.get("prompt_tokens_details") if isinstance(again, dict) else None
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    said = "it does not tell" if cached is None else f"it tells, {cached} when asked the same again"
    yield Finding(area, "cached tokens", "absent" if cached is None else "well", said)
    for name, extra, why in (
        ("seed", {"seed": 1}, "draws of one state would be the same, or never again what they were"),
        ("logprobs", {"logprobs": True}, "priors are counted from draws"),
    ):
        yield _supports(client, area, name, {**body, **extra}, why)


def _supports(client: httpx2.Client, area: str, name: str, body: Mapping[str, Any], why: str) -> Finding:
    answer = client.post("/chat/completions", json=dict(body))
    if answer.status_code >= _REFUSED:
        return Finding(area, name, "odd" if name == "seed" else "absent", f"refused with {answer.status_code}: {why}")
    if name == "seed":
        return Finding(area, name, "well", "it is taken")
    choices = _json(answer).get("choices")
    first = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    return Finding(area, name, "well", "it gives them") if first.get("logprobs") else Finding(area, name, "absent", f"it gives none: {why}")


def _clock(area: str, answer: httpx2.Response) -> Finding:
    try:
        theirs = parsedate_to_datetime(answer.headers["date"]).timestamp()
    except (KeyError, ValueError, TypeError):
        return Finding(area, "clock", "absent", "it does not tell its time")
    skew_s = theirs - time.time()
    if abs(skew_s) <= _SKEW_S:
        return Finding(area, "clock", "well", "within half a minute of this machine's")
    which = "ahead of" if skew_s > 0 else "behind"
    do = "Set the clocks: times of logs, of leases and of retries are told by them."
    return Finding(area, "clock", "odd", f"{abs(skew_s):,.0f} s {which} this machine's", do)


def _models(answer: httpx2.Response) -> list[str]:
    rows = _json(answer).get("data")
    return [str(row["id"]) for row in rows if isinstance(row, dict) and "id" in row] if isinstance(rows, list) else []


def _json(answer: httpx2.Response) -> dict[str, Any]:
    try:
        found = answer.json()
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
