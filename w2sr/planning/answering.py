"""The memory and the speed of a model that answers: teachers, and everyone under evaluation."""

from __future__ import annotations

import dataclasses
import itertools
import json
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

from w2sr.planning.activations import live_bytes
from w2sr.planning.assumptions import CPU_ANSWERING, GIB, Assumptions, Machine
from w2sr.planning.cache import cache_bytes
from w2sr.planning.meta import explained, meta_model
from w2sr.planning.search import Changes
from w2sr.planning.shapes import ModelShape
from w2sr.planning.training_memory import Memory
from w2sr.teachers.config import HFEngineConfig, PoolConfig, VLLMEngineConfig

GROWTH = 64  # tokens by which the cache of engine hf grows (teachers/decoding.py)
VLLM_OVERHEAD_GIB = 3.0  # CUDA graphs, and activations of the largest prefill
# Tokens a second of vLLM on one H100 with short contexts: 11,710 at 1.7B and 4,414 at 14B parameters, in between within 10 % by a power.
VLLM_AT_1B, VLLM_POWER = 14_900.0, -0.46
HF_SHARE = 0.15  # of that: no continuous batching, and a Python step for each token


Engine = HFEngineConfig | VLLMEngineConfig
AnyEngine = TypeVar("AnyEngine", HFEngineConfig, VLLMEngineConfig)


@dataclass(frozen=True)
class Replica:
    """One engine: what a device of it needs, changes of `engine.` and `pool.` that would make it fit, and what else is to be said.

    `remedies`: the cheapest change first; none where it fits, or nothing does.
    """

    memory: Memory
    remedies: list[Changes]
    note: str


def on_gpu(pool: PoolConfig) -> bool:
    """Return whether the replicas of a pool have GPUs."""
    return pool.gpus_per_replica > 0


def num_devices(pool: PoolConfig) -> float:
    """Return the GPUs, or else the processes, of a whole pool."""
    return pool.replicas * (pool.gpus_per_replica if on_gpu(pool) else 1)


def replica(shape: ModelShape, engine: Engine, pool: PoolConfig, lengths: tuple[int, int], assumed: Assumptions) -> Replica:
    """Return what one replica needs; `lengths`: (tokens of a prompt, most new tokens)."""
    gpu = on_gpu(pool)
    machine = assumed.gpu(pool.replicas) if gpu else assumed.cpu(pool.replicas)
    if isinstance(engine, HFEngineConfig):
        # Replicas with a part of a GPU share its memory; of several GPUs the engine uses one.
        machine = dataclasses.replace(machine, device_bytes=round(machine.device_bytes * min(1.0, pool.gpus_per_replica or 1.0)))
        memory, sizes = hf_memory(shape, engine, lengths, machine, gpu), [engine.batch_size]
        while sizes[-1] > 1:
            sizes.append(sizes[-1] // 2)
        tried: list[Changes] = [] if memory.fits else [{"engine.batch_size": size} for size in sizes[1:]]
        fitting = (each for each in tried if hf_memory(shape, _changed(engine, each), lengths, machine, gpu).fits)
        return Replica(memory, list(itertools.islice(fitting, 1)), f"batches of {engine.batch_size:,}")
    memory, at_once = vllm_memory(shape, engine, lengths, machine)
    tried = [] if memory.fits else _smaller(shape, engine, lengths, assumed.gpus_per_node)
    remedies = [each for each in tried if vllm_memory(shape, _changed(engine, each), lengths, machine)[0].fits]
    return Replica(
        memory, remedies, f"room for {at_once:,} sequences of {min(sum(lengths), _longest(shape, engine, lengths)):,} tokens at a time"
    )


def _changed(engine: AnyEngine, changes: Changes) -> AnyEngine:
    return engine.model_copy(update={key.removeprefix("engine."): value for key, value in changes.items() if key.startswith("engine.")})


def _smaller(shape: ModelShape, engine: VLLMEngineConfig, lengths: tuple[int, int], most_gpus: int) -> list[Changes]:
    """Return changes with which a GPU of an engine needs less, the cheapest first: shorter sequences, more GPUs that share the heads."""
    longest = _longest(shape, engine, lengths)
    shorter = [longest >> power for power in range(1, longest.bit_length()) if longest >> power >= sum(lengths)]
    heads, keys = shape.num_heads, shape.num_key_heads
    sizes = [size for size in range(engine.tensor_parallel_size + 1, most_gpus + 1) if heads % size == 0]
    sizes = [size for size in sizes if keys % size == 0 or size % keys == 0]
    limits: list[Changes] = [{}, *({"engine.max_model_len": length} for length in shorter)]
    shared: list[Changes] = [{}, *({"engine.tensor_parallel_size": size, "pool.gpus_per_replica": size} for size in sizes)]
    return [{**limit, **share} for share in shared for limit in limits if limit or share]


def _longest(shape: ModelShape, engine: VLLMEngineConfig, lengths: tuple[int, int]) -> int:
    """Return the tokens of the longest sequence that vLLM promises to serve: without a limit what the model allows."""
    return engine.max_model_len or shape.max_positions or sum(lengths)


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
    """Return what one GPU of an engine needs for its longest sequence, without which vLLM does not start; and how many find room at a time.

    The latter are sequences of `lengths`: (tokens of a prompt, most new tokens).
    """
    size = engine.tensor_parallel_size
    width = 4 if engine.dtype == "float32" else 2
    dtype = engine.dtype if engine.dtype != "auto" else "bfloat16"
    longest = _longest(shape, engine, lengths)
    # GPUs beyond the heads of keys and values hold copies of them.
    each, usual = (
        -(-cache_bytes(shape, tokens, dtype) // min(size, shape.num_key_heads)) for tokens in (longest, min(longest, sum(lengths)))
    )
    weights, overhead = -(-width * shape.num_parameters // size), round(VLLM_OVERHEAD_GIB * GIB)
    has = round(engine.gpu_memory_utilization * machine.device_bytes)
    parts = {"weights": weights, "working": overhead, "cache": each}
    return Memory(parts, has), min(engine.max_in_flight, max(0, (has - weights - overhead) // usual))


def answer_speed(shape: ModelShape, engine: Engine, pool: PoolConfig, assumed: Assumptions) -> float:
    """Return the new tokens a second of one replica."""
    if not on_gpu(pool):
        return CPU_ANSWERING * max(1.0, pool.cpus_per_replica) / (2 * shape.num_multiplied)
    one: float = VLLM_AT_1B * (shape.num_parameters / 1e9) ** VLLM_POWER * assumed.tflops / 989
    return one * float(engine.tensor_parallel_size) ** 0.8 if engine.kind == "vllm" else one * HF_SHARE * min(1.0, pool.gpus_per_replica)
