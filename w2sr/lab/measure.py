"""A quick accuracy of a lab model, recorded beside it. The pipeline's own evaluation is separate and is the one to quote."""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING

from w2sr.lab import recipe as recipes
from w2sr.lab import task

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

TEMPERATURE = 0.6
TOP_P = 0.95
MAX_NEW_TOKENS = 64
_ANSWER = re.compile(rf"{task.ANSWER_MARK} (-?\d+)$")


def measure_accuracy(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    *,
    reasoning: bool,
    num_questions: int,
    min_terms: int,
    max_terms: int,
    samples: int = 2,
    seed: int = 0,
) -> float:
    """Share of samples (0 to 1) whose last line is the right answer, over random questions of the task."""
    rng = random.Random(f"measure {seed}")
    by_length: dict[int, list[str]] = {}
    for _ in range(num_questions):
        expression = task.sample_expression(rng, min_terms, max_terms)
        by_length.setdefault(len(expression.split(" ")), []).append(expression)
    num_right = 0
    for expressions in by_length.values():
        repeated = [expression for expression in expressions for _ in range(samples)]
        texts = sample_texts(model, tokenizer, repeated, reasoning=reasoning, seed=seed)
        for expression, text in zip(repeated, texts, strict=True):
            match = _ANSWER.search(text)
            num_right += match is not None and int(match[1]) == task.answer_of(expression)
    return num_right / (num_questions * samples)


def sample_texts(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    expressions: list[str],
    *,
    reasoning: bool,
    seed: int = 0,
) -> list[str]:
    """One sampled completion for each expression. All prompts must have the same number of tokens."""
    import torch

    prompts = []
    for expression in expressions:
        messages = recipes.question_messages(expression, reasoning=reasoning)
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        prompts.append(tokenizer.encode(text, add_special_tokens=False))
    generator = torch.Generator().manual_seed(seed)
    tokens = _sample_tokens(model, torch.tensor(prompts), tokenizer.eos_token_id, generator)
    completions = []
    for row in tokens.tolist():
        length = row.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in row else len(row)
        completions.append(tokenizer.decode(row[:length]))
    return completions


def _sample_tokens(model: LlamaForCausalLM, prompts: torch.Tensor, eos_token_id: int, generator: torch.Generator) -> torch.Tensor:
    """Nucleus sampling from prompts [rows, tokens] of equal length; rows that have ended go on with EOS."""
    import torch

    cache, current = None, prompts
    ended = torch.zeros(len(prompts), dtype=torch.bool)
    columns: list[torch.Tensor] = []
    with torch.no_grad():
        while len(columns) < MAX_NEW_TOKENS and not bool(ended.all()):
            output = model(input_ids=current, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = output.past_key_values
            probabilities, order = (output.logits[:, -1] / TEMPERATURE).softmax(-1).sort(-1, descending=True)
            mass_before = probabilities.cumsum(-1) - probabilities
            choice = torch.multinomial(probabilities * (mass_before < TOP_P), 1, generator=generator)
            token = order.gather(1, choice)[:, 0].masked_fill(ended, eos_token_id)
            ended |= token == eos_token_id
            columns.append(token)
            current = token[:, None]
    return torch.stack(columns, dim=1)
