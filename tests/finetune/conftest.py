"""A tiny tokenizer with a Qwen-like chat template, a tiny random model, and small conversations, trees and traces."""

import json
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

from counterplay.core.nouns import Call, Completeness, Grade, Message, Outcome, Score, Source, Step, ToolCall, ToolSpec, Trace, Trajectory
from counterplay.finetune.rows import SourcedTree
from counterplay.search.tree import SearchTree

QWEN = (
    "{%- if tools %}<|im_start|>system\n{% if messages[0].role == 'system' %}{{ messages[0].content + '\n' }}{% endif %}"
    "{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n"
    "{%- elif messages[0].role == 'system' %}<|im_start|>system\n{{ messages[0].content }}<|im_end|>\n{% endif %}"
    "{%- for message in messages %}{%- if message.role == 'assistant' %}"
    "{{- '<|im_start|>assistant\n' + (message.content or '') }}"
    "{%- for call in message.tool_calls or [] %}"
    '{{- \'<tool_call>\n{"name": "\' + call.function.name + \'", "arguments": \' }}'
    "{{- call.function.arguments if call.function.arguments is string else call.function.arguments | tojson }}{{- '}\n</tool_call>' }}"
    "{%- endfor %}{{- '<|im_end|>\n' }}"
    "{%- elif message.role != 'system' %}{{- '<|im_start|>' + message.role + '\n' + (message.content or '') + '<|im_end|>\n' }}{% endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="session")
def tokenizer():
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    core.train_from_iterator(["user assistant system tool name arguments find book refund amount order done " * 4], trainer)
    core.add_tokens([AddedToken(text, normalized=False, special=False) for text in ("<tool_call>", "</tool_call>")])
    made = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=["<|im_start|>"],
        model_max_length=4096,
    )
    made.chat_template = QWEN
    return made


@pytest.fixture(scope="session")
def model_dir(tokenizer, tmp_path_factory):
    """A random Qwen3 of 30,000 parameters, saved with the tokenizer."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    folder = tmp_path_factory.mktemp("model") / "tiny"
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = Qwen3Config(vocab_size=len(tokenizer), head_dim=16, max_position_embeddings=1024, tie_word_embeddings=True, **sizes, **ids)
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class Kit:
    """Builders with short names."""

    tools = (
        ToolSpec.function("find", "Look an order up", {"type": "object", "properties": {"order": {"type": "integer"}}}),
        ToolSpec.function(
            "refund", "Pay back", {"type": "object", "properties": {"order": {"type": "integer"}, "amount": {"type": "number"}}}
        ),
    )

    @staticmethod
    def say(text):
        return Message.assistant(text)

    @staticmethod
    def call(name, call_id="c1", **arguments):
        return Message.assistant(None, [ToolCall(call_id, name, json.dumps(arguments))])

    @staticmethod
    def step(action, *results, grade=Grade.EXACT, call_id="c1", **flags):
        observations = tuple(Message.tool(text, call_id) for text in results)
        return Step(action, observations, grades=(grade,) * len(observations), **flags)

    def state(self, task="t1"):
        return Trajectory(self.tools, (Message.system("You refund orders."), Message.user(f"Refund my order of {task}, please.")))

    def trajectory(self, task="t1", *, reward=1.0, amount=5):
        state = self.state(task).extend(self.step(self.call("find", order=7), f'{{"total": {amount}}}'))
        state = state.extend(self.step(self.call("refund", "c2", order=7, amount=amount), "ok", call_id="c2"))
        return state.extend(Step(self.say("Done."), terminated=True, reward=reward))

    def trace(self, task="t1", *, reward=1.0, amount=5, session=None, inputs="full", partial_steps=(), **fields):
        trajectory = self.trajectory(task, reward=reward, amount=amount)
        calls = tuple(
            Call(i, completeness=Completeness(inputs="partial" if i in partial_steps else inputs)) for i in range(len(trajectory))
        )
        known = {"outcome": Outcome(reward, source="environment"), "calls": calls, "completeness": Completeness(inputs=inputs), **fields}
        return Trace(fields.pop("id", f"trace-{task}-{reward:g}-{amount}"), trajectory, Source("test"), task=task, session=session, **known)

    def tree(
        self, state=None, *, good=(4, 4.0), bad=(4, 0.0), task="t1", score=1.0, grade=Grade.EXECUTED, sampled=True, bad_error=None, **source
    ):
        """A fork after the look-up: `refund` with 5 is good, with 50 bad; both (N, W). The good one goes on to a finished leaf."""
        start = state or self.trajectory(task).prefix(1)
        tree = SearchTree.start(start, "fork_best_of_n")
        right = tree.add(tree.root, self.step(self.call("refund", "g", order=7, amount=5), "ok", grade=grade, call_id="g", sampled=sampled))
        wrong = tree.add(
            tree.root, self.step(self.call("refund", "b", order=7, amount=50), "ok", grade=grade, call_id="b", error=bad_error)
        )
        leaf = tree.add(right, Step(self.say("Refunded."), terminated=True))
        leaf.score = Score(score, "books balance", "ledger", "2")
        (right.visits, right.value_sum), (wrong.visits, wrong.value_sum) = good, bad
        leaf.visits, leaf.value_sum = 1, score
        tree.root.visits, tree.root.value_sum = good[0] + bad[0], good[1] + bad[1]
        return SourcedTree(tree, **{"search": f"s-{task}", "task": task, **source})


@pytest.fixture(scope="session")
def kit():
    return Kit()


@pytest.fixture(scope="session")
def shared_data():
    folder = Path(__file__).resolve().parents[3] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real logs in ../shared/data are not here")
    return folder
