"""Learned verifiers by name: `prm:FOLDER` and `implicit-prm:POLICY,REFERENCE`."""

from __future__ import annotations

from counterplay.core.errors import UserError
from counterplay.verifiers.learned.implicit import ImplicitPRM
from counterplay.verifiers.learned.prm import LearnedPRM
from counterplay.verifiers.learned.scoring import LearnedVerifier

SPECS = ("prm:", "implicit-prm:")
"""How the names of learned verifiers begin."""


def load(spec: str) -> LearnedVerifier:
    """The verifier that a spec names. Raises UserError where it names none, or a folder that holds no such model."""
    kind, _, rest = spec.partition(":")
    if kind == "prm" and rest:
        return LearnedPRM(rest)
    folders = [part.strip() for part in rest.split(",")]
    if kind == "implicit-prm" and len(folders) == 2 and all(folders):
        return ImplicitPRM(*folders)
    raise UserError(f"got verifier {spec!r}", "prm:FOLDER, or implicit-prm:POLICY,REFERENCE")
