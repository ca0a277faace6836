"""Decoded labels are the sampled messages with their end tokens, whatever the template; contexts are what a policy is sent."""

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from counterplay.core.nouns import Message, Step
from counterplay.finetune.masks import IGNORED, render, segments, tokenised, tokenised_pair
from counterplay.finetune.portable import portable

PARTS = {"role": "user", "content": [{"type": "text", "text": "Fine, "}, {"type": "text", "text": "go on."}]}
PLAIN = (
    "{% for m in messages %}{% if m.role == 'assistant' %}Assistant: {{ m.content }}\n{% else %}{{ m.role }}: {{ m.content }}\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}Assistant: {% endif %}"
)
FORGETFUL = (  # like Qwen3: reasoning is shown after the last user message only
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.index0 > ns.last %}<think>{{ m.reasoning_content }}</think>\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def with_template(tokenizer, template):
    made = copy.copy(tokenizer)
    made.chat_template = template
    return made


def spoken(tokenizer, sequence):
    """The trained stretches of a sequence, decoded."""
    stretches, open_ids = [], []
    for token, label in [*zip(sequence["input_ids"], sequence["labels"], strict=True), (None, IGNORED)]:
        if label != IGNORED:
            assert label == token
            open_ids.append(label)
        elif open_ids:
            stretches.append(tokenizer.decode(open_ids))
            open_ids = []
    return stretches


def test_only_sampled_messages_are_trained_on_and_the_context_is_what_was_sent(tokenizer, kit):
    trajectory = kit.trajectory()
    messages, tools = portable(trajectory.messages), [tool.to_openai() for tool in kit.tools]
    trained = [False, False, True, False, False, False, True]
    (sequence,) = tokenised(tokenizer, messages, tools, trained)
    assert spoken(tokenizer, sequence) == [
        '<tool_call>\n{"name": "find", "arguments": {"order": 7}}\n</tool_call><|im_end|>',
        "Done.<|im_end|>",
    ]
    text = tokenizer.decode(sequence["input_ids"])
    for index in (2, 6):
        (sent,) = render(tokenizer, [messages[:index]], tools, ask=True)
        assert text.startswith(sent)
    assert text == render(tokenizer, [messages], tools)[0].removesuffix("\n")


def test_the_tokens_are_those_that_the_local_policy_sends(tokenizer, kit):
    import numpy as np

    from counterplay.replay.chat_rendering import ChatRenderer

    trajectory = kit.trajectory()
    trajectory = trajectory.prefix(2).extend(Step(Message.assistant("Look: "), (Message.from_openai(PARTS),))).extend(trajectory.steps[-1])
    messages, tools = portable(trajectory.messages), [tool.to_openai() for tool in kit.tools]
    renderer = ChatRenderer(tokenizer)
    (sequence,) = tokenised(tokenizer, messages, tools, [m["role"] == "assistant" for m in messages])
    for index in range(len(trajectory)):
        state = trajectory.prefix(index)
        prompt = np.frombuffer(renderer.prompt(state), np.int32).tolist()
        row = {"prompt": messages[: len(state.messages)], "chosen": [{"role": "assistant", "content": "a"}], "tools": tools}
        assert tokenised_pair(tokenizer, {**row, "rejected": [{"role": "assistant", "content": "b"}]})["prompt_ids"] == prompt
        assert sequence["input_ids"][: len(prompt)] == prompt
        assert sequence["labels"][len(prompt) - 1] == IGNORED != sequence["labels"][len(prompt)]


def test_a_token_across_the_edge_of_a_message_is_not_made(tokenizer):
    tok = with_template(tokenizer, PLAIN)
    assert any(tok.convert_ids_to_tokens(i).startswith("Ġuser") for i in tok("Assistant: user")["input_ids"]), "else this shows nothing"
    (sequence,) = tokenised(tok, [{"role": "user", "content": "go"}, {"role": "assistant", "content": "user"}], None, [False, True])
    assert spoken(tok, sequence) == ["user\n"]
    prompt = tok("user: go\nAssistant: ")["input_ids"]
    assert sequence["input_ids"][: len(prompt)] == prompt


def test_messages_after_the_last_trained_one_cost_nothing(tokenizer, kit):
    messages = portable(kit.trajectory().messages)
    (segment,) = segments(tokenizer, messages, None, [False, False, True, False, False, False, False])
    assert segment.text.endswith("</tool_call><|im_end|>")


@settings(max_examples=30, deadline=None)
@given(texts=st.lists(st.text(st.characters(blacklist_categories=["Cs"]), max_size=12), min_size=1, max_size=5), data=st.data())
@pytest.mark.parametrize("template", [None, PLAIN, MARKED])
def test_labels_are_the_trained_messages_for_any_text(tokenizer, template, texts, data):
    tok = tokenizer if template is None else with_template(tokenizer, template)
    end = "\n" if template == PLAIN else "<|im_end|>"
    messages = [{"role": "user", "content": "go"}]
    for text in texts:
        messages += [{"role": "assistant", "content": text}, {"role": "user", "content": "on"}]
    trained = [m["role"] == "assistant" and data.draw(st.booleans()) for m in messages]
    made = tokenised(tok, messages, None, trained)
    wanted = [m["content"] + end for m, on in zip(messages, trained, strict=True) if on]
    assert [s for sequence in made for s in spoken(tok, sequence)] == wanted
    assert len(made) <= 1


def test_a_template_that_rewrites_history_gives_one_sequence_per_rewriting(tokenizer):
    tok = with_template(tokenizer, FORGETFUL)
    messages = [{"role": "user", "content": "a"}]
    for name in "xyz":
        messages.append({"role": "assistant", "content": name, "reasoning_content": f"think {name}"})
        messages.append({"role": "tool" if name == "x" else "user", "content": "b"})
    made = tokenised(tok, messages, None, [m["role"] == "assistant" for m in messages])
    assert [spoken(tok, sequence) for sequence in made] == [
        ["<think>think x</think>\nx<|im_end|>", "<think>think y</think>\ny<|im_end|>"],
        ["<think>think z</think>\nz<|im_end|>"],
    ]
    assert "think x" not in tok.decode(made[1]["input_ids"])
    for sequence, index in ((made[0], 3), (made[1], 5)):
        assert tok.decode(sequence["input_ids"]).startswith(render(tok, [messages[:index]], None, ask=True)[0])


def test_flags_that_do_not_align_are_refused(tokenizer):
    with pytest.raises(ValueError, match="1 training flags for 2 messages"):
        tokenised(tokenizer, [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], None, [True])


def test_a_pair_shares_its_prompt_and_ends_in_the_end_token(tokenizer, kit):
    messages = portable(kit.trajectory().messages)
    row = {"prompt": messages[:2], "chosen": [messages[2]], "rejected": [{"role": "assistant", "content": "No."}], "tools": None}
    pair = tokenised_pair(tokenizer, row)
    assert tokenizer.decode(pair["prompt_ids"]) == render(tokenizer, [messages[:2]], None, ask=True)[0]
    assert tokenizer.decode(pair["rejected_ids"]) == "No.<|im_end|>"
    assert tokenizer.decode(pair["chosen_ids"]).endswith("</tool_call><|im_end|>")
