"""What the verifier says of good and bad trajectories, and that it is fit for use in searches."""

from careful import careful

from counterplay import Message, Score, Step, ToolCall, Trajectory
from counterplay.testing import check_verifier


def played(*names: str) -> Trajectory:
    """An agent that calls these tools about order 17, one a step."""
    actions = [Message.assistant(None, [ToolCall("1", name, '{"order_id": "17"}')]) for name in names]
    return Trajectory((), (Message.user("Refund order 17."),), tuple(Step(action) for action in actions))


def test_what_it_says() -> None:
    assert careful(played("look_up", "refund")) == 1.0
    assert careful(played("refund")) == Score(0.0, "step 0 refunds order 17, which nobody looked at")


def test_it_is_fit_for_use() -> None:
    check_verifier(careful, [played("look_up", "refund"), played("refund")])
