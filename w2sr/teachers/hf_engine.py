"""The engine that works everywhere: transformers, in this process, on a CPU or a GPU."""

from __future__ import annotations

from typing import Any

import torch

from w2sr.errors import UserError
from w2sr.prompting import render_prefix, template_hash
from w2sr.teachers.decoding import Row, decode
from w2sr.teachers.engine import Completion, GeneratorSpec, Request


class HFEngine:
    """A causal language model served by transformers. float32 on a CPU, bfloat16 on a GPU."""

    name = "hf"

    def __init__(self, spec: GeneratorSpec, device: str) -> None:
        """Load the model and the tokenizer of `spec` on `device` ("cpu" or "cuda"). Raises UserError when that is not possible."""
        self.spec = spec
        self.tokenizer, self.model = load_model(spec.model, device)
        self.template_hash = template_hash(self.tokenizer, spec.style)
        self.eos_ids = eos_ids_of(self.tokenizer, self.model)
        self.context = int(self.model.config.get_text_config().max_position_embeddings)
        pad_id = self.tokenizer.pad_token_id
        self.pad_id = int(pad_id) if pad_id is not None else 0  # masked out, so any id does

    def generate(self, requests: list[Request]) -> list[Completion]:
        """Complete `requests`, in their order (see Engine.generate).

        They are decoded in fixed batches of rows with similar prefix lengths. A UserError says so when the device's memory is too small.
        """
        rows = [self._row(request) for request in requests]
        # Sorted, so that a batch has little padding; the sort is stable, hence the batches depend on the requests alone.
        order = sorted((index for index, row in enumerate(rows) if row.error is None), key=lambda index: len(rows[index].prefix))
        for start in range(0, len(order), self.spec.batch_size):
            self._decode([rows[index] for index in order[start : start + self.spec.batch_size]])
        return [self._completion(row) for row in rows]

    def _row(self, request: Request) -> Row:
        prefix = render_prefix(self.tokenizer, self.spec.style, request.question).ids
        limit = min(self.spec.sampling.max_new_tokens, self.context - len(prefix))
        row = Row(prefix, request.seed, limit)
        if not prefix:
            row.error = "the prompt has no tokens"
        elif limit <= 0:
            row.error = f"the prompt has {len(prefix)} tokens, the model's context {self.context}: no room for an answer"
        return row

    def _decode(self, rows: list[Row]) -> None:
        try:
            decode(self.model, rows, self.spec.sampling, self.eos_ids, self.pad_id)
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"generator {self.spec.name}: the GPU's memory is too small for batch_size={self.spec.batch_size}; lower it ({error})"
            ) from error

    def _completion(self, row: Row) -> Completion:
        if row.error is not None:
            return Completion("", "error", len(row.prefix), 0, row.error)
        ids = row.ids[:-1] if row.finish_reason == "stop" else row.ids
        # Decoded behind the prefix: some tokenizers drop the space before the first word of a text.
        head, whole = (self._text(tokens) for tokens in (row.prefix, (*row.prefix, *ids)))
        return Completion(whole[len(head) :], row.finish_reason, len(row.prefix), len(row.ids))

    def _text(self, ids: tuple[int, ...]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def load_model(folder: str, device: str) -> tuple[Any, Any]:
    """Return (tokenizer, model) of a folder: safetensors only, never the model's own code, every weight present.

    Raises UserError when the folder does not hold such a model, or `device` is "cuda" and there is no GPU.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("gpus_per_replica asks for a GPU, but torch sees none on this machine; set gpus_per_replica: 0 to use the CPU")
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        model, report = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, trust_remote_code=False, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"model {folder} cannot be loaded ({' '.join(str(error).split())}); give a causal language model that transformers knows "
            "without code of its own, with its tokenizer and safetensors weights"
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise UserError(
            f"model {folder} lacks {len(missing)} weights, the first is {missing[0]}; they would be random: get a complete checkpoint"
        )
    return tokenizer, model.to(device).eval()


def eos_ids_of(tokenizer: Any, model: Any) -> frozenset[int]:
    """Return every token id that ends a text, by the tokenizer, the configuration and the generation configuration."""
    found: set[int] = set()
    for value in (tokenizer.eos_token_id, model.config.get_text_config().eos_token_id, model.generation_config.eos_token_id):
        if value is not None:
            found.update([value] if isinstance(value, int) else value)
    return frozenset(found)
