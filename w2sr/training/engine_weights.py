"""The weights of the model under DeepSpeed as they are published: by the names of a plain model, whole, one at a time.

What a published tensor is made of depends on the training: a parameter, its fp32 master copy, or a frozen weight and its adapter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from w2sr.training.engine_loading import gathered, saved_tensors, torch_dtype

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Published:
    """One tensor of the finished model: `sources` are gathered, then `value` gives it. `plain`: it is nothing but its one source."""

    shape: tuple[int, ...]
    sources: tuple[torch.Tensor, ...]
    value: Callable[[], torch.Tensor]
    plain: bool


def published(model: Any) -> dict[str, Published]:
    """Return what the finished model consists of, by name; tied parameters once. Adapters are merged into what they adapt."""
    found = {}
    for name, tensor in saved_tensors(model):
        if ".lora_" in name:
            continue
        shape = tuple(getattr(tensor, "ds_shape", tensor.shape))
        if name.endswith(".base_layer.weight"):
            layer = model.get_submodule(name.removesuffix(".base_layer.weight"))
            found[name.replace(".base_layer.", ".")] = Published(shape, tuple(layer.parameters()), _merging(layer, tensor), plain=False)
        else:
            found[name.replace(".base_layer.", ".")] = Published(shape, (tensor,), tensor.detach, plain=True)
    return found


def _merging(layer: Any, weight: torch.Tensor) -> Callable[[], torch.Tensor]:
    """In fp32, whatever the weights are: the sum is rounded once."""

    def merged() -> torch.Tensor:
        value: torch.Tensor = weight.detach().float()
        for adapter in layer.active_adapters:
            up, down = layer.lora_B[adapter].weight.detach().float(), layer.lora_A[adapter].weight.detach().float()
            change = layer.scaling[adapter] * (up @ down)
            value = value + (change.T if layer.fan_in_fan_out else change)  # GPT-2's linear layers keep [in, out]
        return value

    return merged


def whole(tensor: Published, precision: str, master: bool, wanted: bool) -> torch.Tensor | None:
    """Return a published tensor on the CPU where it is `wanted`; every rank calls it. `master`: from the optimizer's fp32 copy."""
    dtype = torch_dtype(precision)
    if master and tensor.plain and tensor.sources[0].requires_grad:
        from deepspeed.utils import safe_get_full_fp32_param

        value = safe_get_full_fp32_param(tensor.sources[0])
        return value.detach().to("cpu", dtype, copy=True).view(tensor.shape) if wanted else None
    with gathered(tensor.sources):
        return tensor.value().to("cpu", dtype, copy=True).contiguous() if wanted else None


def shards_that_differ(model: Any, other: Any, precision: str) -> list[str]:
    """Return the names of this rank's shards (without ZeRO-3: parameters) in which `other`, read from files of `precision`, differs.

    Both models have the same parameters in the same precision, sharded alike; a merged tensor is in neither.
    """
    import torch

    others = dict(saved_tensors(other))
    wrong = []
    for name, tensor in published(model).items():
        if not tensor.plain or name not in others:
            continue
        live, read = (getattr(one, "ds_tensor", one).detach() for one in (tensor.sources[0], others[name]))
        if precision != "fp32":  # an fp32 file holds the 16-bit weight's master copy, which rounds to it
            live = live.to(torch_dtype(precision)).to(live.dtype)
        if live.shape == read.shape and not torch.equal(live.to(read.device), read):
            wrong.append(name)
    return wrong
