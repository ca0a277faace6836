"""The outcome verifier: what the environment, or the log, says of a finished trajectory."""

from __future__ import annotations

from counterplay.core.nouns import Score, Trajectory


class OutcomeReward:
    """The reward of the last step, read as a value in [0, 1]. No opinion on unfinished or unrewarded trajectories.

    `low` and `high` are the ends of the reward's scale; rewards outside it are clipped to it and the reason says so.
    A branch that ended without an environment's word (an error, a step limit) is worth 0 where `unfinished_is_failure`.
    """

    name = "outcome"
    version = "1"

    def __init__(self, *, low: float = 0.0, high: float = 1.0, unfinished_is_failure: bool = True) -> None:
        self.low, self.high, self.unfinished_is_failure = low, high, unfinished_is_failure
        self.fingerprint = f"{self.name}@{self.version}({low},{high},{unfinished_is_failure})"

    def __call__(self, trajectory: Trajectory, /) -> Score | None:
        last = trajectory.steps[-1] if trajectory.steps else None
        if last is None or not last.finished:
            return None
        if last.reward is None:
            if self.unfinished_is_failure and (last.truncated or last.error):
                return Score(0.0, f"ended without an outcome: {last.error or 'step limit'}", self.name, self.version)
            return None
        value = min(1.0, max(0.0, (last.reward - self.low) / (self.high - self.low)))
        clipped = "" if self.low <= last.reward <= self.high else f", clipped to {self.low:g}..{self.high:g}"
        return Score(value, f"reward {last.reward:g}{clipped}", self.name, self.version)


outcome = OutcomeReward()
