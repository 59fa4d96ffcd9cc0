"""What the forward pass keeps for the backward pass, and the most that lives at once: seen on the meta device, for any architecture.

The model's own code runs forward and backward on tensors without bytes, and every storage is counted while it lives. Two runs, of two and
of three layers, give what a layer adds (layers are alike) and what does not depend on their number. Attention is replaced by what fused
kernels keep: queries, keys, values, output and one number a token and head (Dao et al. 2022, arXiv 2205.14135, section 3.1). For a Llama
the result is that of Korthikanti et al. 2022 (arXiv 2205.05198, section 4), counted anew for SwiGLU, RMSNorm, grouped queries and no
dropout: tests/unit/test_planning_activations.py holds the closed form beside it, and real saved tensors.
"""

from __future__ import annotations

import json
import weakref
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from w2sr.planning.meta import explained, meta_model
from w2sr.planning.shapes import ModelShape

FEW, MORE = 2, 3  # layers that are run


@dataclass(frozen=True)
class Activations:
    """Bytes. `kept`: from the forward pass until the backward pass, all layers. `working`: on top of them at the peak of the backward."""

    kept: int
    working: int


def activations(shape: ModelShape, num_tokens: int, precision: str, recompute: bool) -> Activations:
    """Return the activations of `num_tokens` tokens in all layers, without the head. Raises UserError for what cannot be traced."""
    dtype = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}[precision]
    (kept, peak), (more_kept, more_peak) = (_run(shape, layers, num_tokens, dtype, recompute) for layers in (FEW, MORE))
    further = shape.num_layers - FEW
    all_kept, all_peak = kept + further * (more_kept - kept), peak + further * (more_peak - peak)
    return Activations(all_kept, max(0, all_peak - all_kept))


@lru_cache(maxsize=256)
def _run(shape: ModelShape, num_layers: int, num_tokens: int, dtype: str, recompute: bool) -> tuple[int, int]:
    """Return (bytes alive after the forward pass, the most alive until the end of the backward pass), weights and gradients aside."""
    import torch

    values = json.loads(shape.config)
    changes: dict[str, Any] = {"num_hidden_layers": num_layers}
    if isinstance(values.get("layer_types"), list):
        changes["layer_types"] = (values["layer_types"] * MORE)[:num_layers]
    model = meta_model(shape.name, values, dtype, **changes).train()
    if recompute:
        model.activation_checkpointing_enable({"use_reentrant": False})
    body = getattr(model, model.base_model_prefix)
    for parameter in body.parameters():
        parameter.register_post_accumulate_grad_hook(_forget)
    width = model.get_input_embeddings().weight.shape[1]
    # A two-dimensional mask keeps transformers from asking the position ids, which have no values here, whether rows are packed.
    mask = torch.empty(1, num_tokens, dtype=torch.bool, device="meta")
    positions = torch.empty(1, num_tokens, dtype=torch.long, device="meta")
    counter = live_bytes([*model.parameters(), *model.buffers(), mask, positions])
    advice = "plan knows models whose layers ask no tensor for its values"
    with explained(shape.name, "its layers cannot be run without values, so the memory of its activations is not known", advice), counter:
        inputs = torch.empty(1, num_tokens, width, dtype=getattr(torch, dtype), device="meta", requires_grad=True)
        output = body(inputs_embeds=inputs, attention_mask=mask, position_ids=positions, use_cache=False).last_hidden_state
        kept = counter.live
        counter.peak = kept
        output.backward(torch.empty_like(output))
    return kept, counter.peak


def _forget(parameter: Any) -> None:
    parameter.grad = None


def live_bytes(known: list[Any]) -> Any:
    """Return a torch mode that counts the bytes of tensors made inside while they live (`live`, `peak`); those of `known` do not count.

    What a kernel allocates and frees within itself is not seen.
    """
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.live = self.peak = 0
            self._sizes: dict[int, int] = {tensor.untyped_storage()._cdata: 0 for tensor in known}

        def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
            output = function(*arguments, **(named or {}))
            for tensor in tree_leaves(output):
                if hasattr(tensor, "untyped_storage"):
                    self._count(tensor.untyped_storage())
            return output

        def _count(self, storage: Any) -> None:
            key = storage._cdata
            if key not in self._sizes:
                self._sizes[key] = storage.nbytes()
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._free, key)

        def _free(self, key: int) -> None:
            self.live -= self._sizes.pop(key, 0)

    return LiveBytes()
