"""A refund must be preceded by a look at the order it refunds."""

from counterplay import Score, Trajectory
from counterplay.verifiers.functions import verifier


@verifier
def careful(trajectory: Trajectory) -> Score | float:
    seen: set[str] = set()
    for number, step in enumerate(trajectory.steps):
        for call in step.action.tool_calls:
            order = str((call.args or {}).get("order_id"))
            if call.name == "refund" and order not in seen:
                return Score(0.0, f"step {number} refunds order {order}, which nobody looked at")
            seen.add(order)
    return 1.0
