"""Errors that say what was got, what was wanted and what to do.

`UserError` and its kin are for a person to read: the CLI prints them without a traceback. Everything else is a defect.
"""

from __future__ import annotations


class CounterplayError(Exception):
    """Base of every error the toolkit raises on purpose. `exit_code` is what the CLI returns for it."""

    exit_code = 1

    def __init__(self, got: str, wanted: str = "", do: str = "") -> None:
        self.got, self.wanted, self.do = got, wanted, do
        super().__init__(self._text())

    def _text(self) -> str:
        parts = [self.got]
        if self.wanted:
            parts.append(f"wanted {self.wanted}")
        text = "; ".join(parts)
        end = "" if text.endswith(("?", ".")) else "."
        return f"{text}{end} {self.do}" if self.do else text


class UserError(CounterplayError):
    """Bad usage or bad input: the caller can put it right."""

    exit_code = 2


class SourceError(UserError):
    """A log file that can't be read as what it was said to be."""


class StoreError(CounterplayError):
    """The store is locked, damaged or of another version."""


class PolicyError(CounterplayError):
    """A model did not answer, or answered nonsense, after all retries."""


class VerifierError(CounterplayError):
    """A verifier raised or returned something that is not a score. Recorded as data, never turned into a number."""


class DivergenceError(CounterplayError):
    """A re-enacted prefix differed from the recording.

    Derives from CounterplayError for the CLI, and is raised outside of tool code so that no wrapper can swallow it.
    """

    def __init__(self, got: str, wanted: str = "", do: str = "", *, step: int = -1, kind: str = "result_drift") -> None:
        super().__init__(got, wanted, do)
        self.step, self.kind = step, kind


class BudgetExceeded(CounterplayError):  # noqa: N818  the field's word
    """A reservation did not fit into what is left. Searches catch it and return the tree they have."""
