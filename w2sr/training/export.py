"""The finished student as a Hugging Face folder, proven to be the model that was trained."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from w2sr.tables import sync_folder
from w2sr.training.dist import Group
from w2sr.training.engine import Engine

if TYPE_CHECKING:
    import torch

TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2}  # of the largest logit; the reloaded model runs the same kernels on the same bits


class ExportError(AssertionError):
    """The exported model is not the trained one. The checkpoint is still there; nothing was published."""


def export(engine: Engine, group: Group, start_model: str, folder: Path, input_ids: npt.NDArray[np.int64]) -> None:
    """Write `folder` (safetensors, config, generation config, tokenizer, chat template), reload it and compare logits; collective.

    `input_ids` [sequences, tokens] are run through the live model and through the reloaded one. The folder appears by a rename, after the
    comparison. Raises ExportError on every rank when they differ.
    """
    import torch

    probe = torch.from_numpy(input_ids)
    with engine.evaluating():
        live = engine.forward(probe.to(group.device), None).float().cpu()
    state = engine.gathered_state(on_this_rank=group.rank == 0)
    aside = folder.with_name(f".{folder.name}.aside")
    problem = None
    if group.rank == 0:
        shutil.rmtree(aside, ignore_errors=True)
        write_model(engine.module, state, start_model, aside)
        problem = _difference(aside, state, live, probe, group.device, engine.train.precision)
        if problem is None:
            _publish(aside, folder)
    problem = group.from_rank_zero(problem)
    if problem is not None:
        raise ExportError(f"the model exported to {aside} is not the one that was trained: {problem}")


def write_model(module: Any, state: dict[str, torch.Tensor], start_model: str, folder: Path) -> None:
    """Write weights, configuration and the tokenizer of the model the training started from."""
    from transformers import AutoTokenizer

    module.save_pretrained(folder, state_dict=state)
    AutoTokenizer.from_pretrained(start_model).save_pretrained(folder)


def _difference(
    folder: Path, state: dict[str, torch.Tensor], live: torch.Tensor, probe: torch.Tensor, device: torch.device, precision: str
) -> str | None:
    """Return what differs between the reloaded model and the trained one, or None."""
    import torch
    from transformers import AutoModelForCausalLM

    size_bytes = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    if device.type == "cuda" and torch.cuda.mem_get_info(device)[0] < 1.5 * size_bytes:
        device = torch.device("cpu")  # a model that was sharded to fit
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").to(device).eval()
    reloaded = dict(model.named_parameters())
    for name, tensor in state.items():
        if name in reloaded and not torch.equal(reloaded[name].detach().cpu(), tensor):
            return f"weight {name} differs"
    with torch.no_grad():
        logits = model(input_ids=probe.to(device), use_cache=False).logits.float().cpu()
    allowed = TOLERANCE[precision] * float(live.abs().max())
    largest = float((logits - live).abs().max()) if logits.shape == live.shape else float("nan")
    if not largest <= allowed:
        return f"logits differ by up to {largest:.3g} (allowed {allowed:.3g})"
    return None


def _publish(aside: Path, folder: Path) -> None:
    for path in aside.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(aside, folder)
    sync_folder(folder.parent)
