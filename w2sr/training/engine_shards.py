"""The fp32 weights that this rank holds under DeepSpeed, parameter by parameter, wherever ZeRO keeps them.

No collective gathers anything here: sums, averages and copies of the weights are made shard by shard, and what is written by one number of
ranks is read by any other, because a shard knows its place in its parameter.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from w2sr.errors import UserError
from w2sr.training.writing import Writer

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Shard:
    """This rank's part of the trainable parameter `name`: `values` [elements] begin at element `start` of the flattened parameter.

    `values` is the live fp32 memory: writing into it changes the weights, after `publish`. `width` is the last dimension of the parameter.
    `counts`: sums over ranks, and files, take these elements from this rank.
    """

    name: str
    values: torch.Tensor
    start: int
    width: int
    counts: bool = True

    def holding(self, values: torch.Tensor) -> Shard:
        """Return the same place with other values."""
        return dataclasses.replace(self, values=values)


def shards_of(engine: Any, zero_stage: int) -> list[Shard]:
    """Return this rank's shards. Those that count cover each trainable parameter once; with ZeRO 0 every rank holds everything."""
    import torch.distributed as dist

    named = [(name, parameter) for name, parameter in engine.module.named_parameters() if parameter.requires_grad]
    if zero_stage == 0:
        return [Shard(name, parameter.data.view(-1), 0, _width(parameter.shape), counts=dist.get_rank() == 0) for name, parameter in named]
    if zero_stage == 3:
        return [shard for name, parameter in named if (shard := _partition(engine.optimizer, name, parameter)) is not None]
    shards = []
    for name, parameter in named:
        mapping = parameter._hp_mapping
        if mapping is not None:  # all of it may lie on other ranks
            shards.append(Shard(name, mapping.hp_fragment.data, mapping.lp_fragment_address.start, _width(parameter.shape)))
    return shards


def publish(engine: Any, zero_stage: int) -> None:
    """Let the model compute with what was written into the shards; collective."""
    optimizer = engine.optimizer
    if zero_stage in (1, 2):
        optimizer.update_lp_params()
    if zero_stage == 3:  # as at the end of its own step
        optimizer._partition_all_parameters()
        for number in range(len(optimizer.fp16_groups)):
            optimizer._reassign_or_swap_out_partitioned_parameters(number)
        if optimizer.persistent_parameters:
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
        optimizer.invalidate_secondary_tensor()


def _partition(optimizer: Any, name: str, parameter: Any) -> Shard | None:
    """Return this rank's part under ZeRO-3, less its padding; None when it is nothing but padding."""
    values, _ = optimizer._get_fp32_opt_state_partition(parameter, release_swap_buffers=True)
    start = optimizer._get_param_partition_rank(parameter) * values.numel()
    size = min(values.numel(), parameter.ds_numel - start)
    return Shard(name, values.data[:size], start, _width(parameter.ds_shape)) if size > 0 else None


def _width(shape: Any) -> int:
    return int(shape[-1]) if len(shape) else 1


def write_shards(shards: list[Shard], folder: Path, rank: int, writer: Writer) -> None:
    """Give the shards that count, as one file of this rank in `folder`, to `writer`."""
    import torch

    def own(values: torch.Tensor) -> torch.Tensor:
        """A view would be saved with all the storage that it is a part of."""
        return values if writer.copies else torch.empty_like(values, device="cpu").copy_(values)

    folder.mkdir(parents=True, exist_ok=True)
    writer.write({shard.name: (shard.start, own(shard.values)) for shard in shards if shard.counts}, folder / f"rank-{rank:05d}.pt")


def read_shards(shards: list[Shard], folder: Path) -> None:
    """Fill `shards` from what any number of ranks wrote into `folder`. Raises UserError when elements are missing there."""
    import torch

    missing = {shard.name: shard.values.numel() for shard in shards}
    for path in sorted(folder.glob("rank-*.pt")):
        stored = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        for shard in shards:
            if shard.name not in stored:
                continue
            start, values = stored[shard.name]
            first, last = max(start, shard.start), min(start + values.numel(), shard.start + shard.values.numel())
            if first < last:
                shard.values[first - shard.start : last - shard.start].copy_(values[first - start : last - start])
                missing[shard.name] -= last - first
    short = sorted(name for name, number in missing.items() if number)
    if short:
        raise UserError(f"{folder} lacks weights of {short[0]} and {len(short) - 1} more parameters; restore it, or train again")
