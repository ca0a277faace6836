"""Trajectories that produced something, and hostile ones that every pack must survive."""

from counterplay.core.nouns import Message, Step, ToolCall, Trajectory


def said(*texts, ended=False, question="do it"):
    steps = [Step(Message.assistant(text), terminated=ended and text is texts[-1]) for text in texts]
    return Trajectory((), (Message.user(question),), tuple(steps))


def block(text, language="python"):
    return f"Here it is:\n\n```{language}\n{text}\n```\n\nDone."


def called(name, arguments, ended=False):
    return Trajectory((), (Message.user("do it"),), (Step(Message.assistant(None, [ToolCall("1", name, arguments)]), terminated=ended),))


def hostile():
    odd = [
        {"role": "assistant", "content": 7},
        {"role": "assistant", "content": {"text": "```python"}},
        {"role": "assistant", "content": [None, 3, {"text": None}, {"type": "image"}]},
        {"role": "assistant", "tool_calls": "no list"},
        {"role": "assistant", "tool_calls": [None, 3, {}]},
        {"role": "assistant", "tool_calls": [{"function": {"name": None, "arguments": "[1, 2"}}]},
        {"role": "assistant", "content": "```python\nnever closed"},
        {"role": "assistant", "content": "```" * 5000},
        {"role": "assistant", "content": "```python\n\x00\ud800\n```"},
        {"role": "assistant", "content": "```\n" + "(" * 30000 + "\n```"},
    ]
    steps = tuple(Step(Message.from_openai(fields)) for fields in odd)
    yield Trajectory()
    yield Trajectory((), (Message.user("q"),))
    for step in steps:
        yield Trajectory((), (Message.user("q"),), (step,))
        yield Trajectory((), (Message.user("q"),), (Step(step.action, terminated=True),))
    yield Trajectory((), (), steps)
