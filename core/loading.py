"""Objects named `module:attr`: how users hand in their own policies, environments and verifiers."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from typing import Any

from counterplay.core.errors import UserError


def resolve(spec: str, what: str) -> Any:
    """The object `module:attr` names, with the working directory importable as `python -m` would have it.

    Raises UserError, with what failed, where there is no such module or attribute.
    """
    module_name, _, path = spec.partition(":")
    if os.getcwd() not in sys.path:  # noqa: PTH109  sys.path holds strings
        sys.path.insert(0, os.getcwd())  # noqa: PTH109
    try:
        found: Any = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(
            f"got {what} {spec!r}, whose module can't be imported: {error}", "module:attr", "Is it installed, or in this folder?"
        ) from error
    except Exception as error:
        raise UserError(
            f"got {what} {spec!r}, whose module fails on import: {type(error).__name__}: {error}", "a module that imports"
        ) from error
    for name in path.split("."):
        if not hasattr(found, name):
            close = difflib.get_close_matches(name, dir(found))
            hint = f"Did you mean {close[0]}?" if close else ""
            raise UserError(f"got {what} {spec!r}, but {module_name} has no {name!r}", "module:attr", hint)
        found = getattr(found, name)
    return found
