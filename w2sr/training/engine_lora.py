"""Adapters of peft inside a model, which keeps its class and the names of its other weights."""

from __future__ import annotations

from typing import Any

from w2sr.errors import UserError
from w2sr.training.lora_config import LoraConfig

ADAPTER = "default"


def add_adapters(model: Any, lora: LoraConfig) -> None:
    """Freeze `model` and give it adapters, in its precision. Raises UserError when a target is no linear layer, or peft is absent."""
    try:
        import peft
    except ImportError as error:
        raise UserError("train.lora needs peft: pip install peft") from error
    targets = lora.targets or "all-linear"
    names = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if type(module).__name__ == "Linear"}
    unknown = sorted(set(lora.targets or ()) - names)
    if unknown:
        raise UserError(
            f"train.lora.targets names {unknown[0]!r}, no linear layer of the model; it has: {', '.join(sorted(names))}"
        )
    dtype = next(model.parameters()).dtype
    settings = peft.LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets, task_type="CAUSAL_LM")
    peft.inject_adapter_in_model(settings, model, adapter_name=ADAPTER)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
