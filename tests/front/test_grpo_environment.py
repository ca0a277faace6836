"""Worlds as TRL's environments: begun where a prompt stands, tools as they were sent, rewards from the world or a verifier."""

import inspect
from functools import cache
from pathlib import Path

import pytest

from counterplay import examples
from counterplay.connectors.base import read_unit, units
from counterplay.core.canonical import loads
from counterplay.core.errors import DivergenceError, UserError
from counterplay.core.nouns import Score, ToolSpec, Trace
from counterplay.examples.ledger.world import TOOLS, Ledger
from counterplay.finetune.grpo import GRPORow
from counterplay.finetune.rows import Lineage
from counterplay.finetune.write import read_dataset, write_dataset
from counterplay.grpo_environment import ReplayEnvironments, environment_class, state_of
from counterplay.replay.agents.replaying import waited_for
from counterplay.replay.world import ToolError

LEDGER = Path(examples.__file__).parent / "ledger"


@cache
def success():
    """A logged run of the example agent that closed its books rightly."""

    async def first():
        for unit in units([LEDGER / "logs.jsonl.gz"])[0]:
            async for item in read_unit(unit):
                if isinstance(item, Trace) and item.outcome.success:
                    return item
        raise LookupError("no success among the logs of the example agent")

    return waited_for(first)


def row_at(step, folder, **changes):
    trace = success()
    state = trace.trajectory.prefix(step)
    row = GRPORow(state.messages, state.tools, sum(len(s.messages) for s in state.steps), lineage=Lineage(trace.task, (trace.id,)))
    write_dataset([row], folder, split={"train": 1.0})
    (record,) = read_dataset(folder)[1]
    return {**record, **changes}


def parsed(message):
    """A message as a policy renders it: arguments as objects."""
    fields = message.to_openai()
    for call in fields.get("tool_calls") or ():
        call["function"]["arguments"] = loads(call["function"]["arguments"])
    return fields


def played(environment, steps):
    """Call the tools that the log called, by their names."""
    answers = []
    for step in steps:
        (call,) = step.action.tool_calls
        answers.append(getattr(environment, call.name)(**call.args))
    return answers


def test_a_generation_begins_at_its_fork_and_is_paid_by_the_world(tmp_path):
    trace = success()
    row = row_at(4, tmp_path / "d")
    factory = ReplayEnvironments(Ledger, [row])
    one, other = factory(), factory()
    one.reset(**row)
    other.reset(**row)
    rest = trace.trajectory.steps[4:]
    calls = [step for step in rest if step.action.tool_calls]
    assert played(one, calls) == [step.observations[0].content for step in calls]
    assert (one.get_reward(), other.get_reward()) == (1.0, 0.0), "each generation has a world of its own"
    assert one.trial_balance() == "Error: the episode is over."
    one.reset(**row)
    assert one.get_reward() == 0.0
    factory.close()


def test_the_state_of_a_row_is_the_logged_one(tmp_path):
    trace = success()
    state = state_of(row_at(3, tmp_path / "d"), trace.trajectory.tools)
    assert (state.key, len(state)) == (trace.trajectory.prefix(3).key, 3)


def test_a_world_that_now_goes_another_way_is_not_begun_in(tmp_path):
    row = row_at(4, tmp_path / "d")

    class Other(Ledger):
        def _list_documents(self):
            return ["d0"]

    environment = ReplayEnvironments(Other, [row])()
    environment.reset(**row)
    with pytest.raises(DivergenceError, match="at step 0"):
        environment.trial_balance()


def test_a_verifier_is_asked_about_what_was_called(tmp_path):
    row, asked = row_at(2, tmp_path / "d"), []

    async def verifier(trajectory):
        asked.append([step.action.signature for step in trajectory.steps])
        return Score(0.25)

    environment = ReplayEnvironments(Ledger, [row], verifier=verifier)()
    environment.reset(**row)
    environment.trial_balance()
    assert environment.get_reward() == 0.25
    assert [signatures[2:] for signatures in asked] == [["trial_balance({})", "say()"]]
    silent = ReplayEnvironments(Ledger, [row], verifier=lambda _: None)()
    silent.reset(**row)
    assert silent.get_reward() is None, "no opinion is not zero"


def test_what_a_tool_refuses_is_an_answer_and_what_breaks_is_an_error(tmp_path):
    row = row_at(0, tmp_path / "d")

    class Broken(Ledger):
        def _trial_balance(self):
            raise RuntimeError("disk on fire")

    environment = ReplayEnvironments(Broken, [row])()
    with pytest.raises(UserError, match="before reset"):
        environment.trial_balance()
    environment.reset(**row)
    assert environment.get_document(document_id="d0") == "error: unknown document d0"
    with pytest.raises(UserError, match="disk on fire"):
        environment.trial_balance()
    assert environment.get_reward() is None
    with pytest.raises(AttributeError):
        environment.no_such_tool  # noqa: B018


def test_an_external_tool_is_not_executed_unless_named(tmp_path):
    row = row_at(0, tmp_path / "d")

    class Mailing(Ledger):
        tools = tuple(ToolSpec(tool.wire) if tool.name == "trial_balance" else tool for tool in TOOLS)

    refusing, allowing = (ReplayEnvironments(Mailing, [row], allow_external=names)() for names in ((), ("trial_balance",)))
    refusing.reset(**row)
    with pytest.raises(UserError, match="external"):
        refusing.trial_balance()
    allowing.reset(**row)
    assert "debit" in allowing.trial_balance()


def test_a_world_of_a_trace_and_rows_that_say_too_little(tmp_path):
    row, trace = row_at(1, tmp_path / "d"), success()

    def world(found):
        return Ledger(found.task)

    world.takes_trace = True
    environment = ReplayEnvironments(world, [row], traces=[trace])()
    environment.reset(**row)
    assert "debit" in environment.trial_balance()
    with pytest.raises(UserError, match=f"no trace {trace.id}"):
        ReplayEnvironments(world, [row])().reset(**row)
    with pytest.raises(UserError, match="without its task"):
        ReplayEnvironments(Ledger, [row])().reset(**{**row, "task": None})
    with pytest.raises(UserError, match="2 sets of tools"):
        ReplayEnvironments(Ledger, [row, {**row, "tools": row["tools"][1:]}])


def test_worlds_of_few_tasks_are_kept_and_the_others_closed(tmp_path):
    row, closed = row_at(0, tmp_path / "d"), []

    class Closing(Ledger):
        def close(self):
            closed.append(self._task.id)

    factory = ReplayEnvironments(Closing, [row], cache_tasks=1, on_divergence="ignore")
    for task in ("train-0001", "train-0002"):
        environment = factory()
        environment.reset(**{**row, "task": task})
        environment.trial_balance()
    assert len(factory._open) == 1


def test_methods_are_typed_and_documented_from_the_schema():
    from transformers.utils import get_json_schema

    odd = ToolSpec.function("mcp.find-it", "Find", {"type": "object", "properties": {"class": {"type": "string"}}})
    nested = ToolSpec.function(
        "tag",
        "Tag it.",
        {
            "type": "object",
            "properties": {
                "note": {"type": "string", "description": "free text"},
                "tags": {"type": "array", "items": {"type": "string"}, "description": "what it is\nabout"},
                "level": {"enum": ["low", "high"], "description": "how much"},
                "score": {"type": "number", "description": "in [0, 1]"},
            },
            "required": ["tags", "level"],
        },
    )
    made = environment_class((odd, nested, *TOOLS))
    methods = [value for _, value in inspect.getmembers(made, inspect.isfunction) if value.__name__ not in dir(object)]
    tools = [value for value in methods if value.__name__ not in ("reset", "get_reward") and not value.__name__.startswith("_")]
    assert [tool.__name__ for tool in tools] == ["mcp.find-it", "tag", *(tool.name for tool in TOOLS)], "in the order that they were sent"
    schema = get_json_schema(tools[1])["function"]
    assert schema["description"] == "Tag it."
    assert schema["parameters"]["required"] == ["tags", "level"]
    properties = schema["parameters"]["properties"]
    assert properties["tags"] == {"type": "array", "items": {"type": "string"}, "description": "what it is about"}
    assert properties["level"] == {"type": "string", "enum": ["low", "high"], "description": "how much"}
    assert (properties["score"]["type"], properties["note"]["description"]) == ("number", "free text")
    assert get_json_schema(tools[3])["function"]["parameters"]["properties"]["document_id"]["type"] == "string"


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_trl_s_trainer_takes_a_step_with_the_example_agent_in_its_world(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer
    from trl.chat_template_utils import qwen3_template

    from counterplay.finetune.masks import render
    from counterplay.finetune.trainers import quiet

    trace = success()
    start = len(trace.trajectory) - 3
    row_at(start, tmp_path / "d")
    tokenizer = AutoTokenizer.from_pretrained(str(LEDGER / "model"))
    tokenizer.response_template = qwen3_template
    with quiet():
        rows = datasets.load_dataset(str(tmp_path / "d"), split="train", cache_dir=str(tmp_path / "cache"))
        sizes = {"per_device_train_batch_size": 2, "num_generations": 2, "max_steps": 1, "max_completion_length": 128, "temperature": 0.2}
        places = {
            "output_dir": str(tmp_path / "out"),
            "report_to": "none",
            "save_strategy": "no",
            "disable_tqdm": True,
            "log_level": "error",
        }
        args = GRPOConfig(**sizes, **places, bf16=False, gradient_checkpointing=False, use_cpu=True, log_completions=False, seed=0)
        factory = ReplayEnvironments("counterplay.examples.ledger.world:Ledger", rows)
        trainer = GRPOTrainer(
            model=str(LEDGER / "model"), args=args, train_dataset=rows, processing_class=tokenizer, environment_factory=factory
        )
        sent = []
        generate = trainer._generate_single_turn
        monkeypatch.setattr(trainer, "_generate_single_turn", lambda ids, *rest, **named: sent.append(ids) or generate(ids, *rest, **named))
        trainer.train()
    state = trace.trajectory.prefix(start)
    (policy_was_sent,) = render(tokenizer, [[parsed(message) for message in state.messages]], [t.to_openai() for t in TOOLS], ask=True)
    assert [tokenizer.decode(ids) for ids in sent[0]] == [policy_was_sent] * 2
    logged = next(entry for entry in trainer.state.log_history if "rewards/ReplayEnvironment/mean" in entry)
    assert logged["tools/failure_frequency"] == 0
    for environment in trainer.environments:
        assert environment._state.finished
        assert len(environment._state) > start
    rewards = [environment._state.steps[-1].reward for environment in trainer.environments]
    assert logged["rewards/ReplayEnvironment/mean"] == pytest.approx(sum(rewards) / 2)


def test_a_tool_error_class_is_told_to_the_model(tmp_path):
    row = row_at(0, tmp_path / "d")

    class Refusing(Ledger):
        def call(self, name, arguments):
            raise ToolError("not today")

    environment = ReplayEnvironments(Refusing, [row])()
    environment.reset(**row)
    assert environment.trial_balance() == "not today"
