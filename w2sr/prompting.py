"""How a question becomes the tokens a model sees.

Teachers, training and evaluation all come through `render_prefixes`: one prefix, by construction.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, field_validator

from w2sr.errors import UserError
from w2sr.schema import StrictModel


class PromptStyle(StrictModel):
    """How a question is put to a model."""

    format: Literal["chat", "plain"] = Field(
        "chat", description="chat: the tokenizer's chat template; plain: the user text as it is, after BOS."
    )
    system: str | None = Field(None, description="System message, for example the instruction to reason. Only with format: chat.")
    user: str = Field("{question}", description="User text; {question} is replaced by the question.")
    assistant_prefix: str = Field(
        "", description="Text put at the start of the answer, for example '<think>\\n'. Part of the prefix, never supervised."
    )

    @field_validator("user")
    @classmethod
    def _needs_question(cls, value: str) -> str:
        if "{question}" not in value:
            raise ValueError(f"{value!r} has no {{question}}; write where the question goes, for example 'Question: {{question}}'")
        return value


@dataclass(frozen=True, slots=True)
class Prefix:
    """The text and the token ids a model continues from."""

    text: str
    ids: tuple[int, ...]


def messages_of(style: PromptStyle, question: str) -> list[dict[str, str]]:
    """Return the chat messages before the assistant's turn."""
    system = [{"role": "system", "content": style.system}] if style.system is not None else []
    # str.replace and not str.format: questions and instructions contain braces (\boxed{}).
    return [*system, {"role": "user", "content": style.user.replace("{question}", question)}]


def render_prefix(tokenizer: Any, style: PromptStyle, question: str) -> Prefix:
    """Return the prefix for `question`: exactly one BOS when the tokenizer has one, the generation prompt, the assistant prefix.

    Raises UserError when the tokenizer has no chat template.
    """
    return render_prefixes(tokenizer, style, [question])[0]


def render_prefixes(tokenizer: Any, style: PromptStyle, questions: Sequence[str]) -> list[Prefix]:
    """Return the prefix for each question; many at once are tokenised several times faster than one by one."""
    texts = [_prefix_text(tokenizer, style, question) for question in questions]
    return [Prefix(text, tuple(ids)) for text, ids in zip(texts, tokens_of(tokenizer, texts), strict=True)]


def tokens_of(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Return the token ids of each text as it stands: no BOS, no EOS, nothing cut."""
    if not texts:
        return []
    # verbose=False: a warning about the model's longest input is beside the point here.
    found = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
    return list(found["input_ids"])


def _prefix_text(tokenizer: Any, style: PromptStyle, question: str) -> str:
    if style.format == "plain":
        if style.system is not None:
            raise UserError("prompt style: `system` needs format: chat; put the instruction into `user`, or set format: chat")
        text = style.user.replace("{question}", question)
        bos = tokenizer.bos_token or ""
        text = text if bos and text.startswith(bos) else bos + text
    else:
        # The template writes BOS itself; the tokenizer must not add a second one.
        text = render_chat(tokenizer, messages_of(style, question), add_generation_prompt=True)
    return text + style.assistant_prefix


def render_chat(tokenizer: Any, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
    """Return the chat template's text for `messages`."""
    if tokenizer.chat_template is None:
        raise UserError(
            f"tokenizer {tokenizer.name_or_path} has no chat template; set format: plain in its prompt style, or add a chat_template.jinja"
        )
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt))


def template_hash(tokenizer: Any, style: PromptStyle) -> str:
    """Return a short hash of everything that shapes the prefix besides the question."""
    shape = {"style": style.model_dump(), "chat_template": tokenizer.chat_template if style.format == "chat" else None}
    return hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()[:16]
