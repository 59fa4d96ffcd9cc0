"""The lab models' tokenizer: one token a number, an operator or a fixed phrase; single ASCII characters for everything else.

Every ASCII text comes back unchanged from decode(encode(text)); only other characters become <unk>. A number token carries
the space before it (" 7", " -12"), so a difference (" -", " 9") and a negative number (" -9") are never confused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from w2sr.lab.task import ANSWER_MARK, QUESTION_PREFIX, REASONING_SYSTEM_PROMPT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS, UNK = "<pad>", "<bos>", "<eos>", "<unk>"
ROLE_TOKENS = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}
LARGEST_NUMBER = 99
MAX_LENGTH_TOKENS = 256

_PHRASES = (QUESTION_PREFIX, REASONING_SYSTEM_PROMPT, f"\n{ANSWER_MARK}", ANSWER_MARK, "So")
_OPERATORS = (" +", " -", " =")
_NUMBER_PATTERN = r" (?:0|-?[1-9][0-9]?)(?![0-9])"

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}<|system|>{{ message['content'] }}"
    "{% elif message['role'] == 'user' %}<|user|>{{ message['content'] }}"
    "{% elif message['role'] == 'assistant' %}<|assistant|>{{ message['content'] }}{{ eos_token }}"
    "{% else %}{{ raise_exception('unknown role: ' ~ message['role']) }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def vocabulary() -> list[str]:
    """All tokens in id order; the special tokens come first."""
    numbers = [f" {value}" for value in range(-LARGEST_NUMBER, LARGEST_NUMBER + 1)]
    characters = [*"\n\t", *(chr(code) for code in range(32, 127))]
    return [PAD, BOS, EOS, UNK, *ROLE_TOKENS.values(), *_PHRASES, *_OPERATORS, *numbers, *characters]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer that all lab models share, with its chat template."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = vocabulary()
    assert len(set(tokens)) == len(tokens), "a token is listed twice"
    core = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token=UNK))
    phrases = "|".join(phrase.replace(".", r"\.").replace(" ", "[ ]") for phrase in _PHRASES)
    pattern = f"{phrases}|{_NUMBER_PATTERN}| [+\\-=]|.|\\n"
    core.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    core.decoder = decoders.Fuse()
    special = [PAD, BOS, EOS, UNK, *ROLE_TOKENS.values()]
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        extra_special_tokens=list(ROLE_TOKENS.values()),
        model_max_length=MAX_LENGTH_TOKENS,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
