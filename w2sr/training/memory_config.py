"""Where parameters, optimizer states and activations live, and who shares them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from w2sr.schema import PLACEMENT, StrictModel

Place = Literal["device", "cpu", "nvme"]


class MemoryConfig(StrictModel):
    """Where parameters, optimizer states and activations live, and who shares them. docs/memory.md says which knob when."""

    offload_optimizer: Place = Field(
        "device",
        description="Where master weights and optimizer states live and are updated: on the device, in the host's memory (cpu: 12 bytes a "
        "parameter off the GPU; zero_stage 1 to 3), or on a local disk (nvme; zero_stage 3, needs libaio).",
    )
    offload_parameters: Place = Field(
        "device", description="Where a rank's shard of the parameters waits while it is not used: device, cpu or nvme; zero_stage 3 only."
    )
    nvme_path: str | None = Field(
        None,
        description="Folder on a fast local disk of each node, for what is offloaded to nvme.",
        json_schema_extra=PLACEMENT,
    )
    pin_memory: bool = Field(
        True,
        description="Page-locked host memory for what is offloaded from a GPU: faster copies; off where memlock is limited.",
        json_schema_extra=PLACEMENT,
    )
    hpz_partition_size: int = Field(
        1,
        gt=0,
        description="ZeRO++ hpZ: ranks (one node's) that share a second copy of the 16-bit weights, so that the backward pass gathers "
        "within the node; 1 is off. Costs 2 bytes a parameter over that many ranks. DeepSpeed has removed MiCS; this is what is left.",
    )
    quantized_weights: bool = Field(False, description="ZeRO++ qwZ: gather weights in 8 bits: half the traffic, rounded weights. GPU only.")
    quantized_gradients: bool = Field(False, description="ZeRO++ qgZ: reduce gradients in 4 bits: a quarter of the traffic. GPUs only.")
    offload_activations: bool = Field(
        False,
        description="Keep the checkpointed activations (one a layer) in the host's memory until the backward pass; needs "
        "gradient_checkpointing. The same numbers, less memory, some time.",
        json_schema_extra=PLACEMENT,
    )
    compile: bool = Field(False, description="torch.compile the model (zero_stage 0 to 2): some minutes at the start, then faster steps.")
    sequence_parallel: int = Field(
        1,
        gt=0,
        description="Ulysses: so many ranks share each sequence, each a part of its tokens (of its heads inside attention), for traces "
        "too long for one device. Divides the number of ranks and the model's attention heads. 1 is off.",
        json_schema_extra=PLACEMENT,
    )

    def undivided(self, num_ranks: int) -> str | None:
        """Return why `num_ranks` ranks cannot be dealt to sub-groups, or None."""
        for name, size in (("hpz_partition_size", self.hpz_partition_size), ("sequence_parallel", self.sequence_parallel)):
            if num_ranks % size:
                below = num_ranks // size * size
                valid = ", ".join(str(ranks) for ranks in (below, below + size) if ranks)
                return f"{num_ranks} ranks do not divide into groups of memory.{name}={size}; nearest valid num_ranks: {valid}"
        return None

    @property
    def uses_nvme(self) -> bool:
        """Whether anything is offloaded to a disk."""
        return "nvme" in (self.offload_optimizer, self.offload_parameters)

    @model_validator(mode="after")
    def _nvme_has_a_path(self) -> MemoryConfig:
        if self.uses_nvme and self.nvme_path is None:
            raise ValueError("offload to nvme needs memory.nvme_path, a folder on a fast disk of each node; or offload to cpu")
        return self

    def refuse_what_does_not_combine(self, zero_stage: int, use_gpu: bool, gradient_checkpointing: bool, packing: bool) -> None:
        """Raise ValueError for options that the rest of the training's configuration does not carry."""
        for needed, name in (
            (self.offload_parameters != "device", f"memory.offload_parameters={self.offload_parameters}"),
            (self.offload_optimizer == "nvme", "memory.offload_optimizer=nvme"),
            (self.hpz_partition_size > 1, f"memory.hpz_partition_size={self.hpz_partition_size}"),
            (self.quantized_weights, "memory.quantized_weights"),
            (self.quantized_gradients, "memory.quantized_gradients"),
        ):
            if needed and zero_stage != 3:
                raise ValueError(f"{name} needs zero_stage=3 (given: {zero_stage}): only there are parameters sharded")
        if self.offload_optimizer == "cpu" and zero_stage == 0:
            raise ValueError("memory.offload_optimizer=cpu needs zero_stage 1, 2 or 3; zero_stage=0 knows no offload")
        if (self.quantized_weights or self.quantized_gradients) and not use_gpu:
            raise ValueError("memory.quantized_weights and quantized_gradients run in CUDA kernels; set use_gpu=true, or leave them out")
        if self.offload_activations and not gradient_checkpointing:
            raise ValueError(
                "memory.offload_activations keeps the inputs of recomputed layers in the host's memory: set gradient_checkpointing=true"
            )
        if self.compile and zero_stage == 3:
            raise ValueError("memory.compile does not combine with zero_stage=3, which gathers weights inside the model; use 0, 1 or 2")
        if self.sequence_parallel > 1 and not packing:
            raise ValueError("memory.sequence_parallel shares packed sequences: set packing=true")
        if self.compile and self.sequence_parallel > 1:
            raise ValueError("memory.compile does not combine with memory.sequence_parallel, which communicates inside the model; drop one")
