"""The memory of the keys and values of what is in flight."""

from __future__ import annotations

import json
from functools import lru_cache

from w2sr.planning.meta import explained, meta_model
from w2sr.planning.shapes import ModelShape


@lru_cache(maxsize=256)
def cache_bytes(shape: ModelShape, num_tokens: int, dtype: str) -> int:
    """Return the bytes of keys and values of one sequence of `num_tokens`, in all layers.

    The model itself makes its cache, on the meta device: grouped queries and sliding windows count as they are. Raises UserError for a
    model whose cache is not one of keys and values a layer, or cannot be made without values.
    """
    import torch

    model = meta_model(shape.name, json.loads(shape.config), dtype).eval()
    mask = torch.empty(1, num_tokens, dtype=torch.bool, device="meta")
    ids = torch.empty(1, num_tokens, dtype=torch.long, device="meta")
    advice = "plan knows models that keep the keys and values of each layer, and whose layers ask no tensor for its values"
    with explained(shape.name, "its cache cannot be made without values, so its memory is not known", advice), torch.no_grad():
        body = getattr(model, model.base_model_prefix)
        kept = body(input_ids=ids, attention_mask=mask, position_ids=ids, use_cache=True).past_key_values
        tensors = [tensor for layer in kept.layers for tensor in (layer.keys, layer.values)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
