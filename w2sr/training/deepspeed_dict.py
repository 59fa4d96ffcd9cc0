"""DeepSpeed's configuration as a pure function of ours, and what an expert may change in it.

Every key that follows from `train` is decided there and nowhere else: `train.deepspeed` may add keys and tune buffers, but not contradict.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from w2sr.training.config import TrainConfig
from w2sr.training.optimizer import optimizer_section

BUCKET_ELEMENTS = 50_000_000  # DeepSpeed's default of 5e8 reserves 2 GB of fp32 a rank
PERSISTENT_ELEMENTS = 10_000  # ZeRO-3 keeps norms and biases whole


def deepspeed_config(train: TrainConfig, num_ranks: int, on_gpu: bool, universal: bool = False) -> dict[str, Any]:
    """Return DeepSpeed's configuration for a training by `num_ranks` ranks; `universal`: it will load a checkpoint in universal form."""
    offloaded = train.memory.offload_optimizer != "device"
    derived = {
        # The batch is ours (feed.py) and so is the boundary of an optimizer step: DeepSpeed only checks that these three multiply.
        "train_batch_size": num_ranks,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": train.max_grad_norm or 0.0,
        "steps_per_print": 1 << 30,
        "optimizer": optimizer_section(train, offloaded=offloaded and on_gpu),
        "bf16": {"enabled": train.precision == "bf16", "check_grad_overflow": True},
        **({"fp16": _fp16()} if train.precision == "fp16" else {}),
        **({"data_types": {"grad_accum_dtype": "fp32"}} if train.zero_stage else {}),
        "zero_optimization": _zero(train, on_gpu),
        "zero_allow_untested_optimizer": True,
        **({"checkpoint": {"load_universal": True}} if universal else {}),
    }
    return _merged(derived, train.deepspeed)


def _fp16() -> dict[str, Any]:
    # A step that overflows is repeated at half the scale (loop.py), so the scale has to fall at the first overflow.
    return {"enabled": True, "loss_scale": 0, "initial_scale_power": 16, "loss_scale_window": 1000, "hysteresis": 1, "min_loss_scale": 1}


def _zero(train: TrainConfig, on_gpu: bool) -> dict[str, Any]:
    memory = train.memory
    zero: dict[str, Any] = {"stage": train.zero_stage, "reduce_bucket_size": BUCKET_ELEMENTS, "allgather_bucket_size": BUCKET_ELEMENTS}
    zero["overlap_comm"] = on_gpu
    if train.zero_stage == 3:
        zero["stage3_prefetch_bucket_size"] = BUCKET_ELEMENTS
        zero["stage3_param_persistence_threshold"] = PERSISTENT_ELEMENTS
        if train.optimizer.type == "muon":
            zero["reduce_scatter"] = False  # DeepSpeed's Muon wants whole gradients there
    for key, place in (("offload_optimizer", memory.offload_optimizer), ("offload_param", memory.offload_parameters)):
        if place != "device":
            zero[key] = {"device": place, "pin_memory": memory.pin_memory and on_gpu}
            if place == "nvme":
                zero[key]["nvme_path"] = memory.nvme_path
    if memory.hpz_partition_size > 1:
        zero["zero_hpz_partition_size"] = memory.hpz_partition_size
    if memory.quantized_weights:
        zero["zero_quantized_weights"] = True
    if memory.quantized_gradients:
        zero["zero_quantized_gradients"] = True
    return zero


def _merged(derived: dict[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """Return `derived` with the leaves of `override` put into it."""
    merged = dict(derived)
    for key, value in override.items():
        known = merged.get(key)
        merged[key] = _merged(known, value) if isinstance(known, dict) and isinstance(value, Mapping) else value
    return merged
