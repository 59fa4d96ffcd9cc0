"""The finished student as a Hugging Face folder, proven to be the model that was trained.

Weights are gathered one at a time and written file by file: rank 0 holds one file's tensors at most, the others one tensor. Under ZeRO-3
the files are read back into a second sharded model, so that no rank holds the whole one for the proof either.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from w2sr.tables import sync_folder, sync_tree, write_text
from w2sr.training.dist import Group
from w2sr.training.engine import Engine
from w2sr.training.engine_lora import write_adapter
from w2sr.training.engine_weights import Published
from w2sr.training.export_plan import INDEX, ExportPlan, plan_of

if TYPE_CHECKING:
    import torch

ADAPTER_FOLDER = "adapter"
TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2, "fp16": 5e-3}  # of the largest logit; the reloaded model runs the same sums on the same bits

PROBE_SEQUENCES, PROBE_TOKENS = 8, 512  # logits of whole packed sequences would be gigabytes


class ExportError(AssertionError):
    """The exported model is not the trained one. The checkpoint is still there; nothing was published."""


def export(engine: Engine, group: Group, start_model: str, folder: Path, input_ids: npt.NDArray[np.int64]) -> None:
    """Write `folder` (safetensors, config, generation config, tokenizer, chat template), reload it and compare logits; collective.

    Adapters are merged into the weights, and stand in a folder of their own beside them.

    The beginning of `input_ids` [sequences, tokens] is run through the live model and through the reloaded one. The folder appears by a
    rename, after the comparison. Raises ExportError on every rank when they differ.
    """
    import torch

    chosen = engine.train.export
    precision = chosen.precision or engine.train.precision
    probe = torch.from_numpy(group.from_rank_zero(input_ids[:PROBE_SEQUENCES, :PROBE_TOKENS])).to(group.device)
    with engine.evaluating():
        live = engine.forward(probe, None).float().cpu()
    aside = folder.with_name(f".{folder.name}.aside")
    tensors = engine.published()
    plan = plan_of({name: tensor.shape for name, tensor in tensors.items()}, precision, int(chosen.shard_size_gb * 1e9))
    if group.rank == 0:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    write_weights(engine, tensors, plan, aside, on_this_rank=group.rank == 0)
    adapters = engine.adapters(wanted=group.rank == 0)
    if group.rank == 0:
        write_rest(engine.module, start_model, precision, aside)
        if adapters:
            write_adapter(engine.module, adapters, start_model, aside / ADAPTER_FOLDER)
    group.barrier()
    problem = _difference(engine, group, aside, precision, live, probe)
    if problem is not None:
        raise ExportError(f"the model exported to {aside} is not the one that was trained: {problem}")
    if group.rank == 0:
        _publish(aside, folder)
    group.barrier()


def write_weights(engine: Engine, tensors: Mapping[str, Published], plan: ExportPlan, folder: Path, on_this_rank: bool) -> None:
    """Write the files of `plan` from the rank with `on_this_rank`; collective under ZeRO-3."""
    from safetensors.torch import save_file

    for file, names in plan.files.items():
        held: dict[str, torch.Tensor] = {}
        for name in names:
            tensor = engine.whole(tensors[name], plan.precision, on_this_rank)
            if tensor is not None:
                held[name] = tensor
        if on_this_rank:
            save_file(held, folder / file, metadata={"format": "pt"})
    if on_this_rank and len(plan.files) > 1:
        write_text(folder / INDEX, json.dumps(plan.index(), indent=2, sort_keys=True) + "\n")


def write_rest(module: Any, start_model: str, precision: str, folder: Path) -> None:
    """Write configuration and generation defaults, and the tokenizer of the model the training started from."""
    from transformers import AutoTokenizer

    from w2sr.training.engine_loading import torch_dtype

    config = copy.deepcopy(module.config)
    config.architectures, config.dtype = [type(module).__name__], torch_dtype(precision)
    config.save_pretrained(folder)
    if module.can_generate():
        module.generation_config.save_pretrained(folder)
    AutoTokenizer.from_pretrained(start_model).save_pretrained(folder)


def _difference(engine: Engine, group: Group, folder: Path, precision: str, live: torch.Tensor, probe: torch.Tensor) -> str | None:
    """Return on every rank what differs between the reloaded model and the trained one, or None."""
    problem = None
    if engine.train.zero_stage == 3 or group.rank == 0:
        with engine.reloaded(folder, precision) as (logits_of, wrong):
            if wrong:
                problem = f"weight {wrong[0]} differs"
            logits = logits_of(probe).float().cpu()
        coarsest = max(precision, engine.train.precision, key=lambda name: TOLERANCE[name])
        allowed = TOLERANCE[coarsest] * float(live.abs().max())
        largest = float((logits - live).abs().max()) if logits.shape == live.shape else float("nan")
        if problem is None and not largest <= allowed:
            problem = f"logits differ by up to {largest:.3g} (allowed {allowed:.3g})"
    return next((found for found in group.all(problem) if found is not None), None)


def _publish(aside: Path, folder: Path) -> None:
    sync_tree(aside)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(aside, folder)
    sync_folder(folder.parent)
