"""Running programs that nobody vouches for: bubblewrap, else Landlock with seccomp and limits, else refused. See `run`."""

from counterplay.verifiers.sandbox.running import Isolation, Level, Limits, NoIsolation, Ran, available, run, run_sync

__all__ = ["Isolation", "Level", "Limits", "NoIsolation", "Ran", "available", "run", "run_sync"]
