"""Checkpointed activations in the host's memory between forward and backward pass. Imports torch: a door module."""

from __future__ import annotations

from typing import Any

import torch


class InHostMemory(torch.autograd.graph.saved_tensors_hooks):
    """Inside, what autograd keeps of activations waits in the host's memory: the inputs of recomputed layers, one [tokens, width] a layer.

    Weights stay where they are: they have at most two dimensions, or are parameters, and under ZeRO-3 are not there to be copied.
    `num_bytes` counts what was moved.
    """

    def __init__(self, pin_memory: bool) -> None:
        self.num_bytes = 0
        self._pin = pin_memory
        super().__init__(self._pack, self._unpack)

    def _pack(self, tensor: torch.Tensor) -> Any:
        if tensor.dim() < 3 or not tensor.is_floating_point() or isinstance(tensor, torch.nn.Parameter):
            return tensor
        self.num_bytes += tensor.nbytes
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=self._pin)
        # Not non_blocking: the device may reuse the memory of `tensor` as soon as this returns.
        return tensor.device, host.copy_(tensor)

    @staticmethod
    def _unpack(packed: Any) -> torch.Tensor:
        if isinstance(packed, torch.Tensor):
            return packed
        device, host = packed
        found: torch.Tensor = host.to(device, non_blocking=True)
        return found
