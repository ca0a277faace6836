"""The chat templates that ship with TRL, each with a tiny tokenizer that knows its special tokens, and conversations to render."""

import json
import os
import re
from functools import cache
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from counterplay.core.nouns import Message, Step, ToolCall, ToolSpec, Trajectory
from counterplay.finetune.masks import IGNORED

_TOKENS = re.compile(
    r"<\|[^|<>\s'\"]{1,40}\|>|<\|[a-z_]+>|<[a-z_]+\|>|<\uff5c[^\uff5c<>]{1,60}\uff5c>|<\|END_[A-Z_]+\|>|</?s>|\[gMASK\]|<sop>|\[/?INST\]"
    r"|<(?:start|end)_of_turn>|<end_of_utterance>|</?tool_(?:call|response)>|</?think>|</?atem:[a-z_]+>"
)
_MARKUP = re.compile(r"</?(?:tool_call|tool_response|think|atem:[a-z_]+)>")
_CUT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CORPUS = "user assistant system tool name arguments find book refund amount order done look up the order and pay it back " * 4


def trl_templates():
    """The templates by name, without TRL's own rewritings for training."""
    import importlib.util

    folder = Path(importlib.util.find_spec("trl").submodule_search_locations[0]) / "chat_templates"
    return {path.stem: path.read_text() for path in sorted(folder.glob("*.jinja")) if not path.stem.endswith("_training")}


@cache
def tokenizer_for(template, cut=_CUT):
    """Byte-level pieces, and every special token that the template's text names; what marks up text is no special token, as in Qwen's.

    `cut` is the pattern that text is cut by first, as in Qwen's, Llama 3's and GLM's tokenizers; None is GPT-2's.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=cut is None)
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(cut), "isolated"), pieces]) if cut else pieces
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    core.train_from_iterator([_CORPUS, "\n\n" * 64], trainer)  # a line break alone and two of them are tokens, as in real vocabularies
    found = sorted(set(_TOKENS.findall(template)))
    core.add_tokens([AddedToken(text, normalized=False, special=False) for text in found if _MARKUP.fullmatch(text)])
    special = [text for text in found if not _MARKUP.fullmatch(text)]
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<bos>", eos_token="<|endoftext|>", pad_token="<pad>", extra_special_tokens=special
    )
    made.chat_template = template
    return made


def spoken(tokenizer, sequences):
    """The trained stretches, decoded, sequence by sequence. Every label is the token under it."""
    return [list(_stretches(tokenizer, sequence)) for sequence in sequences]


def _stretches(tokenizer, sequence):
    taken = []
    for token, label in [*zip(sequence["input_ids"], sequence["labels"], strict=True), (None, IGNORED)]:
        if label != IGNORED:
            assert label == token
            taken.append(label)
        elif taken:
            yield tokenizer.decode(taken)
            taken = []


TOOLS = (
    ToolSpec.function("find", "Look an order up", {"type": "object", "properties": {"q": {"type": "string"}}}),
    ToolSpec.function("pay", "Pay back", {"type": "object", "properties": {"amount": {"type": "number"}}}),
)
NESTED = {"q": {"n": [1, None, True], "text": 'a "b" \\ é\n'}}


def call(name, call_id, **arguments):
    return ToolCall(call_id, name, json.dumps(arguments))


def acting(name, call_id, text=None, reasoning=None, **arguments):
    return Message.assistant(text, [call(name, call_id, **arguments)], reasoning)


def parts(role, *texts):
    return Message.from_openai({"role": role, "content": [{"type": "text", "text": text} for text in texts]})


ASK = (Message.system("SYS rules."), Message.user("USR please"))
CONVERSATIONS = {
    "plain": Trajectory(
        (), (Message.user("USR one"),), (Step(Message.assistant("ANS one"), (Message.user("USR two"),)), Step(Message.assistant("ANS two")))
    ),
    "tools": Trajectory(
        TOOLS,
        ASK,
        (
            Step(acting("find", "a", **NESTED), (Message.tool("OBS 1", "a"),)),
            Step(acting("pay", "b", amount=5), (Message.tool("OBS 2", "b"),)),
            Step(Message.assistant("ANS done"), (Message.user("USR thanks"),)),
            Step(Message.assistant("ANS bye")),
        ),
    ),
    "reasoning": Trajectory(
        TOOLS,
        ASK[1:],
        (
            Step(acting("find", "a", "", "WHY look", q="x"), (Message.tool("OBS 1", "a"),)),
            Step(Message.assistant("ANS done", reasoning="WHY say"), (Message.user("USR thanks"),)),
            Step(Message.assistant("ANS bye", reasoning="WHY part")),
        ),
    ),
    "text beside a call": Trajectory(
        TOOLS,
        ASK,
        (
            Step(acting("find", "a", "ANS let me look", q="x"), (Message.tool("OBS 1", "a"),)),
            Step(acting("pay", "b", "", amount=5), (Message.tool("OBS 2", "b"), Message.user("USR hurry"))),
            Step(Message.assistant("ANS done")),
        ),
    ),
    "parallel": Trajectory(
        TOOLS,
        ASK,
        (
            Step(
                Message.assistant(None, [call("find", "a", q="x"), call("pay", "b", amount=5), call("find", "c", q="y")]),
                (Message.tool("OBS 1", "a"), Message.tool("OBS 2", "b"), Message.tool("OBS 3", "c")),
            ),
            Step(Message.assistant("ANS done")),
        ),
    ),
    "odd texts": Trajectory(
        TOOLS,
        (Message.system("SYS ünïcödé 漢字"), parts("user", "USR in ", "parts \N{FAMILY}")),
        (
            Step(acting("find", "a", q="漢字 \N{GRINNING FACE}"), (Message.tool("", "a"),)),
            Step(Message.assistant("ANS e\N{COMBINING ACUTE ACCENT} \N{GRINNING FACE}  שלום"), (parts("user", "USR  "),)),
            Step(Message.assistant("ANS\n\n  two  lines\n")),
        ),
    ),
}
"""What people wrote begins with USR or SYS, what tools gave with OBS, what models said with ANS and what they reasoned with WHY."""


def as_sent(messages):
    """Messages as a chat template is given them: arguments as objects, text parts joined."""
    sent = []
    for message in messages:
        fields = message.to_openai()
        for each in fields.get("tool_calls", ()):
            each["function"]["arguments"] = json.loads(each["function"]["arguments"])
        if isinstance(fields.get("content"), list):
            fields["content"] = message.content_text
        sent.append(fields)
    return sent


def sampled(messages):
    return [fields["role"] == "assistant" for fields in messages]
