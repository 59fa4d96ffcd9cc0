"""The memory and the speed of a model that answers: teachers, and everyone under evaluation."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache

from w2sr.planning.activations import live_bytes
from w2sr.planning.assumptions import CPU_ANSWERING, GIB, Assumptions, Machine
from w2sr.planning.cache import cache_bytes
from w2sr.planning.meta import explained, meta_model
from w2sr.planning.shapes import ModelShape
from w2sr.planning.training_memory import Memory
from w2sr.teachers.config import HFEngineConfig, PoolConfig, VLLMEngineConfig

GROWTH = 64  # tokens by which the cache of engine hf grows (teachers/decoding.py)
VLLM_OVERHEAD_GIB = 3.0  # CUDA graphs, and activations of the largest prefill
# Tokens a second of vLLM on one H100 with short contexts: 11,710 at 1.7B and 4,414 at 14B parameters, in between within 10 % by a power.
VLLM_AT_1B, VLLM_POWER = 14_900.0, -0.46
HF_SHARE = 0.15  # of that: no continuous batching, and a Python step for each token


Engine = HFEngineConfig | VLLMEngineConfig


@dataclass(frozen=True)
class Replica:
    """One engine: what a device of it needs, what would make it fit (None: nothing, or it does), and what else is to be said."""

    memory: Memory
    remedy: str | None
    note: str


def on_gpu(engine: Engine, pool: PoolConfig) -> bool:
    """Return whether the replicas of a pool have GPUs."""
    return pool.gpus_per_replica > 0 or (engine.kind == "vllm" and engine.tensor_parallel_size > 1)


def replica(shape: ModelShape, engine: Engine, pool: PoolConfig, lengths: tuple[int, int], assumed: Assumptions) -> Replica:
    """Return what one replica needs; `lengths`: (tokens of a prompt, most new tokens)."""
    gpu = on_gpu(engine, pool)
    machine = assumed.gpu() if gpu else assumed.cpu(pool.replicas)
    if isinstance(engine, HFEngineConfig):
        memory = hf_memory(shape, engine, lengths, machine, gpu)
        sizes = [engine.batch_size >> halvings for halvings in range(1, engine.batch_size.bit_length())]
        smaller = (engine.model_copy(update={"batch_size": size}) for size in sizes)
        fitting = next((each for each in smaller if hf_memory(shape, each, lengths, machine, gpu).fits), None)
        remedy = None if memory.fits or fitting is None else f"engine.batch_size={fitting.batch_size}"
        return Replica(memory, remedy, f"batches of {engine.batch_size:,}")
    memory, at_once = vllm_memory(shape, engine, lengths, machine)
    wider = (engine.model_copy(update={"tensor_parallel_size": engine.tensor_parallel_size << power}) for power in (1, 2, 3))
    split = next((each for each in wider if vllm_memory(shape, each, lengths, machine)[0].fits), None)
    remedy = None if memory.fits or split is None else f"engine.tensor_parallel_size={split.tensor_parallel_size}"
    return Replica(memory, remedy, f"room for {at_once:,} sequences of {engine.max_model_len or sum(lengths):,} tokens at a time")


def hf_memory(shape: ModelShape, engine: HFEngineConfig, lengths: tuple[int, int], machine: Machine, gpu: bool) -> Memory:
    """Return what a replica of engine hf needs for a full batch; `lengths`: (tokens of a prompt, most new tokens)."""
    prompt, new = lengths
    dtype = engine.dtype if engine.dtype != "auto" else "bfloat16" if gpu else "float32"
    width = 4 if dtype == "float32" else 2
    tokens = -(-(prompt + new) // GROWTH) * GROWTH
    cache = engine.batch_size * cache_bytes(shape, tokens, dtype)
    layer = -(-cache // shape.num_layers)  # a cache that grows is copied a layer at a time
    step = layer + engine.batch_size * shape.vocab_size * (width + 3 * 4)
    parts = {"weights": width * shape.num_parameters, "cache": cache}
    parts["working"] = max(step, prefill_bytes(shape, engine.batch_size, prompt, dtype) - cache)
    parts["margin"] = round(machine.margin * sum(parts.values()))
    parts["context"] = round(machine.context_gib * GIB)
    return Memory(parts, machine.device_bytes)


@lru_cache(maxsize=64)
def prefill_bytes(shape: ModelShape, num_rows: int, num_tokens: int, dtype: str) -> int:
    """Return the most bytes alive while `num_rows` prompts of `num_tokens` are read, cache included; weights aside. Run on meta.

    Raises UserError for a model that cannot be run there.
    """
    import torch

    model = meta_model(shape.name, json.loads(shape.config), dtype).eval()
    ids = torch.empty(num_rows, num_tokens, dtype=torch.long, device="meta")
    mask = torch.empty(num_rows, num_tokens, dtype=torch.bool, device="meta")
    counter = live_bytes([*model.parameters(), *model.buffers(), ids, mask])
    advice = "plan knows models whose layers ask no tensor for its values"
    with (
        explained(shape.name, "it cannot read a prompt without values, so the memory for that is not known", advice),
        torch.no_grad(),
        counter,
    ):
        model(input_ids=ids, attention_mask=mask, position_ids=ids, use_cache=True, logits_to_keep=1)
    return int(counter.peak)


def vllm_memory(shape: ModelShape, engine: VLLMEngineConfig, lengths: tuple[int, int], machine: Machine) -> tuple[Memory, int]:
    """Return what one GPU of an engine needs for its longest sequence, and how many such sequences find room at a time."""
    longest = engine.max_model_len or sum(lengths)
    size = engine.tensor_parallel_size
    width = 4 if engine.dtype == "float32" else 2
    dtype = engine.dtype if engine.dtype != "auto" else "bfloat16"
    each = -(-cache_bytes(shape, longest, dtype) // size)
    weights, overhead = -(-width * shape.num_parameters // size), round(VLLM_OVERHEAD_GIB * GIB)
    room = round(engine.gpu_memory_utilization * machine.device_bytes) - weights - overhead
    parts = {"weights": weights, "working": overhead, "cache": each}
    return Memory(parts, round(engine.gpu_memory_utilization * machine.device_bytes)), min(engine.max_in_flight, max(0, room // each))


def answer_speed(shape: ModelShape, engine: Engine, pool: PoolConfig, assumed: Assumptions) -> float:
    """Return the new tokens a second of one replica."""
    if not on_gpu(engine, pool):
        return CPU_ANSWERING * max(1.0, pool.cpus_per_replica) / (2 * shape.num_multiplied)
    one: float = VLLM_AT_1B * (shape.num_parameters / 1e9) ** VLLM_POWER * assumed.tflops / 989
    return one * float(engine.tensor_parallel_size) ** 0.8 if engine.kind == "vllm" else one * HF_SHARE
