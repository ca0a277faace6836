"""Decoded labels are the sampled messages with their end tokens, whatever the template; contexts are what a policy is sent."""

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from counterplay.core.nouns import Message, Step
from counterplay.finetune.masks import IGNORED, render, segments, tokenised, tokenised_pair
from counterplay.finetune.portable import portable
from tests.finetune.chat_templates import spoken, tokenizer_for, trl_templates

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


def test_only_sampled_messages_are_trained_on_and_the_context_is_what_was_sent(tokenizer, kit):
    trajectory = kit.trajectory()
    messages, tools = portable(trajectory.messages), [tool.to_openai() for tool in kit.tools]
    trained = [False, False, True, False, False, False, True]
    (sequence,) = tokenised(tokenizer, messages, tools, trained)
    assert spoken(tokenizer, [sequence])[0] == [
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
    assert spoken(tok, [sequence])[0] == ["user\n"]
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
    assert [text for texts in spoken(tok, made) for text in texts] == wanted
    assert len(made) <= 1


def test_a_template_that_rewrites_history_gives_one_sequence_per_rewriting(tokenizer):
    tok = with_template(tokenizer, FORGETFUL)
    messages = [{"role": "user", "content": "a"}]
    for name in "xyz":
        messages.append({"role": "assistant", "content": name, "reasoning_content": f"think {name}"})
        messages.append({"role": "tool" if name == "x" else "user", "content": "b"})
    made = tokenised(tok, messages, None, [m["role"] == "assistant" for m in messages])
    assert spoken(tok, made) == [
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


def test_calls_merged_into_one_row_have_the_gradient_of_a_row_each(kit):
    from bench.merging import compare

    found = compare("qwen2_5", calls=6, traces=1)
    assert (found["sequences"], found["rows_one_by_one"]) == (1, 6)
    assert found["masked_tokens"] == found["masked_tokens_one_by_one"]
    assert found["fewer"] > 3
    assert found["gradient_difference"] < 1e-6


def test_sixty_calls_are_one_row_of_a_fifteenth_of_the_tokens():
    from random import Random

    from bench.merging import TOOLS, merged, one_by_one, trace

    tokenizer = tokenizer_for(trl_templates()["qwen2_5"])
    messages, tools = portable(trace(60, Random(0)).messages), [tool.to_openai() for tool in TOOLS]
    (together,), apart = merged(tokenizer, messages, tools), list(one_by_one(tokenizer, messages, tools))
    assert len(apart) == 60
    assert sum(len(row["input_ids"]) for row in apart) >= 15 * len(together["input_ids"])
    assert spoken(tokenizer, [together])[0] == [text for row in apart for text in spoken(tokenizer, [row])[0]]


@pytest.mark.parametrize("said", ["user", " user", "\nuser", "\n\n\nuser", ""])
def test_a_prompt_is_cut_into_the_tokens_it_was_sent_as(said):
    """Alone, the white space at a prompt's end is other tokens than with an answer behind it, though a token begins at the edge."""
    tok = tokenizer_for(trl_templates()["llama3"], cut=None)
    messages = [{"role": "user", "content": "go"}, {"role": "assistant", "content": said}]
    (sequence,) = tokenised(tok, messages, None, [False, True])
    prompt = tok(render(tok, [messages[:1]], None, ask=True)[0])["input_ids"]
    assert len(prompt) < len(tok(render(tok, [messages[:1]], None, ask=True)[0] + "user")["input_ids"]) - 1, "else this shows nothing"
    assert sequence["input_ids"][: len(prompt)] == prompt
    assert [label != IGNORED for label in sequence["labels"][: len(prompt) + 1]] == [False] * len(prompt) + [True]


def test_a_pair_of_longer_sides_is_masked_message_by_message(tokenizer, kit):
    messages = portable(kit.trajectory().messages)
    row = {"prompt": messages[:2], "chosen": messages[2:], "rejected": [{"role": "assistant", "content": "No."}], "tools": None}
    pair = tokenised_pair(tokenizer, {**row, "chosen_trained": [True, False, False, False, True]})
    assert "rejected_mask" not in pair
    labels = [token if mask else IGNORED for token, mask in zip(pair["chosen_ids"], pair["chosen_mask"], strict=True)]
    assert spoken(tokenizer, [{"input_ids": pair["chosen_ids"], "labels": labels}]) == [
        ['<tool_call>\n{"name": "find", "arguments": {"order": 7}}\n</tool_call><|im_end|>', "Done.<|im_end|>"]
    ]
    whole = tokenizer.decode(pair["prompt_ids"] + pair["chosen_ids"])
    assert whole == render(tokenizer, [messages], None)[0].removesuffix("\n")


SIDES = {"chosen": "find", "rejected": "refund"}


def test_a_side_whose_first_action_is_not_trained_on_is_masked_up_to_the_one_that_is(tokenizer, kit):
    """Sides that part before the trained message: neither the untrained action nor what it was answered carries loss."""
    messages = portable(kit.trajectory().messages)
    sides = {side: [*portable([kit.call(name)]), messages[3], {"role": "assistant", "content": name}] for side, name in SIDES.items()}
    flags = {"chosen_trained": [True, False, True], "rejected_trained": [False, False, True]}
    pair = tokenised_pair(tokenizer, {"prompt": messages[:2], "tools": None, **sides, **flags})
    said = [token for token, mask in zip(pair["rejected_ids"], pair["rejected_mask"], strict=True) if mask]
    assert tokenizer.decode(said) == "refund<|im_end|>"
    said = [token for token, mask in zip(pair["chosen_ids"], pair["chosen_mask"], strict=True) if mask]
    assert tokenizer.decode(said).endswith("}\n</tool_call><|im_end|>find<|im_end|>")


def test_a_pair_whose_side_the_template_rewrites_is_refused(tokenizer):
    said = [{"role": "assistant", "content": text, "reasoning_content": "so"} for text in "xy"]
    user = {"role": "user", "content": "on"}
    row = {"prompt": [user], "chosen": [said[0], user, said[1]], "rejected": [said[1]], "tools": None}
    with pytest.raises(ValueError, match="makes 2 texts of the chosen side"):
        tokenised_pair(with_template(tokenizer, FORGETFUL), row)


def test_recorded_ids_that_do_not_align_are_refused(tokenizer):
    with pytest.raises(ValueError, match="1 entries of recorded ids for 2 messages"):
        tokenised(tokenizer, [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], None, [False, True], [None])
