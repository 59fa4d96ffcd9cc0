"""Builds the lab models from scratch on the CPU: `build_all` trains, measures and records each of them.

Reproducible bit for bit: training on one thread with the same torch build on the same kind of processor; the recorded digests
are of that. Another processor, torch version or thread count rounds differently and gives another digest and a statistically
equal model: compare the recorded accuracies, which should agree within about five points (800 samples), instead.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from w2sr.artifacts import model_digest
from w2sr.errors import UserError
from w2sr.lab import recipe as recipes
from w2sr.lab.measure import measure_accuracy
from w2sr.lab.models import RECORD_FILE, read_records
from w2sr.lab.tokenizer import build_tokenizer
from w2sr.tables import write_text

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

IGNORED_LABEL = -100
NUM_MICRO_BATCHES = 2
"""Rows are sorted by length and split so that short direct answers are not padded to the length of the chains."""


def new_model(recipe: recipes.ModelRecipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.num_layers,
        num_attention_heads=recipe.num_heads,
        num_key_value_heads=recipe.num_heads,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config)


def encode_row(row: recipes.Row, tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    """Token ids and labels of a row; only the text to learn and its EOS are supervised."""
    messages, text = row
    if messages:
        prefix = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    else:
        prefix = tokenizer.bos_token
    prefix_ids = tokenizer.encode(prefix, add_special_tokens=False)
    text_ids = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
    return prefix_ids + text_ids, [IGNORED_LABEL] * len(prefix_ids) + text_ids


def micro_batches(rows: list[tuple[list[int], list[int]]], pad_token_id: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(input_ids, labels) pairs [rows, tokens], padded on the right, from rows sorted by length."""
    import torch

    ordered = sorted(rows, key=lambda row: len(row[0]))
    size = math.ceil(len(ordered) / NUM_MICRO_BATCHES)
    batches = []
    for start in range(0, len(ordered), size):
        chunk = ordered[start : start + size]
        width = len(chunk[-1][0])
        ids = [row + [pad_token_id] * (width - len(row)) for row, _ in chunk]
        labels = [row + [IGNORED_LABEL] * (width - len(row)) for _, row in chunk]
        batches.append((torch.tensor(ids), torch.tensor(labels)))
    return batches


def train(
    recipe: recipes.ModelRecipe,
    tokenizer: PreTrainedTokenizerFast,
    reserved: frozenset[str] = frozenset(),
    report: Callable[[str], None] = print,
) -> LlamaForCausalLM:
    """Pre-train one model. Single-threaded use with the same library versions gives the same bits."""
    import torch

    model = new_model(recipe, tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=recipe.weight_decay)
    rng = random.Random(recipe.seed)
    started, num_tokens = time.monotonic(), 0
    for step in range(recipe.num_steps):
        phase, factor = recipe.phase_at(step)
        rows = [encode_row(recipes.sample_row(recipe, phase.mixture, rng, reserved), tokenizer) for _ in range(recipe.batch_rows)]
        num_supervised = sum(label != IGNORED_LABEL for _, labels in rows for label in labels)
        loss_sum = 0.0
        for input_ids, labels in micro_batches(rows, tokenizer.pad_token_id):
            logits = model(input_ids=input_ids, use_cache=False).logits[:, :-1]
            loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED_LABEL, reduction="sum"
            )
            torch.autograd.backward(loss / num_supervised)
            loss_sum += loss.item()
            num_tokens += input_ids.numel()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * factor
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % 100 == 0 or step + 1 == recipe.num_steps:
            elapsed_s = time.monotonic() - started
            report(
                f"{recipe.name}: step {step + 1}/{recipe.num_steps}, loss {loss_sum / num_supervised:.3f}, "
                f"{elapsed_s:.0f} s, {num_tokens / elapsed_s:.0f} tokens/s"
            )
    return model.eval()


def build(
    name: str, out_dir: Path, *, num_steps: int | None = None, num_questions: int = 400, report: Callable[[str], None] = print
) -> None:
    """Make one lab model in out_dir/name and record it. `num_steps` shortens the recipe (for tests)."""
    import torch

    recipe = recipes.RECIPES[name]
    if num_steps is not None:
        recipe = replace(recipe, phases=(replace(recipe.phases[0], num_steps=num_steps),))
    tokenizer = build_tokenizer()
    reserved = recipes.reserved_expressions(recipe.min_terms, recipe.max_terms)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums are reordered with the number of threads, and the bits with them
    try:
        model = train(recipe, tokenizer, reserved, report)
    finally:
        torch.set_num_threads(num_threads)
    model.save_pretrained(out_dir / name)
    tokenizer.save_pretrained(out_dir / name)
    record(recipe, out_dir, num_questions, report)


def record(recipe: recipes.ModelRecipe, models_dir: Path, num_questions: int = 400, report: Callable[[str], None] = print) -> None:
    """Measure the model in models_dir/<recipe.name> and write its digest, recipe and accuracy into models_dir/lab.json.

    Raises UserError when there is no such model, or lab.json exists and cannot be read.
    """
    folder, path = models_dir / recipe.name, models_dir / RECORD_FILE
    accuracy = measure_accuracy(folder, recipe, num_questions)
    digest = model_digest(folder)
    records = read_records(models_dir) if path.exists() else {}
    shares = {prompt: round(share, 4) for prompt, share in accuracy.items()}
    records[recipe.name] = {"digest": digest, "recipe": asdict(recipe), "accuracy": shares}
    write_text(path, json.dumps(records, indent=2, sort_keys=True) + "\n")
    report(f"{recipe.name}: direct {accuracy['direct']:.1%}, reasoning {accuracy['reasoning']:.1%}, digest {digest}")


def build_all(out_dir: Path, only: list[str] | None = None, report: Callable[[str], None] = print) -> None:
    """Make and record the lab models in `out_dir`, or only the named ones. Raises UserError for a name that has no recipe."""
    names = list(recipes.RECIPES) if only is None else only
    unknown = [name for name in names if name not in recipes.RECIPES]
    if unknown:
        raise UserError(f"no recipe for lab model {unknown[0]!r}; valid names: {', '.join(recipes.RECIPES)}")
    for name in names:
        build(name, out_dir, report=report)
        shipped = read_records().get(name, {"digest": None})  # a recipe that is not shipped yet
        same = read_records(out_dir)[name]["digest"] == shipped["digest"]
        report(f"{name}: {'bit for bit the shipped model' if same else 'other bits than the shipped model: compare the accuracies'}")
