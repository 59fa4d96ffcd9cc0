"""Which keys of DeepSpeed's configuration follow from ours, and what `train.deepspeed` may set besides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from w2sr.schema import nearest

# What of ours decides a key. A key stands for all below it.
DECIDED_BY = {
    "train_batch_size": "train.global_batch_size",
    "train_micro_batch_size_per_gpu": "train.micro_batch_size",
    "gradient_accumulation_steps": "train.global_batch_size",
    "gradient_clipping": "train.max_grad_norm",
    "steps_per_print": "train.watch",
    "optimizer": "train.optimizer and train.learning_rate",
    "scheduler": "train.schedule",
    "bf16": "train.precision",
    "fp16.enabled": "train.precision",
    "fp16.loss_scale": "train.precision",
    "fp16.hysteresis": "train.precision",
    "torch_autocast": "train.precision",
    "data_types": "train.precision",
    "zero_allow_untested_optimizer": "train.optimizer",
    "zero_optimization.stage": "train.zero_stage",
    "zero_optimization.offload_optimizer.device": "train.memory.offload_optimizer",
    "zero_optimization.offload_optimizer.nvme_path": "train.memory.nvme_path",
    "zero_optimization.offload_optimizer.pin_memory": "train.memory.pin_memory",
    "zero_optimization.offload_param.device": "train.memory.offload_parameters",
    "zero_optimization.offload_param.nvme_path": "train.memory.nvme_path",
    "zero_optimization.offload_param.pin_memory": "train.memory.pin_memory",
    "zero_optimization.zero_hpz_partition_size": "train.memory.hpz_partition_size",
    "zero_optimization.cpu_offload": "train.memory.offload_optimizer",
    "zero_optimization.cpu_offload_param": "train.memory.offload_parameters",
    "zero_optimization.cpu_offload_use_pin_memory": "train.memory.pin_memory",
    "zero_optimization.reduce_scatter": "train.optimizer",
    "zero_optimization.mics_shard_size": "train.memory.hpz_partition_size (DeepSpeed has removed MiCS)",
    "zero_optimization.zero_quantized_weights": "train.memory.quantized_weights",
    "zero_optimization.zero_quantized_gradients": "train.memory.quantized_gradients",
    "checkpoint.load_universal": "the number of ranks, compared with the checkpoint's",
    "sequence_parallel_size": "train.memory.sequence_parallel",
    "activation_checkpointing": "train.gradient_checkpointing and train.memory.offload_activations",
}
# Values of ours that no key of `train` decides; an expert may set others.
TUNABLE = frozenset(
    {
        "fp16.initial_scale_power",
        "fp16.loss_scale_window",
        "fp16.min_loss_scale",
        "zero_optimization.reduce_bucket_size",
        "zero_optimization.allgather_bucket_size",
        "zero_optimization.overlap_comm",
        "zero_optimization.stage3_prefetch_bucket_size",
        "zero_optimization.stage3_param_persistence_threshold",
    }
)
# DeepSpeed ignores a key that it does not know. These are the others that it reads and that make sense in a training of ours.
OTHERS = (
    "aio",
    "checkpoint",
    "comms_logger",
    "communication_data_type",
    "dump_state",
    "flops_profiler",
    "gradient_predivide_factor",
    "memory_breakdown",
    "prescale_gradients",
    "seq_parallel_communication_data_type",
    "wall_clock_breakdown",
    "zero_force_ds_cpu_optimizer",
)
# What there is in the sections that have most keys, besides what DECIDED_BY and TUNABLE name. An unknown key of theirs would be ignored, or
# refused only when the ranks start.
SECTIONS = {
    "aio": ("block_size", "intra_op_parallelism", "overlap_events", "queue_depth", "single_submit", "use_gds"),
    "fp16": ("consecutive_hysteresis",),
    "zero_optimization": (
        "allgather_partitions",
        "allgather_sequential",
        "contiguous_gradients",
        "enable_sanity_checks",
        "ignore_unused_parameters",
        "leaf_module",
        "legacy_stage1",
        "log_trace_cache_warnings",
        "memory_efficient_linear",
        "offload_optimizer",
        "offload_param",
        "override_module_apply",
        "round_robin_gradients",
        "save_muon_momentum_buffer_in_memory",
        "stage3_max_live_parameters",
        "stage3_max_reuse_distance",
        "stage3_model_persistence_threshold",
        "stage3_module_granularity_threshold",
        "stage3_use_all_reduce_for_fetch_params",
        "sub_group_size",
        "use_multi_rank_bucket_allreduce",
        "zero_quantized_nontrainable_weights",
    ),
    "zero_optimization.offload_optimizer": ("buffer_count", "cpuadam_cores_perc", "fast_init", "pipeline_read", "pipeline_write", "ratio"),
    "zero_optimization.offload_param": ("buffer_count", "buffer_size", "max_in_cpu"),
}


def refuse_derived(override: Mapping[str, Any]) -> None:
    """Raise ValueError when `override` (train.deepspeed) sets a key that another key decides, or one that DeepSpeed would ignore."""
    for path, _ in leaves(override):
        deciding = decided_by(path)
        if deciding is not None:
            raise ValueError(f"deepspeed.{path} is decided by {deciding}; set that, and leave deepspeed.{path} out")
        _refuse_unknown(path)


def _refuse_unknown(path: str) -> None:
    parts = path.split(".")
    for depth, key in enumerate(parts):
        section = ".".join(parts[:depth])
        if section and section not in SECTIONS:
            return
        allowed = {name.removeprefix(f"{section}.") for name in TUNABLE if name.startswith(f"{section}.")}
        allowed |= set(SECTIONS[section] if section else (*OTHERS, *(name for name in SECTIONS if "." not in name)))
        if key not in allowed:
            where, known = f"deepspeed.{'.'.join(parts[: depth + 1])}", sorted(allowed)
            raise ValueError(f"{where} is no key that a training can use; {nearest(key, known)}allowed: {', '.join(known)}")


def decided_by(path: str) -> str | None:
    """Return what of ours decides the key at the dotted `path`, or None."""
    parts = path.split(".")
    prefixes = (".".join(parts[:end]) for end in range(1, len(parts) + 1))
    exact = next((DECIDED_BY[prefix] for prefix in prefixes if prefix in DECIDED_BY), None)
    # A scalar (or an empty dict) in place of a whole section would take everything below it away.
    below = next((deciding for name, deciding in DECIDED_BY.items() if name.startswith(f"{path}.")), None)
    return exact or below


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted path and value of every leaf; an empty dict is a leaf."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
