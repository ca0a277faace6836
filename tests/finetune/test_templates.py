"""Over every chat template that ships with TRL: prompts are what the policy was sent, and labels are what it wrote and nothing else."""

import copy
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from counterplay.core.nouns import Message, Step, ToolSpec, Trajectory
from counterplay.finetune.answers import left_out
from counterplay.finetune.masks import IGNORED, render, segments, tokenised
from counterplay.finetune.portable import portable
from counterplay.finetune.rows import SFTRow
from counterplay.finetune.write import read_dataset, write_dataset
from tests.finetune.chat_templates import CONVERSATIONS, TOOLS, acting, as_sent, sampled, spoken, tokenizer_for, trl_templates

pytest.importorskip("trl")
TEMPLATES = trl_templates()
EXAMPLE = Path(__file__).parents[2] / "examples" / "ledger" / "model"
NAMES = [*TEMPLATES, "example"]
REOPENED = {("qwen3_5_nothink", "reasoning"), ("deepseek_r1_distill", "plain"), ("deepseekv3", "plain")}
"""Where the template opens an answered turn otherwise than an open one, and not by white space alone."""
REFUSED = {
    "cohere": {*CONVERSATIONS} - {"plain"},
    "cohere2": {*CONVERSATIONS} - {"plain"},
    "deepseek_r1_distill": {*CONVERSATIONS} - {"plain"},
    "deepseekv3": {*CONVERSATIONS} - {"plain"},
    "gemma": {*CONVERSATIONS} - {"plain"},
    "gemma3": {*CONVERSATIONS} - {"plain"},
    "gptoss": {"parallel"},
    "idefics3": {*CONVERSATIONS},
    "lfm2": {*CONVERSATIONS} - {"plain"},
    "llama3": {*CONVERSATIONS} - {"plain"},
    "llama3_1": {"parallel"},
    "llama3_2": {"parallel"},
    "llava_next": {*CONVERSATIONS},
    "phi3": {*CONVERSATIONS} - {"plain"},
    "phi3_5": {*CONVERSATIONS} - {"plain"},
    "qwen2_5_vl": {*CONVERSATIONS} - {"plain"},
    "smolvlm": {*CONVERSATIONS},
}
"""Conversations that a template raises on, or whose calls or texts it leaves out."""


@pytest.fixture(scope="module")
def tokenizers():
    from transformers import AutoTokenizer

    return lambda name: AutoTokenizer.from_pretrained(EXAMPLE) if name == "example" else tokenizer_for(TEMPLATES[name])


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The conversations as rows read back from Parquet, by name."""
    rows = [SFTRow(t.messages, tuple(m.role == "assistant" for m in t.messages), t.tools) for t in CONVERSATIONS.values()]
    folder = tmp_path_factory.mktemp("rows") / "rows"
    write_dataset(rows, folder, split={"train": 1.0}, formats=("parquet",))
    _, records = read_dataset(folder)
    by_name = {row.name: kind for row, kind in zip(rows, CONVERSATIONS, strict=True)}
    return {by_name[record["name"]]: record for record in records}


def check(tokenizer, messages, tools, trained, *, reopened=False):
    """What holds for any conversation a template can write; the texts that are trained on, by message."""
    made = segments(tokenizer, messages, tools, trained)
    assert [i for segment in made for i in segment.messages] == [i for i, flag in enumerate(trained) if flag]
    said = {}
    for segment, sequence in zip(made, tokenised(tokenizer, messages, tools, trained), strict=True):
        assert tokenizer.decode(sequence["input_ids"]) == segment.text
        assert spoken(tokenizer, [sequence])[0] == [segment.text[start:end] for start, end in segment.spans if end > start]
        first, told = segment.spans[0][0], [label != IGNORED for label in sequence["labels"]]
        alone = tokenizer(segment.text[:first], add_special_tokens=False)["input_ids"]
        assert sequence["input_ids"][: len(alone)] == alone, "the prompt is cut as it is when sent"
        assert told[: len(alone)] == [False] * len(alone)
        for i, (start, end), as_it_was in zip(segment.messages, segment.spans, segment.as_sent, strict=True):
            (sent,) = render(tokenizer, [messages[:i]], tools, ask=True)
            (answered,) = render(tokenizer, [messages[: i + 1]], tools)
            assert as_it_was or reopened
            assert segment.text[:start] == sent if as_it_was else answered.startswith(segment.text[:start])
            said[i] = segment.text[start:end]
            ends = tuple(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
            assert said[i] in answered or any(end and said[i].removesuffix(end) in answered for end in ends if said[i].endswith(end))
    return said


def sayable(name, kind):
    return kind not in REFUSED.get(name, ())


@pytest.mark.parametrize("name", NAMES)
def test_what_is_read_back_renders_as_what_the_policy_was_sent(tokenizers, exported, name):
    tokenizer = tokenizers(name)
    for kind, trajectory in CONVERSATIONS.items():
        record, compared = exported[kind], 0
        for length in range(len(trajectory)):
            state = trajectory.prefix(length)
            original = as_sent(state.messages)
            tools = [tool.to_openai() for tool in state.tools] or None
            try:
                sent = render(tokenizer, [original], tools, ask=True)
            except Exception:  # noqa: BLE001  the template refuses the conversation
                assert not sayable(name, kind)
                continue
            assert render(tokenizer, [record["messages"][: len(original)]], record["tools"], ask=True) == sent
            compared += 1
        assert compared == len(trajectory) or not sayable(name, kind)


@pytest.mark.parametrize("name", [*["qwen2_5", "qwen3", "qwen3_5_think", "glm4moe", "gptoss", "llama3_1", "gemma4_v5", "example"]])
def test_what_is_read_back_is_what_the_local_policy_sends(tokenizers, exported, name):
    import numpy as np

    from counterplay.replay.chat_rendering import ChatRenderer

    tokenizer = tokenizers(name)
    for kind in ("tools", "reasoning", "text beside a call", "odd texts"):
        trajectory, record, renderer = CONVERSATIONS[kind], exported[kind], ChatRenderer(tokenizer)
        for length in range(len(trajectory)):
            state = trajectory.prefix(length)
            (sent,) = render(tokenizer, [record["messages"][: len(state.messages)]], record["tools"], ask=True)
            asked = np.frombuffer(renderer.prompt(state), np.int32).tolist()
            assert tokenizer(sent, add_special_tokens=False)["input_ids"] == asked, (kind, length)


def refused(tokenizer, messages, tools):
    try:
        return left_out(tokenizer, messages, tools)
    except Exception as error:  # noqa: BLE001  whatever the template raises
        return str(error)


@pytest.mark.parametrize("name", NAMES)
def test_only_what_the_policy_wrote_has_labels(tokenizers, exported, name):
    tokenizer = tokenizers(name)
    for kind, record in exported.items():
        messages, tools = record["messages"], record["tools"]
        if not sayable(name, kind):
            with pytest.raises(Exception):  # noqa: B017  whatever the template raises
                segments(tokenizer, messages, tools, record["trained"])
            assert refused(tokenizer, messages, tools), (kind, "a look at the whole finds it too")
            continue
        assert not refused(tokenizer, messages, tools)
        said = check(tokenizer, messages, tools, record["trained"], reopened=(name, kind) in REOPENED)
        for i, text in said.items():
            assert not [word for word in ("USR", "SYS", "OBS") if word in text], (kind, text)
            calls, content = messages[i].get("tool_calls", ()), messages[i].get("content") or ""
            assert text.count("ANS") in ({0, 1} if calls and content else {int("ANS" in content)}), (kind, text)
            assert all(called["function"]["name"] in text for called in calls)
            assert text.count("WHY") <= 1


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("llama3", "tools", "leaves out a call of find of message 2"),
        ("qwen2_5_vl", "tools", "leaves out a call of find of message 2"),
        ("gptoss", "parallel", "leaves out a call of find of message 2"),
        ("smolvlm", "plain", "leaves out the text of message 1"),
        ("llama3_1", "parallel", "only supports single tool-calls"),
        ("gemma", "tools", "System role not supported"),
    ],
)
def test_a_template_that_leaves_out_what_the_policy_did_is_refused(tokenizers, exported, name, kind, message):
    record = exported[kind]
    with pytest.raises(Exception, match=message):
        tokenised(tokenizers(name), record["messages"], record["tools"], record["trained"])


def find(text):
    return '{"name": "find", "arguments": ' + text + "}"


SENTENCE_END = "<\N{FULLWIDTH VERTICAL LINE}end\u2581of\u2581sentence\N{FULLWIDTH VERTICAL LINE}>"
CALLS = "<|start|>assistant to=functions.find<|channel|>commentary json<|message|>"
XML = "<tool_call>\n<function=find>\n<parameter=q>\nx\n</parameter>\n</function>\n</tool_call>"
GOLDEN = {
    ("qwen2_5", "reasoning"): [
        ["<tool_call>\n" + find('{"q": "x"}') + "\n</tool_call><|im_end|>", "ANS done<|im_end|>", "ANS bye<|im_end|>"]
    ],
    ("qwen3", "reasoning"): [
        [
            "<think>\nWHY look\n</think>\n\n<tool_call>\n" + find('{"q": "x"}') + "\n</tool_call><|im_end|>",
            "<think>\nWHY say\n</think>\n\nANS done<|im_end|>",
        ],
        ["<think>\nWHY part\n</think>\n\nANS bye<|im_end|>"],
    ],
    ("qwen3", "plain"): [["<think>\n\n</think>\n\nANS one<|im_end|>"], ["<think>\n\n</think>\n\nANS two<|im_end|>"]],
    ("qwen3_5_think", "reasoning"): [
        [f"WHY look\n</think>\n\n{XML}<|im_end|>", "WHY say\n</think>\n\nANS done<|im_end|>"],
        ["WHY part\n</think>\n\nANS bye<|im_end|>"],
    ],
    ("qwen3_instruct_2507", "plain"): [["ANS one<|im_end|>", "ANS two<|im_end|>"]],
    ("glm4moe", "reasoning"): [
        [
            "\n<think>WHY look</think>\n<tool_call>find\n<arg_key>q</arg_key>\n<arg_value>x</arg_value>\n</tool_call><|observation|>",
            "\n<think>WHY say</think>\nANS done<|user|>",
        ],
        ["\n<think>WHY part</think>\nANS bye<|user|>"],
    ],
    ("gptoss", "reasoning"): [
        [
            "<|channel|>analysis<|message|>WHY look<|end|>" + CALLS + '{"q": "x"}<|call|>',
            "<|channel|>analysis<|message|>WHY say<|end|><|start|>assistant<|channel|>final<|message|>ANS done<|return|>",
        ],
        ["<|channel|>analysis<|message|>WHY part<|end|><|start|>assistant<|channel|>final<|message|>ANS bye<|return|>"],
    ],
    ("gptoss", "plain"): [["<|channel|>final<|message|>ANS one<|return|>"], ["<|channel|>final<|message|>ANS two<|return|>"]],
    ("llama3_1", "reasoning"): [['{"name": "find", "parameters": {"q": "x"}}<|eot_id|>', "ANS done<|eot_id|>", "ANS bye<|eot_id|>"]],
    ("llama3_2", "plain"): [["ANS one<|eot_id|>", "ANS two<|eot_id|>"]],
    ("gemma3", "plain"): [["ANS one<end_of_turn>", "ANS two<end_of_turn>"]],
    ("gemma4_v5", "reasoning"): [
        [
            '<|channel>thought\nWHY look\n<channel|><|tool_call>call:find{q:<|"|>x<|"|>}<tool_call|><|tool_response>',
            "<|channel>thought\nWHY say\n<channel|>ANS done<turn|>",
        ],
        ["<|channel>thought\nWHY part\n<channel|>ANS bye<turn|>"],
    ],
    ("nemotron_3_nano", "plain"): [["</think>ANS one<|im_end|>"], ["</think>ANS two<|im_end|>"]],
    ("phi3", "plain"): [["ANS one<|end|>", "ANS two<|end|>"]],
    ("deepseek_r1_distill", "plain"): [[f"ANS one{SENTENCE_END}", f"ANS two{SENTENCE_END}"]],
    ("muse_glimmer", "plain"): [[" to=user<|message|>ANS one<|eot|>", " to=user<|message|>ANS two<|eot|>"]],
}


@pytest.mark.parametrize(("name", "kind"), GOLDEN, ids=map("-".join, GOLDEN))
def test_the_labels_of_known_templates_word_for_word(tokenizers, exported, name, kind):
    tokenizer, record = tokenizers(name), exported[kind]
    made = tokenised(tokenizer, record["messages"], record["tools"], record["trained"])
    assert spoken(tokenizer, made) == GOLDEN[name, kind]


def test_gpt_oss_is_trained_as_it_was_sent_though_it_drops_text_later(tokenizers, exported):
    """Its template takes back the text beside a call once a final answer follows: rendered whole, prompt and answer part before it."""
    record, tokenizer = exported["text beside a call"], tokenizers("gptoss")
    (only,) = segments(tokenizer, record["messages"], record["tools"], record["trained"])
    assert [only.text[start:end] for start, end in only.spans] == [
        "<|channel|>analysis<|message|>ANS let me look<|end|>" + CALLS + '{"q": "x"}<|call|>',
        ' to=functions.pay<|channel|>commentary json<|message|>{"amount": 5}<|call|>',
        "<|channel|>final<|message|>ANS done<|return|>",
    ]
    assert "ANS let me look" not in render(tokenizer, [record["messages"]], record["tools"])[0]


WORDS = st.text(st.characters(blacklist_categories=["Cs", "Cc"], blacklist_characters="<>[]|\N{FULLWIDTH VERTICAL LINE}"), max_size=10)
VALUES = st.one_of(WORDS, st.integers(-9, 9), st.lists(WORDS, max_size=2))
SAID = st.builds(lambda text: f"ANS{text}", WORDS)


@st.composite
def conversations(draw):
    """Any conversation of users, calls with results, and answers."""
    prompt = [Message.user("USR" + draw(WORDS))]
    steps = []
    for at in range(draw(st.integers(1, 4))):
        if draw(st.booleans()):
            arguments = draw(st.dictionaries(st.sampled_from("qrs"), VALUES, max_size=2))
            reasoning = draw(st.one_of(st.none(), st.builds(lambda text: f"WHY{text}", WORDS)))
            action = acting("find", f"c{at}", draw(st.sampled_from([None, ""])), reasoning, **arguments)
            followed = [Message.tool("OBS" + draw(WORDS), f"c{at}")]
            followed += [Message.user("USR" + draw(WORDS))] if draw(st.booleans()) else []
        else:
            action, followed = Message.assistant(draw(SAID)), [Message.user("USR" + draw(WORDS))]
        steps.append(Step(action, tuple(followed)))
    return Trajectory(TOOLS, tuple(prompt), (*steps, Step(Message.assistant(draw(SAID)))))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(trajectory=conversations(), data=st.data())
@pytest.mark.parametrize(
    "name", ["qwen2_5", "qwen3", "qwen3_5_think", "glm4moe", "gptoss", "llama3_1", "gemma4_v5", "lfm2_2_5_v2", "example"]
)
def test_any_conversation_keeps_what_was_sent_and_trains_on_what_was_written(tokenizers, name, trajectory, data):
    messages, tools = portable(trajectory.messages), [tool.to_openai() for tool in trajectory.tools]
    trained = [flag and data.draw(st.booleans()) for flag in sampled(messages)]
    said = check(tokenizers(name), messages, tools, trained)
    assert not [word for text in said.values() for word in ("USR", "OBS") if word in text]
    for i, text in said.items():
        assert text.count("ANS") == (0 if messages[i].get("tool_calls") else 1)


TRL_DIFFERS = {
    "deepseek_r1_distill": {"opening"},
    "deepseekv3": {"opening"},
    "diffusion_gemma": {"white space", "ending"},
    "gemma": {"white space"},
    "gemma3": {"white space"},
    "gptoss": {"opening", "ending"},
    "lfm2": {"white space"},
    "lfm2_2_5": {"white space"},
    "lfm2_2_5_v2": {"white space"},
    "lfm2_2_5_vl": {"white space"},
    "lfm2_v2": {"white space"},
    "muse_glimmer": {"opening"},
    "nemotron_3_5_lightning": {"opening", "white space"},
    "nemotron_3_nano": {"opening", "white space"},
    "nemotron_3_super": {"opening", "white space"},
    "nemotron_3_ultra": {"opening", "white space"},
    "phi3": {"ending", "white space"},
    "phi3_5": {"ending", "white space"},
    "qwen2_5": {"opening", "white space"},
    "qwen2_5_vl": {"white space"},
    "qwen3": {"white space"},
    "qwen3_5_nothink": {"opening", "white space"},
    "qwen3_5_think": {"opening", "white space"},
    "qwen3_6": {"opening", "white space"},
    "qwen3_8": {"opening", "white space"},
    "qwen3_instruct_2507": {"white space"},
    "qwen3_vl": {"white space"},
}
"""What TRL's assistant masks train on that the policy never wrote: white space after the end token; the end of the prompt; another end
token than the one sampled. None of it is in ours. Templates that are not named here give equal masks."""


def differences(ours, theirs):
    """What must be taken off TRL's stretches to get ours."""
    found = set()
    for mine, other in zip(ours, theirs, strict=True):
        if mine == other:
            continue
        core = other.rstrip()
        found |= {"white space"} if core != other else set()
        if core != mine and core.endswith(mine):
            found.add("opening")
        elif core != mine:
            body = mine.rpartition("<")[0]
            assert body in core, (mine, other)
            assert body
            found |= {"ending"} | ({"opening"} if not core.startswith(body) else set())
    return found


@pytest.mark.parametrize("name", TEMPLATES)
def test_masks_are_trl_s_own_but_for_what_the_policy_did_not_write(tokenizers, exported, name):
    from trl.chat_template_utils import get_training_chat_template

    tokenizer = tokenizers(name)
    kinds = [kind for kind in ("plain", "tools") if sayable(name, kind)]
    try:
        patched = copy.copy(tokenizer)
        patched.chat_template = get_training_chat_template(tokenizer) or tokenizer.chat_template
    except ValueError:
        assert name.startswith(("gemma4", "llama3_")), "TRL has no masks for these, and for these alone"
        return
    found = set()
    for kind in kinds:
        record = exported[kind]
        out = patched.apply_chat_template(
            record["messages"], tools=record["tools"], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        masked = zip(out["input_ids"], out["assistant_masks"], strict=True)
        labels = [token if mask else -100 for token, mask in masked]
        (theirs,) = spoken(tokenizer, [{"input_ids": out["input_ids"], "labels": labels}])
        ours = tokenised(tokenizer, record["messages"], record["tools"], record["trained"])
        found |= differences([text for texts in spoken(tokenizer, ours) for text in texts], theirs)
    assert found == TRL_DIFFERS.get(name, set())


def tau_bench(shared_data, count):
    (path,) = (shared_data / "tau-bench-airline-gpt4o").glob("*.json")
    runs = sorted(json.loads(path.read_text()), key=lambda run: len(run["traj"]))
    return [run["traj"] for run in runs[:: max(1, len(runs) // count)]][:count]


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3_5_think", "glm4moe", "gptoss", "llama3_2", "gemma4_v5", "example"])
def test_real_traces(tokenizers, shared_data, name):
    tools = [ToolSpec.function("book", "A tool", {"type": "object", "properties": {}}).to_openai()]
    for logged in tau_bench(shared_data, 4):
        messages = portable([Message.from_openai(fields) for fields in logged])
        said = check(tokenizers(name), messages, tools, sampled(messages))
        foreign = [fields["content"] for fields in messages if fields["role"] in {"tool", "system", "user"} and len(fields["content"]) > 60]
        assert said
        assert not [text for text in said.values() for other in foreign if other in text]
