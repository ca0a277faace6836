"""Conformance checks for the tests of parts that others write: `check_connector` for log formats, `check_verifier` for verifiers,
`check_world` for worlds, `check_environment` for any environment.

Names are imported on first use; each check is described where it is defined.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOME_OF = {
    "check_connector": "connectors.testing",
    "check_environment": "replay.testing",
    "check_item": "connectors.testing",
    "check_verifier": "verifiers.testing",
    "check_world": "replay.testing",
}

__all__ = ["check_connector", "check_environment", "check_item", "check_verifier", "check_world"]

if TYPE_CHECKING:
    from counterplay.connectors.testing import check_connector, check_item
    from counterplay.replay.testing import check_environment, check_world
    from counterplay.verifiers.testing import check_verifier


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        msg = f"module 'counterplay.testing' has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(f"counterplay.{home}"), name)


def __dir__() -> list[str]:
    return list(__all__)
