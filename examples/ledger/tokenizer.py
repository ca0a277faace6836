"""The tokenizer and chat template of the example model: Qwen's conversation format over a small byte-level BPE.

Numbers are cut into pairs of digits, so that an id is one token and an amount two, and nothing else splits a text:
constant stretches such as `{"name": "post_entry", "arguments": {"document_id": "d` become single tokens and an action about a dozen.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from random import Random
from typing import Any

from counterplay.examples.ledger.demonstrations import demonstrate
from counterplay.examples.ledger.world import TOOLS

END_OF_TEXT, TURN, END_OF_TURN = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

CHAT_TEMPLATE = r"""
{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages and messages[0].role == 'system' %}
        {{- messages[0].content + '\n\n' }}
    {%- endif %}
    {{- '# Tools\n\nCall one function at a time within <tool_call></tool_call> tags.\n<tools>' }}
    {%- for tool in tools %}
        {{- '\n' + (tool | tojson) }}
    {%- endfor %}
    {{- '\n</tools><|im_end|>\n' }}
{%- elif messages and messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- '<|im_start|>assistant\n' }}
        {%- generation %}
            {{- message.content or '' }}
            {%- for tool_call in message.tool_calls or [] %}
                {%- set call = tool_call.function or tool_call %}
                {%- if message.content or not loop.first %}{{- '\n' }}{%- endif %}
                {{- '<tool_call>\n{"name": "' + call.name + '", "arguments": ' }}
                {{- call.arguments if call.arguments is string else call.arguments | tojson }}
                {{- '}\n</tool_call>' }}
            {%- endfor %}
            {{- '<|im_end|>' }}
        {%- endgeneration %}
        {{- '\n' }}
    {%- elif message.role != 'system' or not loop.first %}
        {{- '<|im_start|>' + message.role + '\n' + (message.content or '') + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
""".strip()

TOOL_DICTS: list[dict[str, Any]] = [tool.to_openai() for tool in TOOLS]


def build_tokenizer(vocab_size: int = 1152, samples: int = 3000, seed: int = 0) -> Any:
    """Train the tokenizer on rendered demonstrations. Returns a transformers tokenizer with the chat template."""
    from transformers import PreTrainedTokenizerFast

    blank = PreTrainedTokenizerFast(tokenizer_object=_untrained(), **_SPECIAL)
    blank.chat_template = CHAT_TEMPLATE
    core = _untrained()
    core.train_from_iterator(_texts(blank, samples, seed), _trainer(vocab_size))
    core.add_tokens(_markers())
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=2048, **_SPECIAL)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


_SPECIAL: dict[str, Any] = {
    "eos_token": END_OF_TURN,
    "pad_token": END_OF_TEXT,
    "extra_special_tokens": [TURN],
    "clean_up_tokenization_spaces": False,
}


def _untrained() -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    core = Tokenizer(models.BPE())
    numbers = pre_tokenizers.Split(Regex(r"\d{1,2}"), behavior="isolated")
    core.pre_tokenizer = pre_tokenizers.Sequence([numbers, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    core.decoder = decoders.ByteLevel()
    return core


def _trainer(vocab_size: int) -> Any:
    from tokenizers import pre_tokenizers, trainers

    return trainers.BpeTrainer(
        vocab_size=vocab_size - len(_markers()),
        special_tokens=[END_OF_TEXT, TURN, END_OF_TURN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=160,
        show_progress=False,
    )


def _markers() -> list[Any]:
    """Tokens of their own so that nothing merges across them; not special, so that decoding keeps them."""
    from tokenizers import AddedToken

    return [AddedToken(text, normalized=False, special=False) for text in ("<tool_call>", "</tool_call>")]


def _texts(renderer: Any, samples: int, seed: int) -> Iterable[str]:
    """Rendered demonstrations, cut where special tokens and markers stand."""
    rng = Random(seed)
    for i in range(samples):
        messages = demonstrate(f"vocabulary-{i}", rng).messages
        text = renderer.apply_chat_template(messages, tools=TOOL_DICTS, tokenize=False)
        yield from re.split(r"<\|\w+\|>|</?tool_call>", text)
