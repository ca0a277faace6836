"""A job's events as JSON lines, one for each record that is logged under `counterplay`."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from counterplay.core.errors import UserError
from counterplay.jobs.events import FIELDS, Event, cleaned

_ROOT = "counterplay"


class JsonLines(logging.Formatter):
    """One JSON object a record: time (UTC), level, event, job, unit, and what belongs to the event.

    Of a record that is no event, `event` is the logger's name and `message` its words, without what stands in quotation marks.
    """

    def format(self, record: logging.LogRecord) -> str:
        told = getattr(record, FIELDS, None)
        line: dict[str, Any] = {"time": _moment(record.created), "level": record.levelname.lower()}
        if isinstance(told, Event):
            line |= {"time": _moment(told.at_us / 1e6), "event": told.name, "job": told.job}
            line |= {"unit": told.unit} if told.unit else {}
            line |= {name: value for name, value in told.fields.items() if name not in line}
        elif isinstance(told, dict):
            line |= {"event": record.getMessage(), **told}
        else:
            line |= {"event": record.name, "message": cleaned(record.getMessage())}
        return json.dumps(line, ensure_ascii=False, default=str)


@contextmanager
def logged(target: Path | str, *, level: int = logging.INFO) -> Iterator[None]:
    """JSON lines at the end of a file, or on stderr ("-"), while the block runs. Raises UserError where the file can't be written."""
    handler: logging.Handler
    if str(target) == "-":
        handler = logging.StreamHandler(sys.stderr)
    else:
        try:
            handler = logging.FileHandler(target, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise UserError(f"got --log {target}, which can't be written: {error.strerror}", "a file, or - for stderr") from None
    handler.setFormatter(JsonLines())
    handler.setLevel(level)
    logger = logging.getLogger(_ROOT)
    before = logger.level
    if not logger.isEnabledFor(level):
        logger.setLevel(level)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
        handler.close()


def _moment(seconds: float) -> str:
    whole, micros = divmod(round(seconds * 1e6), 1_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{micros:06d}Z"
