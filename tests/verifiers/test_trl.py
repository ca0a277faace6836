"""TRL's reward functions and ours: in TRL's own trainer, with every form it passes, and back."""

import asyncio
import json
import os

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from counterplay.core.errors import UserError, VerifierError
from counterplay.core.journal import ask, ask_all
from counterplay.core.nouns import Message, Score, Step, ToolCall, Trajectory
from counterplay.verifiers.functions import batched, verifier
from counterplay.verifiers.trl import as_trl_reward, from_trl_reward, tool_specs, trajectory_of
from tests.finetune.conftest import model_dir, tokenizer  # noqa: F401  fixtures
from tests.verifiers.asked import READ

CALL = {"id": "c", "type": "function", "function": {"name": "read", "arguments": {"n": 1}}}
ROWS = {
    "prompts": [
        "2 + 2?",
        [{"role": "user", "content": "look"}],
        [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "look"},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "content": "seen", "tool_call_id": "c"},
        ],
    ],
    "completions": [
        "4",
        [
            {"role": "assistant", "tool_calls": [CALL]},
            {"role": "tool", "name": "read", "content": "1"},
            {"role": "assistant", "content": "done", "tool_calls": None},
        ],
        [{"role": "assistant", "content": "again"}],
    ],
    "completion_ids": [[5, 2], [5, 6, 2], [7, 7]],
}


@verifier(version="1")
def lengths(trajectory):
    return Score(len(trajectory) / 10, f"{len(trajectory)} steps")


def test_what_trl_passes_becomes_finished_trajectories():
    text, tools, longer = map(trajectory_of, ROWS["prompts"], ROWS["completions"])
    assert [m.content_text for m in text.messages] == ["2 + 2?", "4"]
    assert [len(t) for t in (text, tools, longer)] == [1, 2, 2]
    assert all(t.finished and t.steps[-1].terminated for t in (text, tools, longer))
    assert tools.steps[0].action.tool_calls[0].args == {"n": 1}
    assert tools.steps[0].observations[0].content_text == "1"
    assert [step.sampled for step in longer.steps] == [False, True], "what stands in the prompt was not sampled now"
    assert [m.role for m in longer.prompt] == ["system", "user"]
    cut = trajectory_of("a", "b", cut=True).steps[-1]
    assert (cut.terminated, cut.truncated) == (False, True)
    assert trajectory_of("a", []).steps == ()


def test_tools_come_in_three_forms():
    definition = json.loads(READ.wire)
    for column in ([definition], [json.dumps(definition)], json.dumps([definition])):
        assert [tool.name for tool in tool_specs(column)] == ["read"]
    assert tool_specs([len]) == ()
    seen = []
    reward = as_trl_reward(lambda t: seen.append([tool.name for tool in t.tools]) or 1.0, tools=[READ])
    asyncio.run(reward(prompts=["a", "b", "c"], completions=["1", "2", "3"], tools=[None, [], [{"function": {"name": "own"}}]]))
    assert seen == [["read"], ["read"], ["own"]]


async def test_a_batch_is_asked_about_once_and_in_order():
    asked = []

    @batched(version="1")
    async def many(trajectories):
        asked.append(len(trajectories))
        return [lengths(t) for t in trajectories]

    metrics, extra = {}, {}
    reward = as_trl_reward(many)
    given = await reward(**ROWS, solution=["x"] * 3, trainer_state=object(), log_metric=metrics.__setitem__, log_extra=extra.__setitem__)
    assert given == [0.1, 0.2, 0.2]
    assert asked == [3]
    assert metrics == {"many errors": 0.0}
    assert extra == {"many reason": ["1 steps", "2 steps", "2 steps"]}
    assert reward.__name__ == "many"


async def test_missing_opinions_and_single_errors_are_none_and_never_zero():
    @verifier(version="1")
    def moody(trajectory):
        if len(trajectory) == 1:
            return None
        if not trajectory.steps[0].sampled:
            msg = "unreadable"
            raise RuntimeError(msg)
        return 0.0

    extra = {}
    reward = as_trl_reward(moody)
    assert await reward(**ROWS, log_extra=extra.__setitem__) == [None, 0.0, None]
    assert reward.errors == 1
    assert "unreadable" in extra["moody reason"][2]

    def broken(_):
        return 1 / 0

    with pytest.raises(VerifierError, match="ZeroDivisionError"):
        await as_trl_reward(broken)(**ROWS)


async def test_a_completion_that_hit_its_limit_is_truncated():
    ended = []
    await as_trl_reward(lambda t: ended.append(t.steps[-1].terminated) or 1.0, end_tokens=2)(**ROWS)
    await as_trl_reward(lambda t: ended.append(t.steps[-1].terminated) or 1.0, end_tokens=[7, 9])(**ROWS)
    await as_trl_reward(lambda t: ended.append(t.steps[-1].terminated) or 1.0)(**ROWS)
    middle = {"prompts": ["a"], "completions": ["b"], "completion_ids": [[2, 7]]}
    await as_trl_reward(lambda t: ended.insert(0, t.steps[-1].truncated) or 1.0, end_tokens=2)(**middle)
    assert ended.pop(0) is True, "an end token in the middle is no end"
    assert ended == [True, True, False, False, False, True, True, True, True]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # TRL asks transformers by the old name
def test_it_runs_in_trl_s_own_trainer(model_dir, tokenizer, tmp_path):  # noqa: F811
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    seen = []

    @batched(version="1")
    async def many(trajectories):
        seen.extend(trajectories)
        return [None if i == 0 else min(1.0, len(t.steps[-1].action.content_text) / 40) for i, t in enumerate(trajectories)]

    rows = Dataset.from_list([{"prompt": [{"role": "user", "content": "find order"}], "extra": i} for i in range(4)])
    arguments = GRPOConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=4,
        num_generations=2,
        max_completion_length=6,
        max_steps=2,
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        report_to=[],
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
    )
    sync = as_trl_reward(many, end_tokens=tokenizer.eos_token_id)
    trainer = GRPOTrainer(
        model=str(model_dir), args=arguments, train_dataset=rows, processing_class=tokenizer, reward_funcs=[sync, as_trl_reward(lengths)]
    )
    trainer.train()
    assert len(seen) == 8
    assert all(t.finished and t.prompt[0].content_text == "find order" and len(t) == 1 for t in seen)
    assert any(t.steps[-1].truncated for t in seen)
    logged = [log for log in trainer.state.log_history if "rewards/many/mean" in log]
    assert len(logged) == 2
    assert all(log["rewards/lengths/mean"] == pytest.approx(0.1) for log in logged)
    assert all(log["many errors"] == 0.0 for log in logged)


def talk(*texts, **ending):
    steps = [Step(Message.assistant(text)) for text in texts]
    return Trajectory((), (Message.user("q"),), (*steps[:-1], Step(steps[-1].action, **ending)) if steps else ())


async def test_trl_s_own_rewards_become_verifiers():
    from trl.rewards import get_repetition_penalty_reward, think_format_reward

    form = from_trl_reward(think_format_reward)
    assert (await ask(form, talk("<think>\na\n</think>\nb"))).value == 1.0
    assert (await ask(form, talk("b"))).value == 0.0
    assert (form.name, len(form.version)) == ("think_format_reward", 8)
    repetition = get_repetition_penalty_reward(ngram_size=2, max_penalty=-1.0)
    ids = {"a": 1, "b": 2, "c": 3, "d": 4}
    penalty = from_trl_reward(
        repetition,
        low=-1.0,
        high=0.0,
        columns=lambda t: {"completion_ids": [ids[word] for word in t.steps[-1].action.content_text.split()]},
    )
    assert (await ask(penalty, talk("a b c d"))).value == 1.0
    assert (await ask(penalty, talk("a b a b a b"))).value < 0.7


async def test_a_trl_reward_gets_messages_columns_and_objects():
    seen = {}

    async def reward(prompts, completions, solution, **others):
        seen.update(prompts=prompts, completions=completions, solution=solution, others=others)
        return [1.0, None, float("nan"), 3.0]

    def columns(trajectory):
        return {"solution": len(trajectory)}

    function = from_trl_reward(reward, high=2.0, columns=columns, version="4")
    call = Trajectory(
        (), (Message.user("q"),), (Step(Message.assistant(None, [ToolCall("c", "read", '{"n":1}')]), (Message.tool("1", "c"),)),)
    )
    answers = await ask_all(function, [call, talk(), talk("a"), talk("a", "b"), talk("c")])
    assert answers[0] == Score(0.5, "", "reward", "4")
    assert answers[1:4] == [None, None, None]
    assert "got reward 3, wanted one from 0 to 2" in str(answers[4])
    assert seen["prompts"][0] == [{"role": "user", "content": "q"}]
    assert seen["completions"][0][0]["tool_calls"][0]["function"]["arguments"] == {"n": 1}
    assert [len(completion) for completion in seen["completions"]] == [2, 1, 2, 1]
    assert seen["solution"] == [1, 1, 2, 1]
    assert seen["others"] == {}
    others = [{"high": 3.0, "columns": columns}, {"high": 2.0}, {"high": 2.0, "low": 1.0, "columns": columns}]
    assert function.fingerprint not in {from_trl_reward(reward, version="4", **other).fingerprint for other in others}
    assert function.fingerprint == from_trl_reward(reward, version="4", high=2.0, columns=columns).fingerprint


async def test_wrong_counts_and_scales_are_refused():
    short = from_trl_reward(lambda completions, **_: [1.0] * (len(completions) - 1))
    with pytest.raises(VerifierError, match="0 rewards for 1 completions"):
        await ask(short, talk("a"))
    for low, high in ((1.0, 1.0), (0.0, float("inf")), (float("nan"), 1.0)):
        with pytest.raises(UserError, match="got a scale"):
            from_trl_reward(len, low=low, high=high)


async def test_there_and_back():
    back = from_trl_reward(as_trl_reward(lengths))
    assert (await ask(back, talk("a", "b", "c"))).value == pytest.approx(0.3)
