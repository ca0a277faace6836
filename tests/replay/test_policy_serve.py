"""`transformers serve`, a real OpenAI-compatible server, as the policy: it ignores `n` and samples only when told how."""

import json
import shutil
from pathlib import Path

import pytest

from counterplay.core.nouns import Message, Step, Trajectory, Usage
from counterplay.examples.ledger import Ledger, tasks
from counterplay.replay.openai_policy import OpenAIPolicy, sampling_for_transformers_serve
from counterplay.replay.transformers_policy import TransformersPolicy
from counterplay.replay.world import ToolError
from tests.serving import serving

LEDGER = Path(__file__).parents[2] / "examples" / "ledger" / "model"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The base URL of a server for any model folder."""
    with serving(tmp_path_factory.mktemp("serve") / "log") as url:
        yield url


RESPONSE_TEMPLATE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "tool_calls": {
            "open_pattern": r"\s*<tool_call>",
            "close": "</tool_call>",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close_pattern": r"\s*(?:<\|im_end\|>|<\|endoftext\|>)", "content": "text"},
    },
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The example's model with a response template and as it is: the server gives tool calls for the one, text for the other."""
    parsing = tmp_path_factory.mktemp("calls") / "model"
    shutil.copytree(LEDGER, parsing)
    config = json.loads((parsing / "tokenizer_config.json").read_text())
    (parsing / "tokenizer_config.json").write_text(json.dumps({**config, "response_template": RESPONSE_TEMPLATE}))
    return parsing, LEDGER


def answer(world, call):
    try:
        return world.call(call.name, call.args)
    except ToolError as error:
        return str(error)


async def played(policy, steps):
    """The first steps of the policy in a world of the example, and the usage of each."""
    world = Ledger(next(iter(tasks("train", 1))))
    state, usages = Trajectory(tuple(world.tools), tuple(world.prompt)), []
    for _ in range(steps):
        (proposal,) = await policy.propose(state, 1)
        results = [Message.tool(answer(world, call), call.id) for call in proposal.action.tool_calls]
        state = state.extend(Step(proposal.action, tuple(results)))
        usages.append(proposal.usage.tokens)
    return [step.action.signature for step in state.steps], usages


@pytest.mark.parametrize("which", [0, 1])
async def test_greedy_answers_equal_the_local_policy_s_whether_calls_come_as_calls_or_as_text(server, folders, which):
    local = TransformersPolicy(folders[which], temperature=0, max_new_tokens=64)
    async with OpenAIPolicy(str(folders[which]), base_url=server, temperature=0, max_tokens=64) as served:
        theirs, ours = await played(served, 4), await played(local, 4)
    assert theirs == ours
    assert not any(signature.startswith("say(") for signature in theirs[0])
    assert sum(theirs[1]) == served.tally.input_tokens + served.tally.output_tokens
    local.close()


async def test_samples_differ_once_the_server_is_told_to_sample(server, folders):
    world = Ledger(next(iter(tasks("train", 1))))
    start = Trajectory(tuple(world.tools), tuple(world.prompt))
    told = sampling_for_transformers_serve(2.0, max_new_tokens=24)
    async with OpenAIPolicy(str(folders[1]), base_url=server, temperature=None, max_tokens=24, extra_body=told) as hot:
        proposals = await hot.propose(start, 6)
    assert len(proposals) == 6
    assert len({p.action.signature for p in proposals}) > 1
    assert hot.tally.short == 1
    assert hot.tally.calls == 6
    assert sum((p.usage for p in proposals), Usage()).tokens == hot.tally.input_tokens + hot.tally.output_tokens


async def test_the_example_s_model_is_sampled_at_the_temperature_that_is_asked_for(server):
    world = Ledger(next(iter(tasks("train", 1))))
    start = Trajectory(tuple(world.tools), tuple(world.prompt))
    async with OpenAIPolicy(str(LEDGER), base_url=server, temperature=3.0, max_tokens=24) as hot:
        assert len({proposal.action.signature for proposal in await hot.propose(start, 6)}) > 1
