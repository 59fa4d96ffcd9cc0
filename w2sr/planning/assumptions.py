"""What plan takes for granted where nothing was measured. docs/plan.md says where each number comes from."""

from __future__ import annotations

import os
from dataclasses import dataclass

from w2sr.planning.layout import Layout

GIB = 1 << 30
GPU_CONTEXT_GIB = 1.5  # CUDA context, NCCL's buffers, cuBLAS' workspace
CPU_CONTEXT_GIB = 0.8  # Python with torch, transformers and DeepSpeed
FP32_SHARE = 1 / 15  # of a GPU's bf16 arithmetic: its CUDA cores in place of its tensor cores
CPU_TRAINING = 70e9  # operations a second of a core: 173 tokens/s of SmolLM2-135M in fp32 on 2 cores
CPU_ANSWERING = 20e9  # the same model, 145 tokens/s in batches of 64 on 2 cores


@dataclass(frozen=True)
class Machine:
    """One device. `margin`: what fragmentation may cost, a share of all tensors. `host_bytes`: its share of the node's memory, if apart."""

    device_bytes: int
    host_bytes: int | None
    margin: float
    context_gib: float


@dataclass(frozen=True)
class Assumptions:
    """What is not known before a run. Rates are those of one device; tokens are means over rows.

    `tflops`: dense bf16 peak. `efficiency`: share of it while it computes. `within`, `across`: GB/s of a GPU to others of its node and of
    other nodes; `overlap`: share of that traffic that hides behind arithmetic. `to_host`, `to_nvme`: GB/s of a GPU to its share of the
    host's memory and of the node's disks.
    """

    gpu_gib: float = 79.0
    host_gib: float = 1000.0
    gpus_per_node: int = 8
    margin: float = 0.05
    tflops: float = 989.0
    efficiency: float = 0.55
    within: float = 300.0
    across: float = 40.0
    overlap: float = 0.7
    to_host: float = 25.0
    to_nvme: float = 3.0
    prompt_tokens: float = 200.0
    answer_share: float = 0.5

    def machine(self, layout: Layout) -> Machine:
        """Return the device of one rank: a GPU, or a share of this machine."""
        return self.gpu(layout.num_ranks) if layout.on_gpu else self.cpu(layout.num_ranks)

    def gpu(self, num_processes: int) -> Machine:
        """Return the GPU of one of so many processes, with its share of the node's memory."""
        host = self.host_gib * GIB / min(self.gpus_per_node, num_processes)
        return Machine(round(self.gpu_gib * GIB), round(host), self.margin, GPU_CONTEXT_GIB)

    def cpu(self, num_processes: int) -> Machine:
        """Return the share of one of so many processes in this machine's memory."""
        has = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return Machine(has // num_processes, None, self.margin, CPU_CONTEXT_GIB)
