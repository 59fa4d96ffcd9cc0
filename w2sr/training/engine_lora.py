"""Adapters of peft inside a model, which keeps its class and the names of its other weights."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from w2sr.errors import UserError
from w2sr.training.engine_loading import gathered
from w2sr.training.lora_config import LoraConfig

if TYPE_CHECKING:
    import torch

ADAPTER = "default"


def add_adapters(model: Any, lora: LoraConfig) -> None:
    """Freeze `model` and give it adapters, in its precision. Raises UserError when a target is no linear layer, or peft is absent."""
    try:
        import peft
    except ImportError as error:
        raise UserError("train.lora needs peft: pip install 'w2sr[lora]'") from error
    targets = lora.targets or "all-linear"
    names = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if type(module).__name__ in ("Linear", "Conv1D")}
    unknown = sorted(set(lora.targets or ()) - names)
    if unknown:
        raise UserError(f"train.lora.targets names {unknown[0]!r}, no linear layer of the model; it has: {', '.join(sorted(names))}")
    dtype = next(model.parameters()).dtype
    settings = peft.LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets, task_type="CAUSAL_LM")
    peft.inject_adapter_in_model(settings, model, adapter_name=ADAPTER)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)


def adapter_weights(model: Any, wanted: bool) -> dict[str, torch.Tensor]:
    """Return the adapters by the names of peft's own files, on the CPU where they are `wanted`; collective under ZeRO-3."""
    found = {}
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            with gathered([parameter]):
                if wanted:
                    found[f"base_model.model.{name.replace(f'.{ADAPTER}.', '.')}"] = parameter.detach().to("cpu", copy=True).contiguous()
    return found


def write_adapter(model: Any, weights: dict[str, torch.Tensor], start_model: str, folder: Path) -> None:
    """Write an adapter folder that peft loads onto the model the training started from."""
    from safetensors.torch import save_file

    folder.mkdir()
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = copy.deepcopy(model.peft_config[ADAPTER])
    settings.base_model_name_or_path, settings.inference_mode = start_model, True
    settings.save_pretrained(folder)
