"""How much arithmetic a training needs, and how much a device could do: the two sides of the MFU."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

# 1e12 operations a second, dense (half of what is advertised "with sparsity"), in bf16 or fp16 with fp32 accumulation, and in fp32 (not
# TF32, which torch does not use by itself). NVIDIA's and AMD's data sheets. The first whose words the device's name contains counts.
_PEAK_TFLOPS = {
    "B200": (2250.0, 75.0),
    "GB200": (2450.0, 80.0),
    "H200 NVL": (835.5, 60.0),
    "H200": (989.4, 66.9),
    "H100 PCIe": (756.0, 51.0),
    "H100 NVL": (835.0, 60.0),
    "H100": (989.4, 66.9),
    "H800": (989.4, 66.9),
    "H20": (148.0, 44.0),
    "A100": (312.0, 19.5),
    "A800": (312.0, 19.5),
    "A40": (149.7, 37.4),
    "A10G": (70.0, 35.0),
    "A10": (125.0, 31.2),
    "L40S": (362.1, 91.6),
    "L40": (181.1, 90.5),
    "L4": (121.0, 30.3),
    "V100": (125.0, 15.7),
    "MI300X": (1307.4, 163.4),
    "MI250X": (191.5, 45.3),  # one of its two devices
}
_MATRIX, _ROUNDS = 768, 4


@dataclass(frozen=True)
class ModelFlops:
    """Operations of forward and backward pass: `per_token` for the weights, `per_pair` for each pair of a token and one it attends to.

    6 a token for each weight of a matrix (Kaplan et al. 2020, arXiv 2001.08361): 2 forward, 4 backward, of which a weight that is not
    trained saves 2. The input embedding is a table and costs nothing. Attention takes 12 * layers * width a pair (Chowdhery et al. 2022,
    arXiv 2204.02311, appendix B); unlike there, only the pairs that a causal model looks at are counted, about half of them, and those
    within a row. What activation checkpointing computes again is not counted: it is model, not hardware, utilisation.
    """

    per_token: float
    per_pair: float

    @classmethod
    def of(cls, model: Any) -> ModelFlops:
        """Return those of a transformers causal language model with dense layers; its parameters may be partitioned by ZeRO-3."""
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        table = embedding.weight if head is None or head.weight is not embedding.weight else None
        per_token = 0
        for parameter in model.parameters():
            if parameter is not table:
                per_token += (6 if parameter.requires_grad else 4) * int(getattr(parameter, "ds_numel", parameter.numel()))
        config = model.config.get_text_config()
        heads = getattr(config, "num_attention_heads", None) or 0
        width = heads * (getattr(config, "head_dim", None) or config.hidden_size // max(1, heads))
        return cls(per_token, 12.0 * config.num_hidden_layers * width)

    def of_rows(self, lengths: npt.NDArray[np.int64]) -> float:
        """Return the operations for rows of so many tokens."""
        tokens = lengths.astype(np.float64)
        return float(self.per_token * tokens.sum() + self.per_pair * (tokens * (tokens + 1) / 2).sum())


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Return the operations a second that `device` can do at best; None for an unknown GPU. On CPU it is measured, in about 0.1 s."""
    import torch

    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        found = next((peaks for words, peaks in _PEAK_TFLOPS.items() if re.search(rf"\b{words}\b", name)), None)
        return None if found is None else 1e12 * found[precision == "fp32"]
    matrix = torch.ones(_MATRIX, _MATRIX, dtype=torch.float32 if precision == "fp32" else torch.bfloat16)
    fastest = float("inf")
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        torch.mm(matrix, matrix)
        fastest = min(fastest, time.perf_counter() - began)
    return 2 * _MATRIX**3 / fastest
