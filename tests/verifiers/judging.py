"""What the tests of judges share: a loopback server that answers as a judge is told to, and trajectories to be judged."""

import json
import re

from counterplay.core.nouns import Message, Step, ToolCall, ToolSpec, Trajectory
from tests.replay.loopback import Loopback, completion

TOOL = ToolSpec.function("look_up", "Look up an order", {"type": "object", "properties": {"order": {"type": "string"}}})


def looked(order, answer, *, say=None, thinking=None, **flags):
    action = Message.assistant(say, [ToolCall("c1", "look_up", json.dumps({"order": order}))], thinking)
    return Step(action, (Message.tool(answer, "c1"),), **flags)


def said(text, **flags):
    return Step(Message.assistant(text), **{"terminated": True, **flags})


def attempt(*steps, task="Where is order 17?"):
    return Trajectory((TOOL,), (Message.system("You are a clerk."), Message.user(task)), steps)


GOOD = attempt(looked("17", "sent on the second of May"), said("It was sent on the second of May."))


def verdict(score, reason="seen in the results", name="success", **more):
    return json.dumps({**more, "reason": reason, "scores": {name: score}})


def answers(*texts, **options):
    """A server that gives these texts in turn."""
    return Loopback(*[completion(text) if isinstance(text, str) else text for text in texts], **options)


def question(request):
    """The user message of a request: material and question."""
    return request["messages"][1]["content"]


def tag(request):
    return re.search(r"The tag is ([0-9a-f]{12})\.", question(request))[1]


def candidates(request):
    """What each candidate id stands for: its text, by id, in the order shown."""
    blocks = re.split(r"^Candidate ([a-z]{3}):\n", question(request), flags=re.MULTILINE)[1:]
    return {name: text[: text.rindex("<</")] for name, text in zip(blocks[::2], blocks[1::2], strict=True)}


def comparing(scores):
    """Answers by what the candidates say: the first of `scores` whose words stand in one is its score."""

    def answer(request):
        rows = []
        for name, text in candidates(request).items():
            score = next(score for words, score in scores.items() if words in text)
            rows.append({"id": name, "reason": f"because {name}", "score": score})
        return completion(json.dumps({"candidates": rows}))

    return answer


def compared(scores):
    return Loopback(default=comparing(scores))
