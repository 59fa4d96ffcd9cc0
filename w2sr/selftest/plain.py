"""The loss of rows by transformers and torch alone: nothing of the trainer's engine, packing, kernels or loss."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from w2sr.packing.rows import Row


def mean_nll(folder: Path, rows: Sequence[Row], dtype: str) -> float:
    """Return the mean NLL of the rows' supervised tokens under the model in `folder`, in nats; one row at a time, softmax in fp64."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), use_safetensors=True).eval()
    total, number = 0.0, 0
    with torch.no_grad():
        for row in rows:
            logits = model(input_ids=torch.tensor([row.ids]), use_cache=False).logits[0, row.num_prefix - 1 : -1].double()
            targets = torch.tensor(row.ids[row.num_prefix :])
            total += float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
            number += len(targets)
    return total / number
