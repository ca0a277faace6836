"""A random-weights Qwen3 model folder with a tokenizer and a tool-calling chat template, made in a second."""

from random import Random

TEMPLATE = """
{%- if tools %}<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|im_end|>
{% endif -%}
{%- for message in messages %}
{%- if message.role == 'tool' %}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}<|im_start|>user{% endif %}
<tool_response>
{{ message.content }}
</tool_response>
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}<|im_end|>
{% endif %}
{%- else %}<|im_start|>{{ message.role }}
{{ message.content or '' }}
{%- for call in message.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor %}<|im_end|>
{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}""".lstrip()

FORGETFUL = TEMPLATE.replace("{{ message.content or '' }}", "{% if loop.last %}{{ message.content or '' }}{% endif %}")
"""A template that is not prefix-preserving: only the last message keeps its content."""

NUMBERED = TEMPLATE.replace("{{ message.role }}", "{{ message.role }} {{ loop.index }}")
"""Another: every message carries its number."""


def make_tokenizer(template=TEMPLATE):
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    corpus = ['{"name": "look_up", "arguments": {"order": "A1"}}', "the order is paid and was sent on the second of May"]
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    core.train_from_iterator(corpus, trainer)
    core.add_tokens([AddedToken(text, normalized=False, special=False) for text in ("<tool_call>", "</tool_call>")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = template
    return tokenizer


def make_model(vocabulary, *, kind="qwen3", seed=0, kv_heads=2):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    shape = {
        "vocab_size": vocabulary,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 2048,
    }
    if kind == "qwen3":
        model = Qwen3ForCausalLM(Qwen3Config(**shape, head_dim=16))
    elif kind == "llama":
        model = LlamaForCausalLM(LlamaConfig(**shape))
    else:
        model = Qwen2ForCausalLM(Qwen2Config(**shape))
    for weights in model.parameters():  # random, yet far from uniform: a mistake in a mask or a position shows
        if weights.ndim > 1:
            weights.data.mul_(5)
    model.generation_config.eos_token_id = 2
    return model.eval()


def make_folder(folder, *, template=TEMPLATE, **model):
    tokenizer = make_tokenizer(template)
    make_model(len(tokenizer), **model).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def random_text(seed, words=12):
    random = Random(seed)
    return " ".join("".join(random.choices("abcdefgh", k=random.randrange(1, 6))) for _ in range(words))
