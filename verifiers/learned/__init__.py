"""Learned verifiers: a trained process reward model, and the implicit one that a tuned policy and its reference make together."""

from counterplay.verifiers.learned.implicit import ImplicitPRM
from counterplay.verifiers.learned.prm import LearnedPRM
from counterplay.verifiers.learned.specs import SPECS, load

__all__ = ["SPECS", "ImplicitPRM", "LearnedPRM", "load"]
