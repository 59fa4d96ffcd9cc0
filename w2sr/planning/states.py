"""Bytes of the model states that DeepSpeed holds: weights, gradients, fp32 master copies, the optimizer's moments.

What each stage shards is ZeRO's definition (Rajbhandari et al. 2020, arXiv 1910.02054, section 5); which copies in which precision is how
DeepSpeed 0.19 builds its optimizers for our configuration. tests/distributed/test_plan_states.py compares with the tensors of real ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

from w2sr.planning.layout import Layout
from w2sr.planning.shapes import ModelShape

MOMENTS = 2  # fp32 numbers that the optimizer keeps for each parameter; Muon keeps fewer
ALIGNMENT = 2  # elements a rank to which ZeRO 1 and 2 pad each group of parameters


@dataclass(frozen=True)
class States:
    """Bytes of one rank in the backward pass of every step but the first.

    `optimizer`: master copy and moments. `buffers`: what DeepSpeed sums gradients in. `gathered`: whole weights under ZeRO-3, at most.
    `update`: what the optimizer's step has beside it, when activations are gone. `host`, `nvme`: what offloading puts there.
    """

    weights: int
    gradients: int
    optimizer: int
    buffers: int = 0
    gathered: int = 0
    update: int = 0
    host: int = 0
    nvme: int = 0


@dataclass(frozen=True)
class Trained:
    """Elements of the parameters that are trained, each, and of those that are frozen."""

    sizes: tuple[int, ...]
    vectors: int
    frozen: tuple[int, ...] = ()

    @property
    def total(self) -> int:
        """Elements that are trained."""
        return sum(self.sizes)


def trained(shape: ModelShape, layout: Layout) -> Trained:
    """Return what is trained: everything, or the adapters (two matrices beside each linear layer that is a target)."""
    if layout.lora_rank is None:
        return Trained(shape.elements, shape.num_vectors)
    targets = set(layout.lora_targets) if layout.lora_targets is not None else {name for name, _ in shape.linear} - {shape.head}
    found = [layout.lora_rank * size for name, sizes in shape.linear if name in targets for size in sizes]
    return Trained(tuple(found), 0, shape.elements)


def model_states(shape: ModelShape, layout: Layout) -> States:
    """Return what one rank holds."""
    what, width = trained(shape, layout), layout.weight_bytes
    if layout.zero_stage == 3:
        return _stage_3(what, layout)
    if layout.zero_stage == 0:
        return States(width * (what.total + sum(what.frozen)), 4 * what.total, 4 * (MOMENTS + layout.averages) * what.total)
    return _stage_1_2(what, layout)


def padded(what: Trained, layout: Layout) -> int:
    """Return the elements of the flat groups of ZeRO 1 and 2: those with the same weight decay lie together, padded to equal shares."""
    unit = ALIGNMENT * layout.num_ranks
    groups = (what.total - what.vectors, what.vectors) if layout.split_groups else (what.total,)
    return sum(-(-size // unit) * unit for size in groups)


def _stage_1_2(what: Trained, layout: Layout) -> States:
    number, width = padded(what, layout), layout.weight_bytes
    share = number // layout.num_ranks
    weights = width * (number + sum(what.frozen))
    optimizer = 4 * (1 + MOMENTS + layout.averages) * share
    buffers = layout.bucket * width * (2 if layout.on_gpu else 1)  # two where reducing overlaps with the backward pass
    if layout.offload_optimizer != "device":
        # Gradients go to the host one parameter at a time, through two buffers of the largest.
        return States(weights, 0, 0, buffers + 2 * max(what.sizes) * 4, host=optimizer + 4 * share)
    if layout.zero_stage == 2:
        return States(weights, 4 * share, optimizer, buffers, update=4 * share)
    if layout.precision == "bf16":
        # DeepSpeed's BF16 optimizer adds gradients up whole, in fp32, beside those of the model.
        return States(weights, (4 + width) * number, optimizer)
    return States(weights, width * number, optimizer, buffers, update=8 * share)


def _stage_3(what: Trained, layout: Layout) -> States:
    ranks, width = layout.num_ranks, layout.weight_bytes
    everything = (*what.sizes, *what.frozen)
    share = sum(-(-size // ranks) for size in what.sizes)
    frozen = sum(-(-size // ranks) for size in what.frozen)
    kept = sum(size for size in everything if size <= layout.persistent)
    # At least the largest parameter is whole when it is used; DeepSpeed lets more live while it may.
    gathered = width * max(max(everything), min(layout.live, sum(everything)))
    second = width * -(-sum(everything) // layout.secondary) if layout.secondary > 1 else 0
    at = {"device": 0, "cpu": 0, "nvme": 0}
    at[layout.offload_parameters] += width * (share + frozen)
    weights = at["device"] + width * kept + second
    gradients, optimizer = 4 * share, 4 * (1 + MOMENTS + layout.averages) * share
    if layout.offload_optimizer != "device":
        at["cpu"] += gradients
        at[layout.offload_optimizer] += optimizer
        gradients = optimizer = 0
    return States(weights, gradients, optimizer, layout.bucket * width, gathered, host=at["cpu"], nvme=at["nvme"])
