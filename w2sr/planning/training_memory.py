"""The memory of one training rank: states, activations, the head, and what is kept free."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from w2sr.planning.activations import activations, live_bytes
from w2sr.planning.assumptions import GIB, Machine
from w2sr.planning.layout import Layout
from w2sr.planning.shapes import ModelShape
from w2sr.planning.states import model_states

FEW_CHUNKS = 3  # of logits that are run


@dataclass(frozen=True)
class Memory:
    """What one device needs, in bytes by part; `has` is what it has. `host`, `nvme`: of the node's memory and disk, for this device."""

    parts: dict[str, int]
    has: int
    host: int = 0
    nvme: int = 0
    host_has: int | None = None

    @property
    def needs(self) -> int:
        """All parts."""
        return sum(self.parts.values())

    @property
    def allocated(self) -> int:
        """What tensors take at the peak: without context and margin. The number to compare with torch.cuda.max_memory_allocated."""
        return sum(size for name, size in self.parts.items() if name not in ("context", "margin"))

    @property
    def fits(self) -> bool:
        """Whether device and host have enough."""
        return self.needs <= self.has and (self.host_has is None or self.host <= self.host_has)


def training_memory(shape: ModelShape, layout: Layout, machine: Machine) -> Memory:
    """Return what one rank needs at the peak of a step."""
    states = model_states(shape, layout)
    tokens = layout.micro_tokens
    layers = activations(shape, tokens, layout.precision, layout.recompute)
    head = head_memory(shape, tokens, layout)
    table = shape.vocab_size * shape.hidden_size * layout.weight_bytes
    # The gradient of the head waits for its bucket (tied: for the embeddings') while the layers go backward; at the end embeddings' comes.
    backward = layers.working + (table if layout.zero_stage >= 2 and layout.lora_rank is None else 0)
    kept = 0 if layout.offload_activations else layers.kept
    parts = {
        "weights": states.weights,
        "gradients": states.gradients,
        "optimizer": states.optimizer,
        "buckets": states.buffers,
        "gathered": states.gathered,
        "base": _base(shape, layout),
        "activations": kept,
        "mask": layout.micro_rows * layout.length**2 * (1 + layout.weight_bytes) if layout.masked else 0,
        "loss": head if head >= backward else 0,
        "backward": backward if backward > head else 0,
    }
    # The optimizer's step comes when activations are gone; only what it needs beyond them counts.
    parts["update"] = max(0, states.update - kept - max(head, backward))
    parts = {name: size for name, size in parts.items() if size}
    parts["margin"] = round(machine.margin * sum(parts.values()))
    parts["context"] = round(machine.context_gib * GIB)
    host = states.host + (layers.kept if layout.offload_activations else 0)
    return Memory(parts, machine.device_bytes, host, states.nvme, machine.host_bytes)


def _base(shape: ModelShape, layout: Layout) -> int:
    if not layout.keeps_base:
        return 0
    return layout.weight_bytes * shape.num_parameters // (layout.num_ranks if layout.zero_stage == 3 else 1)


def head_memory(shape: ModelShape, num_tokens: int, layout: Layout) -> int:
    """Return the most bytes alive from the last hidden states to their gradient, all tokens supervised: training/fused.py, run on meta."""
    from w2sr.training.fused import CHUNK_ELEMENTS

    few = FEW_CHUNKS * max(1, CHUNK_ELEMENTS // shape.vocab_size)
    if num_tokens <= 2 * few or layout.whole_logits:
        return _head(shape, num_tokens, layout.dtype, layout.whole_logits)
    # Chunk after chunk is alike: what a token adds is seen between few and twice as many.
    one, two = (_head(shape, tokens, layout.dtype, whole=False) for tokens in (few, 2 * few))
    return two + (num_tokens - 2 * few) * (two - one) // few


@lru_cache(maxsize=256)
def _head(shape: ModelShape, num_tokens: int, dtype: str, whole: bool) -> int:
    import torch

    from w2sr.training.fused import Projection, Supervised, TokenLoss, fused_loss

    width, kind = shape.hidden_size, getattr(torch, dtype)
    with torch.device("meta"):
        weight = torch.empty(shape.vocab_size, width, dtype=kind, requires_grad=True)
        hidden = torch.empty(num_tokens, width, dtype=kind, requires_grad=True)
        places = torch.empty(num_tokens, dtype=torch.long)
        ones = torch.empty(num_tokens)
    counter = live_bytes([weight, hidden])
    with counter:
        asked = Supervised(places, places.clone(), ones, TokenLoss())
        if whole:
            logits = torch.nn.functional.linear(hidden, weight)
            total = fused_loss(logits.index_select(0, places), Projection(None), asked)
        else:
            total = fused_loss(hidden.index_select(0, places), Projection(weight), asked)
        torch.autograd.backward(total)
    return int(counter.peak)
