"""Which files an exported model has, from its configuration alone: nothing is read, and no weight exists."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

WHOLE = "model.safetensors"
INDEX = f"{WHOLE}.index.json"


@dataclass(frozen=True)
class ExportPlan:
    """`files`: the tensors of each file, in the order of writing; `size_bytes`: of each tensor. Tied parameters stand once."""

    precision: str
    files: dict[str, tuple[str, ...]]
    size_bytes: dict[str, int]

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(self.size_bytes.values())

    @property
    def largest_file_bytes(self) -> int:
        """Bytes of the tensors of the largest file: what the process that writes holds at most."""
        return max(sum(self.size_bytes[name] for name in names) for names in self.files.values())

    def index(self) -> dict[str, Any]:
        """Return what stands in model.safetensors.index.json."""
        return {
            "metadata": {"total_size": self.total_bytes},
            "weight_map": {name: file for file, names in self.files.items() for name in names},
        }


def export_plan(model_config: Any, precision: str, shard_size_bytes: int) -> ExportPlan:
    """Return the plan for the model of a transformers configuration, in fp32, bf16 or fp16, in files of at most `shard_size_bytes`.

    A tensor that is larger than that has a file of its own.
    """
    import torch

    from w2sr.training.engine_loading import empty_model, saved_tensors, torch_dtype

    with torch.device("meta"):
        model = empty_model(model_config, torch_dtype(precision))
    return plan_of({name: tuple(tensor.shape) for name, tensor in saved_tensors(model)}, precision, shard_size_bytes)


def plan_of(shapes: Mapping[str, tuple[int, ...]], precision: str, shard_size_bytes: int) -> ExportPlan:
    """Return the plan for tensors of these names and shapes, as `export_plan` does."""
    import torch
    from huggingface_hub import split_torch_state_dict_into_shards

    from w2sr.training.engine_loading import torch_dtype

    meta = {name: torch.empty(shape, dtype=torch_dtype(precision), device="meta") for name, shape in shapes.items()}
    split = split_torch_state_dict_into_shards(meta, max_shard_size=shard_size_bytes)
    size_bytes = {name: tensor.numel() * tensor.element_size() for name, tensor in meta.items()}
    return ExportPlan(precision, {file: tuple(names) for file, names in split.filename_to_tensors.items()}, size_bytes)


def num_parameters(folder: Path) -> int:
    """Return how many numbers the safetensors files of an exported model hold; reads their headers only."""
    from safetensors import safe_open

    total = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="numpy") as file:
            total += sum(prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 - not a mapping
    return total
