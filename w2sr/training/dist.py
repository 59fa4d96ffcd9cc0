"""This process's place among the ranks, read from the environment that torchrun and Ray Train set alike."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

TIMEOUT_S = 1800


@dataclass(frozen=True)
class Group:
    """The process group; collectives must be called by every rank in the same order.

    Ranks are dealt to data-parallel places: `data_rank` of `data_size`. Those that share a place, `sequence_size` of them, share its rows:
    each has a part of the tokens of every sequence.
    """

    rank: int
    world_size: int
    device: torch.device
    sequence_size: int = 1

    @property
    def data_rank(self) -> int:
        """Which share of a step's rows this rank works on."""
        return self.rank // self.sequence_size

    @property
    def data_size(self) -> int:
        """In how many shares a step's rows are dealt."""
        return self.world_size // self.sequence_size

    def own_range(self, num_tokens: int) -> tuple[int, int]:
        """Return start and end of this rank's tokens in a sequence of `num_tokens`, which padding makes a multiple of `sequence_size`."""
        share = -(-num_tokens // self.sequence_size)
        place = self.rank % self.sequence_size
        return place * share, (place + 1) * share

    def sequence_ranks(self) -> Any:
        """Make the process groups of the ranks that share sequences, and return this rank's; collective."""
        import torch.distributed as dist

        size = self.sequence_size
        groups = [dist.new_group(list(range(first, first + size))) for first in range(0, self.world_size, size)]
        return groups[self.data_rank]

    def sum(self, values: Sequence[float]) -> list[float]:
        """Return the element-wise sum of `values` over ranks, in fp64."""
        import torch
        import torch.distributed as dist

        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return [float(value) for value in tensor.tolist()]

    def columns(self, values: Sequence[float]) -> list[tuple[float, ...]]:
        """Return for each of `values` those of all ranks, in order, in fp64."""
        import torch
        import torch.distributed as dist

        own = torch.tensor(values, dtype=torch.float64, device=self.device)
        table = torch.empty(self.world_size * len(values), dtype=torch.float64, device=self.device)
        dist.all_gather_into_tensor(table, own)
        return list(zip(*table.view(self.world_size, -1).tolist(), strict=True))

    def from_rank_zero(self, value: Any) -> Any:
        """Return rank 0's value on every rank."""
        import torch.distributed as dist

        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def all(self, value: Any) -> list[Any]:
        """Return the values of all ranks, in order."""
        import torch.distributed as dist

        box: list[Any] = [None] * self.world_size
        dist.all_gather_object(box, value)
        return box

    def barrier(self) -> None:
        """Wait for all ranks."""
        import torch.distributed as dist

        dist.barrier()


def join_group(use_gpu: bool, sequence_size: int = 1) -> Group:
    """Return this process's group; initialise it unless the launcher has (Ray Train does, torchrun does not).

    `sequence_size` divides the number of ranks. Without a launcher the process is a group of its own.
    """
    import torch
    import torch.distributed as dist

    launched = "RANK" in os.environ
    if not launched:
        os.environ.update({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"})  # DeepSpeed reads them
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if use_gpu else torch.device("cpu")
    if use_gpu:
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        backend, timeout = ("nccl" if use_gpu else "gloo"), timedelta(seconds=TIMEOUT_S)
        if launched:
            dist.init_process_group(backend, timeout=timeout)
        else:
            from torch.distributed import HashStore  # type: ignore[attr-defined]

            dist.init_process_group(backend, timeout=timeout, store=HashStore(), rank=0, world_size=1)
    return Group(dist.get_rank(), dist.get_world_size(), device, sequence_size)


def leave_group() -> None:
    """Destroy the process group, so that the process ends without waiting for the others."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
