"""What goes wrong with a job, in the words of a job file: the keys it has, where an error names options of the command line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from counterplay.core.errors import CounterplayError, UserError

_KEYS = {
    "option": "[search] options",
    "search": "[search] algorithm",
    "fork": "[search] fork",
    "stop-when": "[search] stop_when",
    "max-steps": "[search] max_steps",
    "budget": "[budget] total",
    "trace-budget": "[budget] per_trace",
    "split": "[budget] split",
    "policy": "[policy] spec",
    "price": "[policy] price",
    "extra-body": "[policy] extra_body",
    "base-url": "[policy] base_urls",
    "max-tokens": "[policy] max_tokens",
    "environment": "[environment] spec",
    "simulate": "[environment] simulate",
    "allow-external": "[environment] allow_external",
    "verifier": "[[verifier]] spec",
    "concurrency": "[engine] at_once",
    "in-flight": "[pace] in_flight",
}
_COMMAND = re.compile(r"((?:search: |Search first: )?counterplay [a-z][^.;]*)")
_FLAG = re.compile(r"(?<![\w-])--([a-z][a-z0-9-]*)")


def in_keys(text: str) -> str:
    """`text` with the keys of a job file for the options that it names; whole commands stay as they are."""
    parts = _COMMAND.split(text)
    return "".join(part if at % 2 else _FLAG.sub(_key, part) for at, part in enumerate(parts))


@contextmanager
def of_job(place: str = "") -> Iterator[None]:
    """A UserError inside is told in keys, after the `place` in the file that it is about."""
    try:
        yield
    except UserError as error:
        raise told(error, place) from None


def told(error: CounterplayError, place: str = "") -> UserError:
    """The error in the words of a job file."""
    at = f"{place}: " if place else ""
    return UserError(at + in_keys(error.got), in_keys(error.wanted), in_keys(error.do))


def _key(found: re.Match[str]) -> str:
    return _KEYS.get(found[1], found[1].replace("-", "_"))
